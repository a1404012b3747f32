"""What each upper layer of an overlay does for users: marks, listings, and changes of names."""

from __future__ import annotations

import pytest

from capstore.backers.layer import NO_MARK, WHITEOUT, Found, Mark, Upper
from capstore.backers.node import (
    DirectoryNode,
    Expect,
    NodeKind,
    OpenFlags,
)
from capstore.schema.errors import NotFound, Unsupported
from tests.backers.upperwork import (
    OPAQUE,
    ORIGIN,
    content,
    dump,
    listed,
    mark_of,
    put,
    stat_of,
)
from tests.contract.uppers import UpperHarness

pytestmark = pytest.mark.anyio


# What users do -----------------------------------------------------------------------------------


async def test_nothing_is_found_where_nothing_is(upper: Upper, root: DirectoryNode) -> None:
    assert await upper.find(root, "f") is None
    assert (await upper.page(root, "", 10)) == ([], False)
    assert (await upper.about(root))[1] == NO_MARK
    assert await upper.linked(ORIGIN) is None
    with pytest.raises(NotFound):
        await upper.open_linked(ORIGIN, OpenFlags.READ)


async def test_made_entries_are_found_as_they_are(upper: Upper, root: DirectoryNode) -> None:
    await put(upper, root, "f")
    await upper.mkdir(root, "d", opaque=False)
    found = await upper.find(root, "f")
    assert found == Found(await root.lookup("f"), NO_MARK)
    assert await content(root, "f") == b"data"
    assert await mark_of(upper, root, "d") == NO_MARK
    assert list(await listed(upper, root)) == ["d", "f"]


