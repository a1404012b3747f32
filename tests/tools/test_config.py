"""The configuration file: what it says, and what is refused, on which line and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from capstore.backers import spec as backer_specs
from capstore.backers.spec import open_backer
from capstore.schema.errors import InvalidArgument, StorageError
from capstore.service.policy import Policy
from capstore.service.shares import StandingShare
from capstore.tools.config.document import BYTES_MAX
from capstore.tools.config.load import ConfigError, load
from capstore.tools.config.specs import COMPOSED, OPTIONS, check_spec
from capstore.tools.config.volumes import DEPTH_MAX
from tests.tools.configs import loaded, problems, volumes

pytestmark = pytest.mark.usefixtures("folder")


# What it says -------------------------------------------------------------------------------------


def test_all_that_is_not_said_has_its_default() -> None:
    config = loaded('[volumes]\nm = "memory:"')
    assert (config.state, config.listen, config.uri_file) == (Path("capstore-data"), [], None)
    assert (config.log_level, config.served, config.shares) == ("info", ["m"], [])


def test_what_is_said_is_used() -> None:
    config = loaded(
        """
        state = "s"
        listen = ["unix:a", "127.0.0.1:1"]
        uri-file = "u"
        log-level = "error"
        audit = "-"
        volumes = { m = "memory:", n = "memory:" }
        serve.volumes = ["n"]
        [[share]]
        label = "x y"
        volume = "n"
        [[share]]
        label = "z"
        volume = "n"
        path = "/a/b/"
        read-only = true
        expires = "1.5h"
        append-only = true
        max-bytes = "1KiB"
        max-nodes = 9
        max-file-bytes = 100
        calls-per-second = 7
        bytes-per-second = "1MB"
        hide = [".git", "*.key"]
        dry-run = true
        traced = true
        """
    )
    assert (config.state, config.uri_file) == (Path("s"), Path("u"))
    assert config.listen == ["unix:a", "127.0.0.1:1"]
    assert (config.log_level, config.served) == ("error", ["n"])
    more = Policy(
        append_only=True,
        max_bytes=1024,
        max_nodes=9,
        max_file_bytes=100,
        calls_per_second=7,
        bytes_per_second=10**6,
        hidden_names=(".git", "*.key"),
        dry_run=True,
        traced=True,
    )
    assert config.shares == [
        StandingShare("x y", "n"),
        StandingShare("z", "n", ("a", "b"), read_only=True, lifetime=5400 * 10**9, more=more),
    ]


def test_what_is_a_part_of_another_is_not_served_by_default() -> None:
    config = loaded(
        volumes(
            """
            base = "tar:base.tar"
            up = "memory:"
            work = { overlay = ["up", "base"] }
            tree = { mounts = { "/" = "work", "/tmp" = { overlay = ["memory:", "base"] } } }
            objects = "st1:o.st1"
            """
        ).replace("volumes.            ", "volumes.")
    )
    assert config.served == ["tree", "objects"]


# What is wrong with it ----------------------------------------------------------------------------

BASE = 'volumes.m = "memory:"\nvolumes.t = "tar:t.tar"\n'
SHARE = BASE + "[[share]]\nlabel = 'x'\nvolume = 'm'\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: volumes: is missing"),
        ("volumes = {}", "1: volumes: names no volume"),
        ("\nvolumes = 1", "2: volumes: must be a table, is a number"),
        ("a = \nb = 1", "1: no TOML: Invalid value"),
        ("a = 1\na = 2", "2: no TOML: Cannot overwrite a value"),
        ("a = 1\n[b\nc = 2", "2: no TOML: Expected ']' at the end of a table declaration"),
        ("a = 1\n\nb = [1,\n", "3: no TOML: Invalid value"),
        (b"a = 1\nb = '\xff'", "2: not UTF-8"),
        (b"#" * (BYTES_MAX + 1), f"1: longer than {BYTES_MAX} bytes"),
        ("a = " + "[" * 5000 + "]" * 5000, "1: too many brackets within one another"),
        (BASE + "stat = 'x'", '3: stat: is no key here: did you mean "state"?'),
        (BASE + "'a.b' = 1", '3: "a.b": is no key here: there is: '),
        (BASE + "state = 1", "3: state: must be a string, is a number"),
        (BASE + "state = ''", "3: state: is no path"),
        (BASE + "uri-file = '''\n'''", "3: uri-file: is no path"),
        (BASE + 'uri-file = "a\\u0000"', "3: uri-file: is no path"),
        (BASE + "log-level = 'warn'", '3: log-level: "warn" is no level: did you mean "warning"?'),
        (BASE + "log-level = true", "3: log-level: must be a string, is true or false"),
        (BASE + "listen = 'unix:a'", "3: listen: must be an array [...], is a string"),
        (BASE + "listen = [\n'unix:a',\n'b']", '5: listen[1]: "b" is no address'),
        (BASE + "listen = [\n'unix:a',\n'unix:a']", '5: listen[1]: "unix:a" is there already'),
        (BASE + "listen = [1979-05-27]", "3: listen[0]: must be a string, is a date"),
        (BASE + "serve = 1.5", "3: serve: must be a table, is a number"),
        (BASE + "serve.volume = []", '3: serve.volume: is no key here: did you mean "volumes"?'),
        (BASE + "serve.volumes = []", "3: serve.volumes: names no volume"),
        (BASE + "serve.volumes = 'm'", "3: serve.volumes: must be an array [...], is a string"),
        (BASE + "serve.volumes = [1]", "3: serve.volumes[0]: must be a string, is a number"),
        (
            BASE + "serve.volumes = ['t', 'n']",
            '3: serve.volumes[1]: no volume is called "n": there is: m, t',
        ),
        (BASE + "serve.volumes = ['t', 't']", '3: serve.volumes[1]: "t" is there already'),
        (BASE + "share = 1", "3: share: must be an array [...], is a number"),
        (BASE + "share = [1]", "3: share[0]: must be a table, is a number"),
        (BASE + "[share]\nlabel = 'x'", "3: share: must be an array [...], is a table"),
        (BASE + "[[share]]\nvolume = 'm'", "3: share[0].label: is missing"),
        (BASE + "[[share]]\nlabel = 'x'", "3: share[0].volume: is missing"),
        (SHARE + "labels = 1", '6: share[0].labels: is no key here: did you mean "label"?'),
        (SHARE.replace("'x'", "''"), "4: share[0].label: is empty"),
        (SHARE.replace("'x'", f"'{'é' * 101}'"), "4: share[0].label: is at most 200 bytes"),
        (SHARE.replace("'x'", '"a\\tb"'), "4: share[0].label: is at most 200 bytes of printable"),
        (SHARE.replace("'x'", "'t'"), '4: share[0].label: "t" is what a volume is called'),
        (SHARE.replace("= 'm'", "= 'w'"), '5: share[0].volume: "w" is not served: there is: m, t'),
        (
            SHARE + "[[share]]\nlabel = 'x'\nvolume = 't'",
            '7: share[1].label: "x" is on line 4 already',
        ),
        (
            "serve.volumes = ['t']\n" + SHARE,
            '6: share[0].volume: "m" is not served: there is: t',
        ),
        (SHARE + "path = 'a'", '6: share[0].path: "a" is no path from the root'),
        (SHARE + "path = '/a/../b'", "6: share[0].path: is no path: "),
        (SHARE + "path = 1", "6: share[0].path: must be a string, is a number"),
        (SHARE + "read-only = 'yes'", "6: share[0].read-only: must be true or false, is a string"),
        (SHARE + "expires = '2 years'", '6: share[0].expires: "2 years" is no duration'),
        (SHARE + "expires = 7200", "6: share[0].expires: must be a string, is a number"),
        (SHARE + "expires = ''", '6: share[0].expires: "" is no duration'),
        (SHARE + "expires = '0s'", "6: share[0].expires: it would expire at once"),
        (SHARE + "hide = ['a/b']", "6: share[0].hide: a pattern is for one name"),
        (SHARE + "hide = [1]", "6: share[0].hide[0]: must be a string, is a number"),
        (SHARE + "max-bytes = 'much'", '6: share[0].max-bytes: "much" is no size'),
        (SHARE + "max-bytes = 0", "6: share[0].max-bytes: 0 bytes would be no bound"),
        (SHARE + "max-nodes = '1.5'", '6: share[0].max-nodes: "1.5" is no number from 1 on'),
        (SHARE + "traced = 1", "6: share[0].traced: must be true or false, is a number"),
        (SHARE + "dry-run = 'x'", "6: share[0].dry-run: must be true or false, is a string"),
        (SHARE + "max-nodes = true", "6: share[0].max-nodes: must be a string, is true or false"),
        (SHARE + "expires = '999999w'", "6: share[0].expires: that is too far in the future"),
        (
            "volumes.m = 'st1:o'\n[[share]]\nlabel = 'x'\nvolume = 'm'\npath = '/a'",
            "5: share[0].path: leads nowhere: a store of objects is shared as a whole",
        ),
    ],
)
def test_what_is_wrong_is_told_with_key_and_line(text: str | bytes, expected: str) -> None:
    (found,) = problems(text)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'a b' = 'memory:'", '1: volumes."a b": cannot name a volume'),
        ("a = 1", "1: volumes.a: must be a specification, or a table with overlay or mounts, is a"),
        ("a = []", "1: volumes.a: must be a specification, or a table"),
        ("a = 'b'", '1: volumes.a: "b" is no volume specification: SCHEME:ARGUMENT'),
        ("a = 'tape:x'", '1: volumes.a: no backer is called "tape:" (there are: memory:, dir:'),
        ("a = 'dir:'", "1: volumes.a: dir: needs a path"),
        (
            "a = 'wf1:x,creat'",
            '1: volumes.a: wf1: has no option "creat" (it has: create, ro, size)',
        ),
        ("a = 'wf1:x,create=1'", '1: volumes.a: wf1: option "create" takes no value'),
        ("a = 'wf1:x,create,ro'", "1: volumes.a: wf1: what is made is not for reading only"),
        ("a = 'wf1:x,size=1MiB'", "1: volumes.a: wf1: a size is what an image is made with"),
        ("a = 'wf1:x,create,size=0'", "1: volumes.a: wf1: a size is what an image is made with"),
        ("a = 'wf1:x,create,size=1XB'", '1: volumes.a: "1XB" is no size'),
        ("a = 'memory:,max-bytes=lots'", '1: volumes.a: "lots" is no size'),
        ("a = 'fat:x,part=0'", '1: volumes.a: fat: the option "part" is the number of a partition'),
        ("a = 'overlay:memory:'", "1: volumes.a: overlay: is an upper layer and one or more lower"),
        ("a = 'overlay:memory:+tape:x'", '1: volumes.a: no backer is called "tape:"'),
        ("a = 'overlay:memory:+tar:x,lower=no'", '1: volumes.a: overlay: "lower" is readonly or'),
        ("a = 'overlay:memory:+st1:x'", '1: volumes.a: "st1:x" is a store of objects, and no tree'),
        ("a = 'mounts:/x=memory:'", '1: volumes.a: mounts: nothing is mounted at "/"'),
        ("a = 'mounts:/=tar:'", "1: volumes.a: tar: needs a path"),
        ("a = {}", "1: volumes.a: has either overlay or mounts"),
        ("a = { overlay = ['memory:', 'tar:x'], mounts = {} }", "1: volumes.a: has either overlay"),
        ("a = { lower = 'readonly' }", "1: volumes.a: has either overlay or mounts"),
        ("a.overlay = 'x'", "1: volumes.a.overlay: must be an array [...], is a string"),
        ("a.overlay = []", "1: volumes.a.overlay: has an upper layer and 1 to 254 lower"),
        ("a.overlay = ['memory:']", "1: volumes.a.overlay: has an upper layer and 1 to"),
        (
            "a.overlay = ['memory:', 'tar:x', 1]",
            "1: volumes.a.overlay[2]: must be a specification,",
        ),
        ("a.overlay = ['memory:', 'nope']", '1: volumes.a.overlay[1]: no volume is called "nope"'),
        ("a.overlay = ['memory:', 'st1:x']", '1: volumes.a.overlay[1]: "st1:x" is a store of'),
        ("a.overlay = ['memory:', {}]", "1: volumes.a.overlay[1]: has either overlay or mounts"),
        (
            "a = { overlay = ['memory:', 'tar:x'], lower = 'ro' }",
            '1: volumes.a.lower: must be "readonly" or "writable-files", is "ro"',
        ),
        (
            "a = { overlay = ['memory:', 'tar:x'], upper = 1 }",
            "1: volumes.a.upper: is no key here: there is: overlay, lower",
        ),
        ("a.mounts = 'x'", "1: volumes.a.mounts: must be a table, is a string"),
        ("a.mounts = {}", '1: volumes.a.mounts: has nothing at "/"'),
        ("a.mounts.'/x' = 'memory:'", '1: volumes.a.mounts: has nothing at "/"'),
        ("a.mounts.'/' = 1", '1: volumes.a.mounts."/": must be a specification, or a table'),
        (
            "a.mounts = { '/' = 'memory:', '/x/' = 'memory:' }",
            '1: volumes.a.mounts."/x/": is not as a path is written here: "/x"',
        ),
        (
            "a.mounts = { '/' = 'memory:', x = 'memory:' }",
            '1: volumes.a.mounts.x: is not as a path is written here: "/x"',
        ),
        (
            "a.mounts = { '/' = 'memory:', '/..' = 'memory:' }",
            '1: volumes.a.mounts."/..": is no path: ',
        ),
        (
            "o = 'st1:x'\na.mounts.'/' = 'o'",
            '2: volumes.a.mounts."/": "o" is a store of objects, and no tree',
        ),
        ("a.overlay = ['a', 'tar:x']", "1: volumes.a: is a part of itself: a -> a"),
        (
            """z.overlay = ['c', 'tar:x']
