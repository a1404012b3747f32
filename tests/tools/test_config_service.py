"""The configuration file: what it says of the service itself, and what was typed beside it."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from capstore.tools import serve as serve_command
from capstore.tools.config.load import Config, ConfigError, load
from capstore.tools.confine import Sandbox
from capstore.tools.observing import ObserveOptions
from tests.tools.command import capstore, serving

VOLUMES = "[volumes]\nm = 'memory:'\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the file, in which whoever loads it works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(
    text: str, observe: ObserveOptions | None = None, sandbox: Sandbox = Sandbox.OFF
) -> Config:
    """What a file says that has these lines in front of its volumes."""
    return load(
        (text + "\n" + VOLUMES).encode(),
        Path("capstore.toml").absolute(),
        observe=observe or ObserveOptions(),
        sandbox=sandbox,
    )


def problems(
    text: str, observe: ObserveOptions | None = None, sandbox: Sandbox = Sandbox.OFF
) -> list[str]:
    try:
        loaded(text, observe, sandbox)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


# What it says ------------------------------------------------------------------------------------


def test_nothing_is_told_and_nothing_given_up_unless_it_is_said() -> None:
    config = loaded("")
    assert (config.observe, config.sandbox) == (ObserveOptions(), Sandbox.OFF)


def test_what_is_said_is_used(folder: Path) -> None:
    config = loaded(
        """
        audit = "log/audit"
        audit-calls = ["Directory.*", "*.read"]
        audit-only = ["changes", "traced"]
        audit-names = true
        audit-required = true
        audit-max-bytes = "1MiB"
        audit-keep = 3
        metrics = "192.0.2.1:9464"
        metrics-anywhere = true
        sandbox = true
        require-sandbox = true
        """
    )
    assert config.observe == ObserveOptions(
        audit="log/audit",
        calls=("Directory.*", "*.read"),
        only=("changes", "traced"),
        names=True,
        required=True,
        size_max=1 << 20,
        keep=3,
        metrics="192.0.2.1:9464",
        anywhere=True,
    )
    assert config.observe.file == folder / "log" / "audit"
    assert config.sandbox is Sandbox.REQUIRED


@pytest.mark.parametrize(
    ("text", "size_max"), [("0", 0), ("'0'", 0), ("4096", 4096), ("'4KiB'", 4096)]
)
def test_a_size_is_a_number_or_has_a_unit(text: str, size_max: int) -> None:
    assert loaded(f"audit = '-'\naudit-max-bytes = {text}").observe.size_max == size_max


@pytest.mark.parametrize("metrics", ["127.0.0.1:9464", "[::1]:0", "localhost:1", "unix:m"])
def test_metrics_of_this_machine_need_no_more(metrics: str) -> None:
    assert loaded(f'metrics = "{metrics}"').observe.metrics == metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audit = true", "1: audit: must be a string, is true or false"),
        ("audit = ''", "1: audit: is no path"),
        ("audit-calls = ['Nothing.*']", '1: audit-calls[0]: no method fits "Nothing.*"'),
        ("audit-calls = ['*', '*']", '1: audit-calls[1]: "*" is there already'),
        ("audit-calls = 'File.*'", "1: audit-calls: must be an array"),
        ("audit-only = ['change']", '1: audit-only[0]: "change" is no kind of calls: did you'),
        ("audit-only = [3]", "1: audit-only[0]: must be a string, is a number"),
        ("audit-names = 1", "1: audit-names: must be true or false, is a number"),
        ("audit-required = 'yes'", "1: audit-required: must be true or false"),
        ("audit-max-bytes = 'much'", '1: audit-max-bytes: "much" is no size: a number with'),
        ("audit-max-bytes = -1", "1: audit-max-bytes: must be a string, is a number"),
        ("audit-keep = 0", "1: audit-keep: is from 1 to 1000, not 0"),
        ("audit-keep = 1001", "1: audit-keep: is from 1 to 1000, not 1001"),
        ("audit-keep = '3'", "1: audit-keep: must be a number, is a string"),
        ("metrics = ''", '1: metrics: "" is no address: unix:PATH or HOST:PORT'),
        ("metrics = 9464", "1: metrics: must be a string, is a number"),
        ("metrics = '0.0.0.0:1'", '1: metrics: everybody who reaches "0.0.0.0:1" could read'),
        ("metrics-anywhere = 1", "1: metrics-anywhere: must be true or false"),
        ("sandbox = 'on'", "1: sandbox: must be true or false, is a string"),
        ("require-sandbox = 1", "1: require-sandbox: must be true or false"),
        ("sandboxed = true", '1: sandboxed: is no key here: did you mean "sandbox"?'),
    ],
)
def test_what_is_wrong_is_told_with_key_and_line(text: str, expected: str) -> None:
    # So that nothing is wrong but what this is about.
    audited = ObserveOptions(audit="-")
    found = problems(text, audited if not text.startswith("audit =") else None)
    assert [problem[: len(expected)] for problem in found] == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "audit-calls = ['*']",
        "audit-only = ['changes']",
        "audit-names = true",
        "audit-required = true",
        "audit-max-bytes = 0",
        "audit-keep = 8",
    ],
)
def test_what_is_audited_is_said_beside_an_audit(text: str) -> None:
    key = text.partition(" ")[0]
    assert problems(f"\n{text}") == [f"2: {key}: what is audited is said beside audit"]
    assert problems(f"\n{text}", ObserveOptions(audit="-")) == []


def test_a_traced_share_needs_an_audit() -> None:
    share = "\n[[share]]\nlabel = 's'\nvolume = 'm'\ntraced = true"
    raw = (VOLUMES + share).encode()
    with pytest.raises(ConfigError) as caught:
        load(raw, Path("capstore.toml").absolute())
    assert list(map(str, caught.value.problems)) == [
        "7: share[0].traced: nothing is recorded without audit"
    ]
    typed = ObserveOptions(audit="-")
    assert load(raw, Path("capstore.toml").absolute(), observe=typed).shares[0].more.traced


def test_a_volume_does_not_hold_the_audit(folder: Path) -> None:
    text = "audit = 'log/calls'\nvolumes.d = 'dir:log'"
    raw = text.encode()
    with pytest.raises(ConfigError) as caught:
        load(raw, folder / "capstore.toml")
    (problem,) = caught.value.problems
    assert str(problem).startswith('2: volumes.d: the volume "dir:log" would hold the secrets')


def test_what_cannot_be_in_the_sandbox_is_told_before_it_is_opened(folder: Path) -> None:
    text = "volumes.t = { overlay = ['memory:', 'pyfs:temp://x,ro'] }\n"
    assert load(text.encode(), folder / "capstore.toml").sandbox is Sandbox.OFF
    typed = load(text.encode(), folder / "capstore.toml", sandbox=Sandbox.OFF)
    assert typed.served == ["t"]
    expected = "2: volumes.t.overlay[1]: pyfs:temp:// opens and connects as it goes: "
    for raw, sandbox in (
        (b"sandbox = true\n" + text.encode(), Sandbox.OFF),
        (b"\n" + text.encode(), Sandbox.REQUIRED),
    ):
        with pytest.raises(ConfigError) as caught:
            load(raw, folder / "capstore.toml", sandbox=sandbox)
        (problem,) = caught.value.problems
        assert str(problem).startswith(expected)


# What was typed beside it ------------------------------------------------------------------------

SAID = """
audit = "a"
audit-calls = ["*.read"]
audit-only = ["changes"]
audit-max-bytes = "1MiB"
audit-keep = 3
metrics = "unix:m"
"""


def test_what_was_typed_stands_before_what_the_file_says() -> None:
    typed = ObserveOptions(
        audit="/elsewhere",
        calls=("File.*",),
        only=("failures",),
        size_max=0,
        keep=9,
        metrics="127.0.0.1:0",
    )
    assert loaded(SAID, typed).observe == typed
    one = ObserveOptions(keep=1)
    said = loaded(SAID).observe
    assert loaded(SAID, one).observe == one.before(said)
    assert one.before(said).calls == ("*.read",)


def test_a_switch_is_on_where_either_says_so() -> None:
    typed = ObserveOptions(audit="-", names=True, anywhere=True)
    both = loaded("audit-required = true\nmetrics = '0.0.0.0:1'\nsandbox = true", typed)
    assert (both.observe.names, both.observe.required, both.observe.anywhere) == (True,) * 3
    assert both.sandbox is Sandbox.AS_FAR_AS_IT_GOES
    assert loaded("sandbox = true", sandbox=Sandbox.REQUIRED).sandbox is Sandbox.REQUIRED
    assert loaded("require-sandbox = true", sandbox=Sandbox.AS_FAR_AS_IT_GOES).sandbox is (
        Sandbox.REQUIRED
    )


def test_each_option_is_a_key_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "capstore.tools.config.document.Table.finish",
        lambda table: asked.extend(table._asked) if not table.path else None,
    )
    loaded("")
    options = {name.replace("_", "-") for name in inspect.signature(serve_command.serve).parameters}
    assert options - {"config", "check"} <= set(asked)
    assert set(asked) - options == {"serve", "share"}


# A service by it ---------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder whose path is short, because that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="capstore-") as name:
        yield Path(name)


def test_a_service_does_what_the_file_says(home: Path) -> None:
    (home / "log").mkdir()
    (home / "capstore.toml").write_text(
        """
        state = "state"
        listen = ["unix:socket"]
        uri-file = "uris"
        audit = "log/audit"
        audit-only = ["changes"]
        audit-max-bytes = 300
        audit-keep = 1
        metrics = "127.0.0.1:0"
        sandbox = true
        volumes.m = "memory:"
        [[share]]
        label = "all"
        volume = "m"
        traced = true
        """
    )
    with serving("--config", home / "capstore.toml", cwd=home.parent) as served:
        for name in "abc":
            capstore("mkdir", f"@{home}/uris#m", name).ok()
        capstore("ls", f"@{home}/uris#all").ok()
        url = (home / "state" / "metrics").read_text().strip()
        with urlopen(url, timeout=20) as answer:
            counted = re.findall(
                rb'capstore_calls_total\{.*method="mkdir".*\} (\S+)', answer.read()
            )
        assert [float(each) for each in counted] == [3.0]
        assert served.stop() == 0
        assert "in the sandbox: " in served.log
    files = sorted(path.name for path in (home / "log").iterdir())
    assert files == ["audit", "audit.1"]
    lines = [json.loads(line) for line in (home / "log" / "audit").read_text().splitlines()]
    assert lines[-1]["label"] == "all"
    assert (home / "log" / "audit").stat().st_mode & 0o777 == 0o600


def test_what_was_typed_wrong_is_told_beside_a_file_that_is_right(home: Path) -> None:
    (home / "c.toml").write_text(VOLUMES)
    ran = capstore("serve", "--config", "c.toml", "--check", "--audit-keep", "3", cwd=home)
    assert (ran.code, ran.raw) == (2, b"")
    assert ran.error.startswith("capstore: Invalid value for '--audit-keep': what is audited is")
    ran = capstore(
        "serve", "--config", "c.toml", "--check", "--audit-keep=3", "--audit=-", cwd=home
    )
    assert ran.ok() == "c.toml: ok\n"
