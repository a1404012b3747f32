"""Upper layers checked against lower ones: what is found, and what is mended."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.layer import Found, FoundPage, Layer, Mark, PlainLayer
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.named import NamedUpper
from capstore.backers.named_notes import HIDDEN
from capstore.backers.named_view import NamedView
from capstore.backers.node import DirectoryNode, Node, Stat, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_verify import verify_layers, verify_overlay
from capstore.schema.errors import Corrupt, ReadOnly
from tests.backers.overlays import UPPERS, Hard, file, folder, stacked
from tests.backers.verifying import BELOW, LIKE, WRITE, found, layers, mended, said
from tests.contract.harness import populate
from tests.contract.wf1 import FOLDER

pytestmark = pytest.mark.anyio

# One file with three names.
SHARED = folder(
    {
        "a": folder({"x": file(b"three")}),
        "b": Hard(("a", "x")),
        "c": folder({"y": Hard(("a", "x"))}),
    }
)
NATIVE = ("memory", "wf1")


# Whiteouts and marks ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UPPERS)
async def test_a_whiteout_is_found_only_where_nothing_is_below(kind: str) -> None:
    async with layers(kind) as (upper, lower):
        for name in ("f", "gone", "g", "z"):
            await upper.cover(upper.root, name)
        inside = await upper.copy_directory(upper.root, "d", LIKE, Mark())
        await upper.cover(inside, "f")
        await upper.cover(inside, "missing")
        words = "a whiteout, and no layer below has the name"
        assert await mended(upper, lower) == [
            ("/d/missing", words, True),
            ("/gone", words, True),
            ("/z", words, True),
        ]
        for name, there in (("f", True), ("g", True), ("gone", False), ("z", False)):
            assert (await upper.find(upper.root, name) is not None) == there


@pytest.mark.parametrize("kind", UPPERS)
async def test_a_whiteout_below_is_nothing_below(kind: str) -> None:
    async with layers(kind) as (upper, lower):
        between = await open_upper(await MemoryVolume.open())
        await between.cover(between.root, "f")
        await upper.cover(upper.root, "f")
        await upper.cover(upper.root, "g")
        assert [one[0] for one in await mended(upper, between, lower)] == ["/f"]


@pytest.mark.parametrize("kind", UPPERS)
async def test_an_opaque_directory_is_found_only_where_nothing_is_below(kind: str) -> None:
    async with layers(kind) as (upper, lower):
        for name in ("d", "f", "new"):
            directory = await upper.mkdir(upper.root, name, opaque=True)
            await (await upper.create(directory, "x")).close()
        words = "it is opaque, and no layer below has the name"
        assert await mended(upper, lower) == [("/new", words, True)]
        kept = await upper.find(upper.root, "d")
        assert kept is not None
        assert kept.mark.opaque
        plain = await upper.find(upper.root, "new")
        assert plain is not None
        assert plain.mark == Mark()


@pytest.mark.parametrize("kind", UPPERS)
async def test_other_kinds_above_and_below_are_no_fault(kind: str) -> None:
    async with layers(kind) as (upper, lower):
        await (await upper.create(upper.root, "d")).close()
        await upper.mkdir(upper.root, "f", opaque=False)
        await upper.symlink(upper.root, "g", "d")
        assert await mended(upper, lower) == []


@pytest.mark.parametrize("kind", NATIVE)
async def test_redirects(kind: str) -> None:
    """Each that leads to no directory is told, and left as it is."""
    async with layers(kind) as (upper, lower):
        redirects = {
            "deep": "d/in",
            "file": "d/f",
            "nowhere": "d/missing",
            "further": "no/such/place",
            "through a file": "f/x",
        }
        for name, redirect in redirects.items():
            directory = await upper.mkdir(upper.root, name, opaque=False)
            await upper.set_mark(directory, Mark(redirect=redirect))
            await upper.cover(directory, "deep")
        hiding = "a whiteout, and no layer below has the name"
        assert await mended(upper, lower) == [
            ("/file", 'its redirect "d/f" leads to something that is no directory', False),
            ("/file/deep", hiding, True),
            ("/further", 'its redirect "no/such/place" leads nowhere', False),
            ("/further/deep", hiding, True),
            ("/nowhere", 'its redirect "d/missing" leads nowhere', False),
            ("/nowhere/deep", hiding, True),
            ("/through a file", 'its redirect "f/x" leads nowhere', False),
            ("/through a file/deep", hiding, True),
        ]
        still = await upper.find(upper.root, "nowhere")
        assert still is not None
        assert still.mark.redirect == "d/missing"


@pytest.mark.parametrize("kind", NATIVE)
async def test_a_redirect_of_what_is_opaque(kind: str) -> None:
    async with layers(kind) as (upper, lower):
        for name in ("d", "new"):
            directory = await upper.mkdir(upper.root, name, opaque=False)
            await upper.set_mark(directory, Mark(opaque=True, redirect="d/in"))
        both = "it is opaque and has a redirect, which means nothing then"
        assert await mended(upper, lower) == [
            ("/d", both, True),
            ("/new", both, True),
            ("/new", "it is opaque, and no layer below has the name", True),
        ]
        for name, mark in (("d", Mark(opaque=True)), ("new", Mark())):
            entry = await upper.find(upper.root, name)
            assert entry is not None
            assert entry.mark == mark


class Forged(Layer):
    """A layer with other marks than it could have."""

    def __init__(self, inner: Layer, marks: dict[str, Mark]) -> None:
        self.inner = inner
        self.marks = marks

    @property
    def volume(self) -> Volume:
        return self.inner.volume

    @property
    def root(self) -> DirectoryNode:
        return self.inner.root

    def _forged(self, name: str, found: Found) -> Found:
        return found._replace(mark=self.marks.get(name, found.mark))

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        found = await self.inner.find(directory, name)
        return None if found is None else self._forged(name, found)

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        page = await self.inner.page(directory, after, limit)
        return page._replace(found=[(name, self._forged(name, one)) for name, one in page.found])

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        return await self.inner.about(node)


@pytest.mark.parametrize("redirect", ["..", "d/../d", "/d", "d/", ".", "a\0", "x" * 300])
async def test_a_redirect_that_is_no_path(redirect: str) -> None:
    async with layers("memory") as (upper, lower):
        await upper.mkdir(upper.root, "bad", opaque=False)
        forged = Forged(upper, {"bad": Mark(redirect=redirect)})
        for below in (lower, PlainLayer(lower.volume)):
            assert said(await found(forged, below)) == [
                ("/bad", f'its redirect "{redirect}" is no path', False)
            ]


# Copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UPPERS)
async def test_two_copies_of_one_node(kind: str) -> None:
    """Of directories the later one is no copy any more; a file cannot be told so."""
    async with layers(kind) as (upper, lower):
        for name in ("a", "b"):
            await upper.copy_directory(upper.root, name, LIKE, Mark(origin=77))
        await upper.copy_symlink(upper.root, "c", "x", LIKE, Mark(origin=78))
        copy = await upper.unnamed()
        await upper.name_file(copy, upper.root, "e", LIKE, Mark(origin=78))
        await copy.close()
        await upper.link(upper.root, "e", upper.root, "z")
        assert await mended(upper, lower) == [
            ("/b", "it is a copy of the same node as /a is", True),
            ("/e", "it is a copy of the same node as /c is", False),
            ("/z", "it is a copy of the same node as /c is", False),
        ]


@pytest.mark.parametrize("kind", UPPERS)
async def test_a_copy_of_another_directory(kind: str) -> None:
    """As after the lower layer was made anew: ids that mean other nodes now are put right."""
    async with layers(kind) as (upper, lower):
        overlay = await OverlayVolume.over(upper, [lower])
        d = (await overlay.root.lookup("d")).stat.node_id
        inside = await (await overlay.root.sub("d")).sub("in")
        await (await inside.create("new")).close()
        assert await mended(upper, lower) == []
        await upper.set_mark(await upper.root.sub("d"), Mark(origin=d + 256))
        words = "it is a copy of another directory than the one below"
        assert await mended(upper, lower) == [("/d", words, True)]
        entry = await upper.find(upper.root, "d")
        assert entry is not None
        assert entry.mark == Mark(origin=d)
        # A layer on top of the one that it was copied from is no fault.
        top = await MemoryVolume.open()
        await populate(top.root, {"d": {"x": b""}})
        assert await mended(upper, open_layer(top), lower) == []


@pytest.mark.parametrize("kind", UPPERS)
async def test_names_below_are_counted(kind: str) -> None:
    """Over the layer that it was made over it is right, and over another one it is not."""
    async with stacked(f"{kind} over tar", SHARED) as stack:
        volume = await stack.open()
        assert isinstance(volume, OverlayVolume)
        a = await volume.root.sub("a")
        changed = await a.open("x", WRITE)
        await changed.write(0, b"changed")
        await changed.close()
        upper, lower = volume.layers
        assert said(await found(upper, lower)) == []
        other = await MemoryVolume.open()
        await populate(other.root, {"a": {"x": b"three"}, "c": {}})
        words = "2 names below are said to be its own, there are 0"
        assert said(await found(upper, open_layer(other)))[1:] == [("/a/x", words, False)]
        await a.remove("x")
        assert said(await found(upper, lower)) == []
        (*_, lost) = await found(upper, PlainLayer(other))
        assert lost.where.endswith("without a name")
        assert lost.message == words
        del a, changed
        await volume.close()


# What cannot be read ------------------------------------------------------------------------------


class Damaged(Forged):
    """A layer in which some names cannot be found, and some directories not be listed."""

    def __init__(self, inner: Layer, names: set[str], listings: set[int] = frozenset()) -> None:
        super().__init__(inner, {})
        self.names = names
        self.listings = listings

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        if name in self.names:
            raise Corrupt(f"the entry {name} at offset 17")
        return await super().find(directory, name)

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        if (await directory.stat()).node_id in self.listings:
            raise Corrupt("a listing")
        return await super().page(directory, after, limit)


async def test_what_cannot_be_read_below_is_told_and_nothing_mended_by_it() -> None:
    async with layers("memory") as (upper, lower):
        await upper.cover(upper.root, "bad")
        await upper.mkdir(upper.root, "d", opaque=False)
        await upper.cover(upper.root, "x")
        damaged = Damaged(lower, {"bad", "d"})
        expected = [
            ("/bad", "the entry bad at offset 17", False),
            ("/d", "the entry d at offset 17", False),
            ("/x", "a whiteout, and no layer below has the name", True),
        ]
        assert said(await found(upper, damaged)) == expected
        assert said(await found(upper, damaged, repair=True)) == expected
        assert said(await found(upper, damaged)) == expected[:2]
        assert await upper.find(upper.root, "bad") is not None


async def test_what_cannot_be_listed_above_is_told() -> None:
    async with layers("memory") as (upper, lower):
        directory = await upper.mkdir(upper.root, "new", opaque=False)
        await upper.cover(directory, "x")
        await upper.cover(upper.root, "z")
        damaged = Damaged(upper, set(), {(await directory.stat()).node_id})
        assert said(await found(damaged, lower)) == [
            ("/new", "a listing", False),
            ("/z", "a whiteout, and no layer below has the name", True),
        ]


class Endless(Forged):
    """A layer whose directory `loop` is the root, or whose listing does not end."""

    def __init__(self, inner: Layer, *, listing: bool) -> None:
        super().__init__(inner, {})
        self.listing = listing

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        page = await super().page(directory, "" if self.listing else after, limit)
        return page._replace(more=page.more or self.listing)


async def test_a_listing_without_end_ends() -> None:
    async with layers("memory") as (upper, lower):
        for name in ("a", "b"):
            await (await upper.create(upper.root, name)).close()
        (finding,) = await found(Endless(upper, listing=True), lower)
        assert said([finding]) == [("/", "its listing does not end", False)]


class Looped(Forged):
    """A layer in which `loop` is the directory that it is in, under one more id each time or the
    same."""

    def __init__(self, inner: Layer, *, same_id: bool) -> None:
        super().__init__(inner, {})
        self.same_id = same_id
        self.ids = 1000

    def _forged(self, name: str, found: Found) -> Found:
        if found.entry is None or name != "loop":
            return found
        self.ids += not self.same_id
        stat = found.entry.stat._replace(node_id=self.ids)
        return found._replace(entry=found.entry._replace(stat=stat))


class Loop(DirectoryNode):
    """A directory with itself in it."""

    def __init__(self, inner: DirectoryNode) -> None:
        self.inner = inner

    async def sub(self, name: str) -> DirectoryNode:
        return self


Loop.__abstractmethods__ = frozenset()


class LoopedLayer(Looped):
    @property
    def root(self) -> DirectoryNode:
        return Loop(self.inner.root)

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        return await super().find(self.inner.root, name)

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        return await super().page(self.inner.root, after, limit)

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        return await super().about(self.inner.root)


@pytest.mark.parametrize("same_id", [True, False])
async def test_a_directory_in_itself_is_told(*, same_id: bool) -> None:
    async with layers("memory") as (upper, lower):
        await upper.mkdir(upper.root, "loop", opaque=False)
        findings = await found(LoopedLayer(upper, same_id=same_id), lower)
        (finding,) = findings
        assert not finding.repairable
        expected = "at another place" if same_id else "levels deep"
        assert expected in finding.message


# Where marks are names ----------------------------------------------------------------------------


@asynccontextmanager
async def host(*, lower: dict[str, object] | None = None) -> AsyncIterator[tuple[Path, Layer]]:
    """A folder to be an upper layer, and a layer for below."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as place:
        below = await MemoryVolume.open()
        await populate(below.root, BELOW)
        yield Path(place), open_layer(below)