b.overlay = ['memory:', 'c']
c.overlay = ['memory:', 'b']""",
            "2: volumes.b: is a part of itself: b -> c -> b",
        ),
        (
            """a.overlay = ['b', 'tar:x']
b.mounts = { '/' = 'tar:y', '/c' = 'c' }
c = { overlay = ['memory:', { mounts = { '/' = 'a' } }] }""",
            "1: volumes.a: is a part of itself: a -> b -> c -> a",
        ),
    ],
)
def test_a_volume_that_makes_no_sense(text: str, expected: str) -> None:
    (found,) = problems(volumes(text))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "m = 'memory:'\nt = 'tar:t'\na.overlay = ['m', 't']\nb.overlay = ['m', 't']",
        "m = 'memory:'\nt = 'tar:t'\na.overlay = ['m', 't']\nb.overlay = ['memory:', 'm']",
        "m = 'wf1:m'\na.mounts.'/' = 'm'\n\nb.mounts.'/' = 'm'",
        "m = 'overlay:memory:+tar:t'\na.mounts.'/' = 'm'\n\nb.mounts.'/' = 'm'",
        "m = 'mounts:/=tar:t,/x=memory:'\na.mounts.'/' = 'm'\n\nb.mounts.'/' = 'm'",
        "m = 'pyfs:zip://a.zip'\na.mounts.'/' = 'm'\n\nb.mounts.'/' = 'm'",
        """m = { overlay = ['tar:t', 'dir:d'], lower = 'writable-files' }
