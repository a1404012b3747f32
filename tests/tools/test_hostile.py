"""Copying from a service that wants out of the directory that was named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from capstore.backers.node import Entry, NodeKind, Page, Stat
from capstore.schema.errors import Corrupt, Revoked
from capstore.tools import resolve
from capstore.tools.console import printable, redacted
from capstore.tools.copying import DEPTH_MAX, Copier, Original, Place
from capstore.tools.local_tree import LocalTree, local_directory
from capstore.tools.progress import Meter
from capstore.tools.remote_tree import listed
from capstore.tools.transfers import _copy_from
from capstore.tools.trees import Content

Path_ = tuple[str, ...]


def entry(name: str, kind: NodeKind = NodeKind.FILE, target: str | None = None) -> Entry:
    return Entry(name, Stat(kind, 0, 1, 1), target)


class Hostile:
    """A source that lists whatever it was told to; every file has the same content."""

    def __init__(self, listings: Mapping[Path_, Sequence[Entry]]) -> None:
        self._listings = listings

    def sub(self, directory: Path_, name: str) -> Path_:
        return (*directory, name)

    async def pages(self, directory: Path_) -> AsyncGenerator[Sequence[Entry], None]:
        yield self._listings.get(directory, ())

    async def content(self, directory: Path_, entry: Entry) -> Content:
        if entry.name == "revoked":
            raise Revoked("the capability was revoked")
        return Content(b"evil")


def copy(listings: Mapping[Path_, Sequence[Entry]], dest: Path) -> Meter:
    meter = Meter()

    async def main() -> None:
        with local_directory(dest) as directory:
            copier = Copier(Hostile(listings), LocalTree(), meter)
            original: Original[Path_] = Original((), entry("", NodeKind.DIRECTORY), ())
            await copier.copy(original, Place(directory), recursive=True)

    asyncio.run(main())
    return meter


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    made = tmp_path / "dest"
    made.mkdir()
    return made


@pytest.mark.parametrize("kind", [NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK])
@pytest.mark.parametrize("name", ["../out", "..", ".", "", "/tmp/out", "a/b", "a\0b", "x" * 256])
def test_what_is_no_name_is_refused(
    name: str, kind: NodeKind, dest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "/" if kind is NodeKind.SYMLINK else None
    meter = copy({(): [entry(name, kind, target), entry("good")]}, dest)
    assert meter.failures == 1
    assert "capstore: invalidName: " in capsys.readouterr().err
    assert [path.name for path in dest.parent.rglob("*")] == ["dest", "good"]


@pytest.mark.parametrize("absolute", [True, False])
def test_nothing_is_written_through_a_link_of_the_service(
    absolute: bool, dest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = dest.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"untouched")
    target = str(outside) if absolute else "../outside"
    # The same name twice: a link out, then a directory, and a file below it.
    meter = copy(
        {
            (): [
                entry("trap", NodeKind.SYMLINK, target),
                entry("file", NodeKind.SYMLINK, f"{target}/file"),
            ],
        },
        dest,
    )
    assert meter.failures == 0
    meter = copy(
        {
            (): [entry("trap", NodeKind.DIRECTORY), entry("file")],
            ("trap",): [entry("file"), entry("more", NodeKind.DIRECTORY)],
        },
        dest,
    )
    assert meter.failures == 1
    assert 'notDirectory: local "' in capsys.readouterr().err
    assert (outside / "file").read_bytes() == b"untouched"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (dest / "trap").is_symlink()
    assert (dest / "file").read_bytes() == b"evil"
    assert not (dest / "file").is_symlink()


class Lying:
    """A directory that answers every lookup with another entry than was asked for."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = list(entries)

    def pipelined(self, path: Sequence[str]) -> Lying:
        return self

    async def lookup(self, name: str) -> Entry:
        return self._entries.pop(0)

    async def read_file(self, name: str) -> tuple[bytes, bool, None]:
        return b"evil", True, None


@pytest.mark.parametrize(
    "answers",
    [
        [entry(".bashrc")],
        [entry("report.txt", NodeKind.SYMLINK, ".bashrc"), entry(".bashrc")],
    ],
)
def test_a_copy_is_named_by_what_was_typed(
    answers: Sequence[Entry], dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def target(*_: object, **__: object) -> SimpleNamespace:
        place = SimpleNamespace(is_root=False, parent=Lying([]), path=(".bashrc",))
        return SimpleNamespace(**vars(place), entry=answers[-1])

    monkeypatch.setattr(resolve, "resolve", target)
    (dest / ".bashrc").write_bytes(b"mine")

    async def main() -> None:
        with local_directory(dest) as directory:
            service = SimpleNamespace(top=Lying(answers), path=("report.txt",))
            place = Place(directory)
            await _copy_from(service, LocalTree(), place, Meter(), recursive=False)  # type: ignore[arg-type]

    asyncio.run(main())
    assert (dest / ".bashrc").read_bytes() == b"mine"
    assert (dest / "report.txt").read_bytes() == b"evil"


def test_a_tree_without_end_is_left(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Endless(Hostile):
        async def pages(self, directory: Path_) -> AsyncGenerator[Sequence[Entry], None]:
            yield [entry("d", NodeKind.DIRECTORY)]

    meter = Meter()

    async def main() -> None:
        with local_directory(dest) as directory:
            original: Original[Path_] = Original((), entry("", NodeKind.DIRECTORY), ())
            copier = Copier(Endless({}), LocalTree(), meter)
            await copier.copy(original, Place(directory), recursive=True)

    asyncio.run(main())
    assert meter.failures == 1
    assert f"more than {DEPTH_MAX} levels deep" in capsys.readouterr().err


def test_a_revocation_ends_the_copy(dest: Path) -> None:
    with pytest.raises(Revoked):
        copy({(): [entry("revoked"), entry("good")]}, dest)
    assert not [path for path in dest.iterdir() if path.name != "good"]


def test_a_listing_without_end_is_refused() -> None:
    class Endless:
        async def list(self, after: str = "") -> Page:
            return Page([entry("a"), entry("b")], more=True)

    async def main() -> None:
        async for _ in listed(Endless()):  # type: ignore[arg-type]
            pass

    with pytest.raises(Corrupt):
        asyncio.run(main())


def test_nothing_does_anything_to_a_terminal() -> None:
    for text in (
        "\x1b[31m",
        "\x9b31m",
        "a\rb",
        "\u202egnp",
        "\x7f",
        "\ud800",
        "\ufeff",
        "a\u2028b",
    ):
        assert printable(text).isascii()
        assert printable(text).isprintable()
    assert printable("plain ünï [red]") == "plain ünï [red]"
    assert printable(printable("a\nb")) == "a\\nb"


def test_tokens_are_cut() -> None:
    token = "abcdef" + "x" * 37
    assert redacted(f"capnp://insecure@/s/{token}/-/a") == "capnp://insecure@/s/abcdef.../-/a"
    assert redacted("x" * 44) == "x" * 44
