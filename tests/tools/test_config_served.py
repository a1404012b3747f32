"""A configuration that is opened, served by the command, and described by its page."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from capstore.backers.node import Volume
from capstore.schema.errors import Closed, NotFound
from capstore.tools.config.document import Table, dotted
from capstore.tools.config.opening import open_served
from tests.tools.command import Served, capstore, serving
from tests.tools.configs import loaded, problems

pytestmark = pytest.mark.usefixtures("folder")

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "config.md").read_text()
EXAMPLE = (DOCS / "capstore.toml").read_text()


# Opening ------------------------------------------------------------------------------------------


@pytest.fixture
def base(folder: Path) -> Path:
    """An archive ``base.tar`` with ``src/f``."""
    (folder / "src").mkdir()
    (folder / "src" / "f").write_bytes(b"base")
    with tarfile.open(folder / "base.tar", "w") as archive:
        archive.add("src")
    return folder


async def content(volume: Volume, *path: str) -> bytes:
    directory = volume.root
    for name in path[:-1]:
        directory = await directory.sub(name)
    return bytes(await (await directory.open(path[-1])).read(0, 100))


@pytest.mark.anyio
async def test_volumes_are_put_together_and_opened_once(base: Path) -> None:
    config = loaded(
        """
[volumes]
base = "tar:base.tar"
up = "wf1:up.wf1,create"
work = { overlay = ["up", "base"] }
tree = { mounts = { "/" = "work", "/mnt" = { overlay = ["memory:", "base"] } } }
union = { overlay = ["tar:base.tar", "oci:src"] }
text = 'overlay:memory:+tar:base.tar'
[serve]
volumes = ["tree", "union", "text", "base"]
"""
    )
    async with AsyncExitStack() as opening:
        served = await open_served(config, base / "cache", opening)
        assert list(served) == ["tree", "union", "text", "base"]
        tree, union, text, plain = served.values()
        assert isinstance(tree, Volume)
        assert isinstance(union, Volume)
        assert isinstance(text, Volume)
        assert isinstance(plain, Volume)
        (layer,) = tree._mounts[0].part.source.layers[1:]  # type: ignore[attr-defined]
        assert layer.volume is plain
        for volume, path in ((tree, ("src",)), (tree, ("mnt", "src")), (text, ("src",))):
            assert not volume.read_only
            assert await content(volume, *path, "f") == b"base"
        await (await tree.root.sub("src")).create("new")
        with pytest.raises(NotFound):
            await content(text, "src", "new")
        assert union.read_only
        assert await content(union, "f") == b"base"
        assert await content(union, "src", "f") == b"base"
        # One of those that share the base is closed; closing the others is no error.
        await tree.close()
        with pytest.raises(Closed):
            await plain.root.stat()
    again = loaded("volumes.up = 'wf1:up.wf1'")
    async with AsyncExitStack() as opening:
        await open_served(again, base / "cache", opening)


@pytest.mark.anyio
async def test_what_fails_is_named_and_the_rest_is_closed(base: Path) -> None:
    text = """
volumes.up = "wf1:up.wf1,create"
volumes.work = { mounts = { "/" = "up", "/x" = "tar:missing.tar" } }
"""
    for _ in range(2):  # the second one finds no lock on up.wf1
        with pytest.raises(NotFound) as caught:
            async with AsyncExitStack() as opening:
                await open_served(loaded(text), base / "cache", opening)
        assert caught.value.message.startswith('capstore.toml:3: volumes.work.mounts."/x": ')
        assert str(base) not in caught.value.message


# The command --------------------------------------------------------------------------------------

CONFIG = """
state = "state"
listen = ["unix:socket"]
uri-file = "uris"

[volumes]
base = "tar:base.tar"
up = "wf1:up.wf1,create"
work = { overlay = ["up", "base"] }

[[share]]
label = "ci job"
volume = "work"
path = "/src"
read-only = true
expires = "2h"

[[share]]
label = "missing"
volume = "work"
path = "/later"
"""


@pytest.fixture
def home(base: Path) -> Iterator[Path]:
    """A folder with `CONFIG` in it, whose path is short because that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="capstore-") as name:
        (base / "base.tar").rename(Path(name) / "base.tar")
        (Path(name) / "capstore.toml").write_text(CONFIG)
        yield Path(name)


@contextmanager
def served_by(home: Path, *more: str | Path) -> Iterator[Served]:
    """A service by the file in `home`, started elsewhere, and stopped cleanly."""
    with serving("--config", home / "capstore.toml", *more, cwd=home.parent) as served:
        yield served
        assert served.stop() == 0
        assert "Traceback" not in served.log