async def named(place: Path) -> NamedUpper:
    return await NamedUpper.open(await HostVolume.open(str(place)))


async def viewed(place: Path, lower: Layer) -> list[tuple[str, str, bool]]:
    """What is found when the folder is only read."""
    before = sorted((str(one), one.lstat().st_mtime_ns) for one in place.rglob("*"))
    volume = await HostVolume.open(str(place), read_only=True)
    findings = await found(await NamedView.open(volume), lower)
    await volume.close()
    after = sorted((str(one), one.lstat().st_mtime_ns) for one in place.rglob("*"))
    assert before == after
    return said(findings)


async def test_a_folder_that_never_was_a_layer_has_no_faults() -> None:
    async with host() as (place, lower):
        (place / "f").write_bytes(b"x")
        assert await viewed(place, lower) == []
        (place / HIDDEN).mkdir()
        assert await viewed(place, lower) == []
        (place / HIDDEN / "making").write_bytes(b"no directory")
        assert await viewed(place, lower) == []


async def test_an_interrupted_copy_is_found_and_removed() -> None:
    async with host() as (place, lower):
        upper = await named(place)
        copy = await upper.unnamed()
        await copy.write(0, b"half of it")
        making = place / HIDDEN / "making"
        (token,) = making.iterdir()
        # As a killed process leaves it.
        content = token.read_bytes()
        await copy.close()
        await upper.volume.close()
        token.write_bytes(content)
        (making / "more").mkdir()
        (making / "more" / "deep").mkdir()
        words = "it was being made when the overlay stopped"
        expected = sorted(
            (f"/{HIDDEN}/making/{name}", words, True) for name in ("more", token.name)
        )
        assert await viewed(place, lower) == expected
        # Opened to be written, it is undone.
        upper = await named(place)
        assert await found(upper, lower, repair=True) == []
        assert list(making.iterdir()) == []
        (making / "left").mkdir()
        assert said(await found(upper, lower, repair=True)) == [
            (f"/{HIDDEN}/making/left", words, True)
        ]
        assert list(making.iterdir()) == []
        await upper.volume.close()