async def test_links_are_made(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    if not harness.links:
        with pytest.raises(Unsupported):
            await upper.symlink(root, "l", "f")
        return
    await upper.symlink(root, "l", "f")
    assert (await root.lookup("l")).target == "f"
    await put(upper, root, "f")
    inner = await upper.mkdir(root, "d", opaque=False)
    await upper.link(root, "f", inner, "g")
    stat = await stat_of(upper, inner, "g")
    assert stat.link_count == 2
    assert stat.node_id == (await stat_of(upper, root, "f")).node_id


async def test_an_executable_file_is_made(harness: UpperHarness) -> None:
    if harness.attributes:
        await harness.upper.create(harness.upper.root, "f", executable=True)
        assert (await stat_of(harness.upper, harness.upper.root, "f")).executable


async def test_a_removed_name_is_gone_or_covered(upper: Upper, root: DirectoryNode) -> None:
    for name in ("a", "b"):
        await put(upper, root, name)
        await upper.mkdir(root, name + " directory", opaque=False)
    await upper.remove(root, "a", cover=False)
    await upper.remove(root, "a directory", cover=False)
    await upper.remove(root, "b", cover=True)
    await upper.remove(root, "b directory", cover=True)
    assert await upper.find(root, "a") is None
    assert await upper.find(root, "b") == WHITEOUT
    assert await listed(upper, root) == {"b": WHITEOUT, "b directory": WHITEOUT}
    with pytest.raises(NotFound):
        await upper.remove(root, "a", cover=False)


async def test_what_is_below_is_covered(upper: Upper, root: DirectoryNode) -> None:
    await upper.cover(root, "f")
    assert await upper.find(root, "f") == WHITEOUT
    assert (await root.stat()).kind is NodeKind.DIRECTORY
    with pytest.raises(NotFound):
        await root.lookup("f")


async def test_all_is_made_over_whiteouts(harness: UpperHarness) -> None:
    upper, root = harness.upper, harness.upper.root
    for name in ("f", "d", "l", "h"):
        await upper.cover(root, name)
    await put(upper, root, "f")
    await upper.mkdir(root, "d", opaque=True)
    assert await mark_of(upper, root, "f") == NO_MARK
    assert await mark_of(upper, root, "d") == OPAQUE
    if harness.links:
        await upper.symlink(root, "l", "t")
        await upper.link(root, "f", root, "h")
        assert WHITEOUT not in (await listed(upper, root)).values()
    # And what is removed then may be covered again, or not.
    await upper.remove(root, "f", cover=True)
    await upper.remove(root, "d", cover=False)
    assert await upper.find(root, "f") == WHITEOUT
    assert await upper.find(root, "d") is None


async def test_a_directory_is_opaque_as_it_is_made(upper: Upper, root: DirectoryNode) -> None:
    plain = await upper.mkdir(root, "plain", opaque=False)
    assert (await upper.about(plain))[1] == NO_MARK
    opaque = await upper.mkdir(root, "opaque", opaque=True)
    assert (await upper.about(opaque))[1] == OPAQUE
    assert await listed(upper, opaque) == {}
    marks = {name: found.mark for name, found in (await listed(upper, root)).items()}
    assert marks == {"plain": NO_MARK, "opaque": OPAQUE}
    # Over a whiteout it may be opaque in any case.
    await upper.cover(root, "covered")
    made = await upper.mkdir(root, "covered", opaque=False)
    assert (await upper.about(made))[1] == await mark_of(upper, root, "covered")


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("cover", [False, True])
async def test_a_directory_goes_with_its_whiteouts(
    upper: Upper, root: DirectoryNode, opaque: bool, cover: bool
) -> None:
    made = await upper.mkdir(root, "d", opaque=opaque)
    await upper.cover(made, "a")
    await upper.cover(made, "b")
    await upper.remove(root, "d", cover=cover)
    assert await upper.find(root, "d") == (WHITEOUT if cover else None)
    again = await upper.mkdir(root, "d", opaque=True)
    assert await listed(upper, again) == {}


async def test_a_removed_directory_takes_nothing(upper: Upper, root: DirectoryNode) -> None:
    made = await upper.mkdir(root, "d", opaque=True)
    await upper.remove(root, "d", cover=True)
    with pytest.raises(NotFound):
        await upper.create(made, "f")
    with pytest.raises(NotFound):
        await upper.cover(made, "f")
    assert await upper.find(made, "f") is None
    assert (await upper.page(made, "", 5)).found == []


async def test_a_whiteout_that_hides_nothing_goes(upper: Upper, root: DirectoryNode) -> None:
    for name in ("a", "f", "d"):
        await upper.cover(root, name)
    await put(upper, root, "f")
    await upper.mkdir(root, "d", opaque=True)
    await upper.uncover(root, "a")
    await upper.uncover(root, "f")
    await upper.uncover(root, "d")
    assert await upper.find(root, "a") is None
    marks = {name: found.mark for name, found in (await listed(upper, root)).items()}
    assert marks == {"f": NO_MARK, "d": OPAQUE}
    await upper.remove(root, "f", cover=False)
    assert await upper.find(root, "f") is None


NAMES = ("-", ".", ".a", ".wg", ".wh-", ".wh0", ".whx", ".wi", ".x", "a", "é", "\U0010ffff", "~")
LISTED = [name for name in NAMES if name != "."]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 1000])
async def test_pages_have_entries_and_whiteouts_in_order(
    upper: Upper, root: DirectoryNode, limit: int
) -> None:
    inner = await upper.mkdir(root, "d", opaque=False)
    expected: dict[str, Found] = {}
    for number, name in enumerate(LISTED):
        entry, covered = name + " f", name + " w"
        await put(upper, inner, entry)
        if number % 3:
            await upper.cover(inner, covered)
            expected[covered] = WHITEOUT
        if number % 2:
            await upper.cover(inner, name)
            await upper.mkdir(inner, name, opaque=True)
            expected[name] = Found(await inner.lookup(name), OPAQUE)
        expected[entry] = Found(await inner.lookup(entry), NO_MARK)
    found = await listed(upper, inner, limit)
    assert list(found) == sorted(expected)
    assert found == expected
    # From any place on, and what follows is told truly.
    for after in [*NAMES, *expected, ".wh.", ".wh.a", ".wh..wh.", ".wh/"]:
        rest = sorted(name for name in expected if name > after)
        page = await upper.page(inner, after, limit)
        assert [name for name, _ in page.found] == rest[:limit]
        assert page.more == (len(rest) > limit)