a.mounts.'/' = 'm'

b.mounts.'/' = 'm'""",
    ],
)
def test_what_can_be_written_has_one_place(text: str) -> None:
    text = "\n".join(f"volumes.{line}" if line else "" for line in text.splitlines())
    (found,) = problems(text)
    first = 3 if "a.overlay" in text else 2
    assert found.startswith("4: volumes.b.")
    assert found.endswith(f': "m" can be written, so it has one place, and that is on line {first}')
    # What is a part of another is not served by itself.
    one = text.rpartition("\n")[0]
    assert problems(one) == []
    (served,) = problems(one + "\nserve.volumes = ['m']")
    assert served.startswith('4: serve.volumes[0]: "m" can be written')


def test_what_cannot_be_written_has_any_number_of_places() -> None:
    text = """
t = "tar:t"
d = "dir:d,ro"
w = "wf1:w,ro"
o = "oci:o"
u = "overlay:tar:u+tar:v"
m = "mounts:/=tar:m,/n=tar:n"
a.overlay = ["memory:", "t", "d", "w", "o", "u", "m"]
b.overlay = ["memory:", "m", "u", "o", "w", "d", "t"]
c.mounts = { "/" = "t", "/d" = "d" }
"""
    config = loaded(volumes(text) + "\nserve.volumes = ['a', 'b', 'c', 't', 'd']")
    assert config.served == ["a", "b", "c", "t", "d"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.overlay = ['dir:x', 'dir:x/y']", '1: volumes.a: layers overlap: "dir:x/y" is within'),
        ("a.overlay = ['dir:x', 'dir:z', 'tar:x/t']", "1: volumes.a: layers overlap: "),
        ("a = 'overlay:wf1:x/w,create+dir:x'", "1: volumes.a: layers overlap: "),
        ("u = 'dir:x'\na.overlay = ['wf1:w', 'u', 'tar:x/t']", "2: volumes.a: layers overlap: "),
        (
            "a.overlay = ['wf1:x/w', { mounts = { '/' = 'tar:t', '/x' = 'dir:x' } }]",
            "1: volumes.a: layers overlap: ",
        ),
        ("t = 'tar:t'\na.overlay = ['memory:', 't', 't']", "2: volumes.a: layers overlap: "),
        ("a.overlay = ['memory:', 'tar:x/t', 'tar:x/t']", "1: volumes.a: layers overlap: "),
        ("t = 'tar:t'\na.mounts = { '/' = 't', '/t' = 't' }", '2: volumes.a.mounts."/t": "t" is a'),
    ],
)
def test_layers_share_no_place(folder: Path, text: str, expected: str) -> None:
    (folder / "x" / "y").mkdir(parents=True)
    assert problems(volumes(text))[0].startswith(expected)


def test_parts_of_one_layer_may_share_a_place(folder: Path) -> None:
    (folder / "x" / "y").mkdir(parents=True)
    text = "a.overlay = ['memory:', { mounts = { '/' = 'dir:x', '/y' = 'dir:x/y' } }]"
    assert problems(volumes(text)) == []


@pytest.mark.parametrize(
    "text", ["'dir:.'", "'dir:..'", "'pyfs:osfs://.'", "'overlay:memory:+dir:.'"]
)
def test_a_volume_that_may_be_written_does_not_hold_the_file_itself(text: str) -> None:
    elsewhere = "state = '../../s'\n"
    (found,) = problems(elsewhere + volumes(f"a = {text}"))
    assert re.fullmatch(
        r'2: volumes.a: ".*" would hold this file itself: ",ro", or elsewhere', found
    )
    if "dir:.'" in text:
        assert problems(elsewhere + volumes(f"a = {text[:-1]},ro'")) == []


def test_nor_does_it_hold_a_link_on_the_way_to_the_file(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "links").mkdir()
    (folder / "links" / "way").symlink_to("../real")
    raw = b"state = '/elsewhere'\nvolumes.a = 'dir:links'"
    load(raw, folder / "real" / "capstore.toml")
    with pytest.raises(ConfigError):
        load(raw, folder / "links" / "way" / "capstore.toml")


@pytest.mark.parametrize("more", ["", "state = 'kept/s'", "uri-file = 'kept/u'\nstate = '../s'"])
def test_a_volume_does_not_hold_the_secrets_of_the_service(more: str) -> None:
    (found,) = problems("volumes.a.overlay = ['memory:', 'dir:/,ro']\n" + more)
    assert found.startswith('1: volumes.a.overlay[1]: the volume "dir:/,ro" would hold the secrets')


def nested(depth: int) -> str:
    text = '"memory:"'
    for _ in range(depth - 1):
        text = f'{{ mounts = {{ "/" = {text} }} }}'
    return text


def test_volumes_are_within_one_another_to_a_depth() -> None:
    assert problems(volumes(f"a = {nested(DEPTH_MAX)}")) == []
    (found,) = problems(volumes(f"a = {nested(DEPTH_MAX + 1)}"))
    assert found.endswith("more than 16 volumes within one another")
    names = [f"v{n}.mounts.'/' = 'v{n - 1}'" for n in range(1, DEPTH_MAX + 5)]
    (found,) = problems(volumes("\n".join(["v0 = 'memory:'", *names])))
    assert found == "17: volumes.v16: more than 16 volumes within one another"
    text = "tar:t"
    for _ in range(DEPTH_MAX):
        text = "mounts:/=" + text
    (found,) = problems(volumes(f"a = '{text}'"))
    assert found.endswith("more than 16 volumes within one another")


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_lines() -> None:
    text = """