async def test_a_note_of_a_node_that_is_gone_is_found_and_removed() -> None:
    async with host() as (place, lower):
        upper = await named(place)
        await upper.copy_directory(upper.root, "copy", LIKE, Mark(origin=77))
        await upper.volume.close()
        ids = place / HIDDEN / "ids"
        good = sorted(one.name for one in ids.iterdir())
        assert await viewed(place, lower) == []
        for name in ("dead-beef", "ffffffffffffffff-1", "no note"):
            (ids / name).touch()
        words = "a note of a node that is gone"
        expected = sorted(
            (f"/{HIDDEN}/ids/{name}", words, True) for name in ("dead-beef", "ffffffffffffffff-1")
        )
        assert await viewed(place, lower) == expected
        upper = await named(place)
        assert said(await found(upper, lower, repair=True)) == expected
        assert await found(upper, lower) == []
        await upper.volume.close()
        assert sorted(one.name for one in ids.iterdir()) == sorted([*good, "no note"])
        again = await named(place)
        entry = await again.find(again.root, "copy")
        assert entry is not None
        assert entry.mark.origin == 77


async def test_a_name_that_was_being_adopted_is_found_and_settled() -> None:
    async with stacked("dir over tar", SHARED) as stack:
        volume = await stack.open()
        changed = await (await volume.root.sub("a")).open("x", WRITE)
        await changed.write(0, b"changed")
        await changed.close()
        await volume.close()
        place = stack.place / "upper"
        (link,) = (place / HIDDEN / "links").iterdir()
        # The copy has its name, its note, and the one that is being given.
        name = f"{link.name}-2"
        link.rename(link.with_name(name))
        (lower,) = await stack.open_lowers()
        assert await viewed(place, open_layer(lower)) == [
            (
                f"/{HIDDEN}/links/{name}",
                "a name was being given to it when the overlay stopped",
                True,
            )
        ]
        await lower.close()
        await (await named(place)).volume.close()
        assert [one.name for one in (place / HIDDEN / "links").iterdir()] == [link.name]


# The whole ----------------------------------------------------------------------------------------


async def test_who_may_repair() -> None:
    async with layers("memory") as (upper, lower):
        with pytest.raises(ReadOnly):
            await found(lower, upper, repair=True)
        union = await OverlayVolume.over(None, [upper, lower])
        await upper.cover(upper.root, "gone")
        assert len([one async for one in verify_overlay(union, repair=False)]) == 1
        with pytest.raises(ReadOnly):
            assert [one async for one in verify_overlay(union, repair=True)]


async def test_each_entry_is_noticed() -> None:
    async with layers("memory") as (upper, lower):
        await populate(upper.root, {"a": {"b": b""}, "c": b""})
        calls: list[None] = []
        looked = verify_layers(upper, [lower], repair=False, notice=lambda: calls.append(None))
        assert [one async for one in looked] == []
        assert len(calls) == 3