@pytest.mark.parametrize("limit", [1, 4, 1000])
async def test_pages_of_whiteouts_alone(upper: Upper, root: DirectoryNode, limit: int) -> None:
    names = sorted([*LISTED, *(f"{number:03}" for number in range(20))])
    for name in names:
        await upper.cover(root, name)
    assert await listed(upper, root, limit) == dict.fromkeys(names, WHITEOUT)


# Renaming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize("goal", ["nothing", "whiteout", "file", "the same directory"])
async def test_a_file_is_renamed(upper: Upper, root: DirectoryNode, cover: bool, goal: str) -> None:
    target = root if goal == "the same directory" else await upper.mkdir(root, "t", opaque=False)
    await put(upper, root, "f", b"moved")
    if goal == "whiteout":
        await upper.cover(target, "g")
    if goal == "file":
        await put(upper, target, "g", b"goes")
    await upper.rename(root, "f", target, "g", cover=cover)
    assert await upper.find(root, "f") == (WHITEOUT if cover else None)
    assert await content(target, "g") == b"moved"
    assert await mark_of(upper, target, "g") == NO_MARK


async def test_what_was_made_over_a_whiteout_moves_from_it(
    upper: Upper, root: DirectoryNode
) -> None:
    await upper.cover(root, "f")
    await put(upper, root, "f")
    await upper.rename(root, "f", root, "g", cover=True)
    assert await upper.find(root, "f") == WHITEOUT
    await upper.rename(root, "g", root, "f", cover=False)
    assert await upper.find(root, "g") is None
    await upper.rename(root, "f", root, "g", cover=False)
    assert await upper.find(root, "f") is None


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize("goal", ["nothing", "whiteout", "directory", "marks", "opaque marks"])
@pytest.mark.parametrize("mark", [None, OPAQUE, NO_MARK, Mark(origin=ORIGIN)])
@pytest.mark.parametrize("opaque", [False, True])
async def test_a_directory_is_renamed(
    harness: UpperHarness, cover: bool, goal: str, mark: Mark | None, opaque: bool
) -> None:
    upper, root = harness.upper, harness.upper.root
    if not harness.exchanges:
        # Nor does it rename directories.
        return
    source = await upper.mkdir(root, "d", opaque=opaque)
    await put(upper, source, "inner")
    await upper.cover(source, "gone")
    target = await upper.mkdir(root, "t", opaque=False)
    if goal == "whiteout":
        await upper.cover(target, "e")
    elif goal != "nothing":
        there = await upper.mkdir(target, "e", opaque=goal == "opaque marks")
        if goal != "directory":
            await upper.cover(there, "x")
            await upper.cover(there, "y")
    await upper.rename(root, "d", target, "e", cover=cover, mark=mark)
    expected = Mark(opaque=opaque) if mark is None else mark
    assert await upper.find(root, "d") == (WHITEOUT if cover else None)
    assert await mark_of(upper, target, "e") == expected
    # Who held it holds it.
    assert (await upper.about(source))[1] == expected
    moved = await target.sub("e")
    for held in (moved, source):
        assert list(await listed(upper, held)) == ["gone", "inner"]
    assert await content(moved, "inner") == b"data"


