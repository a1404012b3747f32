"""Copying from a service that wants out of the directory that was named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import pytest

from capstore.backers.node import Entry, NodeKind, Page, Stat
from capstore.schema.errors import Corrupt, Revoked
from capstore.tools.console import printable, redacted
from capstore.tools.copying import Copier, Original, Place
from capstore.tools.local_tree import LocalTree, local_directory
from capstore.tools.progress import Meter
from capstore.tools.remote_tree import listed
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
    assert 'notDirectory: "/trap"' in capsys.readouterr().err
    assert (outside / "file").read_bytes() == b"untouched"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (dest / "trap").is_symlink()
    assert (dest / "file").read_bytes() == b"evil"
    assert not (dest / "file").is_symlink()


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