def test_it_serves_what_the_file_says_and_again_after_a_restart(home: Path) -> None:
    uris = f"@{home}/uris"
    with served_by(home) as served:
        assert [line.partition("\t")[0] for line in served.lines] == ["work", "ci job"]
        first = served.uri("ci job")
        assert first.startswith(f"capnp://insecure@{home}/socket/")
        assert (home / "uris").read_text().splitlines() == served.lines
        said = '"missing" is not shared: volume work: notFound: "/later": '
        assert said in served.log
        assert capstore("cat", f"{uris}#ci job/-/f").ok() == "base"
        capstore("put", "-", f"{uris}#ci job/-/x", stdin=b"x").failed("readOnly")
        capstore("put", "-", f"{uris}#work/-/src/x", stdin=b"new").ok()
        capstore("mkdir", f"{uris}#work/-/later").ok()
        owner = served.uri("work")
    with served_by(home) as served:
        assert [line.partition("\t")[0] for line in served.lines] == ["work", "ci job", "missing"]
        assert (served.uri("work"), served.uri("ci job")) == (owner, first)
        assert capstore("cat", f"{first}/-/x").ok() == "new"
        assert "ERROR" not in served.log
    (home / "capstore.toml").write_text(CONFIG.partition("[[share]]")[0])
    with served_by(home) as served:
        assert served.lines == [f"work\t{owner}"]
        capstore("ls", first).failed("denied")


def test_what_is_typed_stands_before_the_file_and_is_relative_to_where_it_is(
    home: Path, folder: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="capstore-") as name:
        here = Path(name)
        arguments = ["--config", home / "capstore.toml", "--state", "s", "--uri-file", "u"]
        with serving(*arguments, "--listen", "unix:l", "--log-level", "error", cwd=here) as served:
            assert served.uri("work").startswith(f"capnp://insecure@{here}/l/")
            assert sorted(path.name for path in here.iterdir()) == ["l", "s", "u"]
            assert "INFO" not in served.log
            assert served.stop() == 0
        assert sorted(path.name for path in home.iterdir()) == [
            "base.tar",
            "capstore.toml",
            "up.wf1",
        ]


def test_a_check_opens_nothing(home: Path) -> None:
    before = sorted(home.iterdir())
    file = home / "capstore.toml"
    assert capstore("serve", "--config", file, "--check").ok() == f"{file}: ok\n"
    assert (
        capstore("serve", "--config", file.name, "--check", cwd=home).ok() == f"{file.name}: ok\n"
    )
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_problems_are_a_line_each_and_wrong_usage(folder: Path, more: list[str]) -> None:
    (folder / "c.toml").write_text("volumes.a = 'tape:\\u001b'\nstate = 1\nb = \"\"\n'\tc' = 1\n")
    ran = capstore("serve", "--config", "c.toml", *more, cwd=folder)
    assert (ran.code, ran.raw) == (2, b"")
    lines = ran.error.splitlines()
    assert [re.sub(r": .*", "", line.removeprefix("capstore: ")) for line in lines] == [
        "c.toml:1",
        "c.toml:2",
        "c.toml:3",
        "c.toml:4",
    ]
    assert all(line.isprintable() for line in lines)
    assert list(folder.iterdir()) == [folder / "c.toml"]


def test_what_only_opening_finds_is_a_failure(folder: Path) -> None:
    (folder / "c.toml").write_text("\nvolumes.a = 'tar:missing'\n")
    ran = capstore("serve", "--config", "c.toml", cwd=folder)
    assert ran.code == 1
    assert ran.error.startswith("capstore: notFound: c.toml:2: volumes.a: ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["memory:", "--config", "c.toml"], "Invalid value: what is served is said by --config or"),
        (["--check"], "Invalid value: --check is of a file: --config FILE"),
        (
            ["--config", "none.toml"],
            "Invalid value for '--config': file 'none.toml' does not exist",
        ),
        (["--config", "."], "Invalid value for '--config': file '.' is a directory"),
    ],
)
def test_what_was_typed_wrong(folder: Path, arguments: list[str], error: str) -> None:
    (folder / "c.toml").write_text(CONFIG)
    ran = capstore("serve", *arguments, cwd=folder)
    assert (ran.code, ran.raw) == (2, b"")
    assert ran.error.startswith(f"capstore: {error}")


# The page -----------------------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_shows_the_example_and_all_its_examples_are_valid() -> None:
    example, *others, wrong = blocks("toml")
    assert example == EXAMPLE
    for text in (example, *others):
        assert problems(text) == []
    assert blocks("text") == [
        "".join(f"capstore: capstore.toml:{each}\n" for each in problems(wrong))
    ]


@pytest.mark.anyio
async def test_what_the_example_describes_can_be_opened(base: Path) -> None:
    config = loaded(EXAMPLE)
    tops = loaded(EXAMPLE.replace("[serve]\nvolumes", "[serve]\n#")).served
    assert sorted(config.served) == sorted(tops)
    async with AsyncExitStack() as opening:
        served = await open_served(config, base / "cache", opening)
        assert list(served) == ["tree", "bob", "objects"]


def test_the_page_names_every_key_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()
    finish = Table.finish

    def noting(table: Table) -> None:
        names = [part for part in table.path if isinstance(part, str)]
        if names[:1] == ["volumes"]:
            names[1:] = ["NAME"]
        asked.update(dotted((*names, key)) for key in table._asked)
        finish(table)

    monkeypatch.setattr(Table, "finish", noting)
    text = "lower = 'readonly'\nvolumes.t = { mounts = { '/' = 'tar:t' } }\n"
    problems(text + "volumes.o = { overlay = ['memory:', 't'] }\n[[share]]")
    named = set(re.findall(r"^\| `([\w.-]+)` \|", PAGE, re.MULTILINE))
    assert named == asked