[[share]]
label = "a"
volume = "y"
[volumes]
b.overlay = ["c", "d"]
c.overlay = ["b", "tar:x"]
e = { overlay = ["f", "memory:"], lower = 1 }
f.overlay = ["e", "memory:"]
g = "tape:"
[serve]
volumes = ["z"]
"""
    found = [re.sub(r": [^:]*$", "", problem) for problem in problems(text)]
    assert [problem.split(": ")[:2] for problem in found] == [
        ["4", "share[0].volume"],
        ["6", "volumes.b"],
        ["6", "volumes.b.overlay[1]"],
        ["8", "volumes.e"],
        ["8", "volumes.e.lower"],
        ["10", "volumes.g"],
        ["12", "serve.volumes[0]"],
    ]


def test_what_the_command_line_says_stands_before_the_file() -> None:
    raw = b"state = '/etc/s'\nvolumes.d = 'dir:/etc,ro'"
    with pytest.raises(ConfigError):
        load(raw, Path("/elsewhere/capstore.toml"))
    config = load(raw, Path("/elsewhere/capstore.toml"), state=Path("/s"), uri_file=Path("/u"))
    assert (config.state, config.uri_file) == (Path("/s"), Path("/u"))
    with pytest.raises(ConfigError):
        load(raw, Path("/elsewhere/capstore.toml"), state=Path("/s"), uri_file=Path("/etc/u"))


# What is known of specifications without opening them ---------------------------------------------


def test_it_knows_the_schemes_there_are() -> None:
    known = {
        *backer_specs._OPENERS,
        *backer_specs._STORE_OPENERS,
        *backer_specs._COMPOSED,
    }
    assert {*OPTIONS, *COMPOSED} == known


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", OPTIONS)
async def test_it_refuses_what_opening_refuses_before_it_looks(scheme: str) -> None:
    argument = {"memory": "", "pyfs": "osfs://missing"}.get(scheme, "missing")
    options = {option for known in OPTIONS.values() for option in known} | {"colour"}
    texts = [f"{scheme}:{argument}", f"{scheme}:", f"{scheme}:x,create,size=1x"]
    for option in sorted(options):
        texts += [f"{scheme}:{argument},{option}", f"{scheme}:{argument},{option}=x"]
    for text in texts:
        assert _refused_early(text) == await _refused_at_opening(text), text


def _refused_early(text: str) -> bool:
    try:
        check_spec(text)
    except InvalidArgument:
        return True
    return False


async def _refused_at_opening(text: str) -> bool:
    try:
        await (await open_backer(text)).close()
    except InvalidArgument:
        return True
    except StorageError:
        pass
    return False