@pytest.mark.parametrize("kinds", ["file file", "dir file", "file dir", "dir dir", "opaque dir"])
async def test_names_are_exchanged(harness: UpperHarness, kinds: str) -> None:
    upper, root = harness.upper, harness.upper.root
    inner = await upper.mkdir(root, "inner", opaque=False)
    ends = [(root, "a"), (inner, "b")]
    kept: list[Mark] = []
    for (directory, name), kind in zip(ends, kinds.split(), strict=True):
        if kind == "file":
            await put(upper, directory, name, name.encode())
        else:
            made = await upper.mkdir(directory, name, opaque=kind == "opaque")
            await upper.cover(made, "covered " + name)
        kept.append(Mark(opaque=kind == "opaque"))
    before = [(await stat_of(upper, *end)).node_id for end in ends]
    for marks in ((None, None), (OPAQUE, None), (None, OPAQUE), (NO_MARK, NO_MARK)):
        exchange = upper.exchange(root, "a", marks[0], inner, "b", marks[1])
        if not harness.exchanges:
            with pytest.raises(Unsupported):
                await exchange
            assert [await mark_of(upper, *end) for end in ends] == kept
            return
        await exchange
        after = [(await stat_of(upper, *end)).node_id for end in ends]
        assert after == before[::-1]
        for number, (mark, end) in enumerate(zip(marks, reversed(ends), strict=True)):
            if mark is not None and (await stat_of(upper, *end)).kind is NodeKind.DIRECTORY:
                kept[number] = mark
        kept.reverse()
        assert [await mark_of(upper, *end) for end in ends] == kept
        before = after
    assert list(await listed(upper, root)) == ["a", "inner"]


async def test_what_is_covered_moves_and_is_exchanged(harness: UpperHarness) -> None:
    """An opaque directory takes its mark along, whatever is beside it."""
    upper, root = harness.upper, harness.upper.root
    if not harness.exchanges:
        return
    await upper.cover(root, "d")
    made = await upper.mkdir(root, "d", opaque=True)
    await put(upper, root, "f")
    await upper.rename(root, "d", root, "e", cover=True)
    assert await mark_of(upper, root, "e") == OPAQUE
    await upper.exchange(root, "e", None, root, "f", None)
    assert await mark_of(upper, root, "f") == (await upper.about(made))[1] == OPAQUE
    assert await mark_of(upper, root, "e") == NO_MARK
    assert await upper.find(root, "d") == WHITEOUT


@pytest.mark.parametrize("opaque", [False, True])
async def test_a_directory_does_not_move_into_itself(harness: UpperHarness, opaque: bool) -> None:
    upper, root = harness.upper, harness.upper.root
    made = await upper.mkdir(root, "d", opaque=opaque)
    await upper.mkdir(made, "e", opaque=False)
    before = await dump(upper, root)
    with pytest.raises(Exception, match=r"itself|renaming of directories"):
        await upper.rename(root, "d", made, "x", cover=True, mark=OPAQUE)
    assert await dump(upper, root) == before


async def test_redirects_are_kept_or_refused(upper: Upper, root: DirectoryNode) -> None:
    await upper.mkdir(root, "d", opaque=False)
    mark = Mark(redirect="a/d", origin=ORIGIN)
    if upper.redirects:
        await upper.rename(root, "d", root, "e", cover=True, mark=mark)
        assert await mark_of(upper, root, "e") == mark
        return
    before = await dump(upper, root)
    with pytest.raises(Unsupported):
        await upper.rename(root, "d", root, "e", cover=True, mark=mark)
    with pytest.raises(Unsupported):
        await upper.set_mark(await root.sub("d"), mark)
    assert await dump(upper, root) == before


async def test_removal_minds_what_is_there(upper: Upper, root: DirectoryNode) -> None:
    """The layer's own nodes and those of its volume are the same."""
    made = await upper.mkdir(root, "d", opaque=False)
    await put(upper, made, "f")
    with pytest.raises(Exception, match=r"has entries|not empty"):
        await root.remove("d", Expect.ANY)
    await upper.remove(made, "f", cover=False)
    await upper.remove(root, "d", cover=False)
    assert await listed(upper, root) == {}
