"""Memory volumes as layers: each operation for itself, and many against a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.layer import NO_MARK, WHITEOUT, Found, Mark
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_data import REDIRECT_BYTES_MAX, entry_cost
from capstore.backers.memory_layer import MemoryUpper
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    OpenFlags,
    RenameMode,
)
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    CrossVolume,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
    TooLarge,
)
from tests.backers.memory_layers import (
    COPY,
    LIKE,
    MOVED,
    OPAQUE,
    SHARED,
    WRITE,
    copied,
    dump,
    stat_of,
    there,
    upper_with,
    used,
)
from tests.contract.harness import Link, names_of, tree_of

pytestmark = pytest.mark.anyio

# Reading ------------------------------------------------------------------------------------------


async def test_what_is_found() -> None:
    upper = await upper_with({"d": {}, "f": b"abc", "l": Link("f")}, "gone")
    await upper.set_mark(await upper.root.sub("d"), MOVED)
    assert await upper.find(upper.root, "gone") is WHITEOUT
    assert await upper.find(upper.root, "missing") is None
    for name, mark in (("d", MOVED), ("f", NO_MARK), ("l", NO_MARK)):
        found = await upper.find(upper.root, name)
        assert found == Found(await upper.root.lookup(name), mark)
    assert upper.redirects
    assert upper.root is upper.root
    assert upper.holds(".wh.f")


async def test_pages_have_whiteouts_and_entries_in_order() -> None:
    upper = await upper_with({f"{at:02}": b"" for at in range(0, 30, 2)})
    for at in (*range(1, 30, 4), 27, 28 + 3):
        await upper.cover(upper.root, f"{at:02}")
    everything = await upper.page(upper.root, "", 1000)
    assert not everything.more
    names = [name for name, _ in everything.found]
    assert names == sorted(names)
    assert len(names) == 15 + 10
    assert [name for name, found in everything.found if found.entry] == await names_of(upper.root)
    for limit in (1, 2, 3, 24, 25):
        walked: list[tuple[str, Found]] = []
        more = True
        while more:
            page = await upper.page(upper.root, walked[-1][0] if walked else "", limit)
            assert 0 < len(page.found) <= limit
            walked.extend(page.found)
            more = page.more
        assert walked == everything.found
    assert (await upper.page(upper.root, "99", 10)).found == []
    assert len((await upper.page(upper.root, "", 0)).found) == 1


async def test_open_nodes_are_told_about() -> None:
    upper = await upper_with({"d": {}})
    file = await copied(upper, "f", b"abc", SHARED)
    stat, mark = await upper.about(file)
    assert mark == SHARED
    assert (stat.link_count, (await file.stat()).link_count) == (3, 1)
    assert stat == await stat_of(upper, "f")
    await file.close()
    assert await upper.about(file) == (stat, mark)
    d = await upper.root.sub("d")
    await upper.set_mark(d, OPAQUE)
    assert await upper.about(d) == (await d.stat(), OPAQUE)


async def test_nodes_of_other_volumes_are_refused() -> None:
    upper, other = await upper_with({"f": b""}), await upper_with({"f": b""})
    file = await other.root.open("f")
    for refused in (
        upper.find(other.root, "f"),
        upper.page(other.root, "", 1),
        upper.about(file),
        upper.cover(other.root, "x"),
        upper.name_file(file, upper.root, "x", LIKE, COPY),
        upper.rename(upper.root, "f", other.root, "g", cover=False),
        upper.link(upper.root, "f", other.root, "g"),
    ):
        with pytest.raises(CrossVolume):
            await refused


async def test_a_closed_volume_answers_closed() -> None:
    upper = await upper_with({"f": b""})
    await upper.volume.close()
    for refused in (
        upper.find(upper.root, "f"),
        upper.page(upper.root, "", 1),
        upper.linked(1),
        upper.unnamed(),
        upper.cover(upper.root, "x"),
        upper.volume.reset(),
    ):
        with pytest.raises(Closed):
            await refused


# Whiteouts and the node protocol ------------------------------------------------------------------


async def test_a_whiteout_is_no_entry() -> None:
    upper = await upper_with({"f": b""}, "x")
    root = upper.root
    assert await names_of(root) == ["f"]
    for refused in (
        root.lookup("x"),
        root.open("x"),
        root.sub("x"),
        root.remove("x"),
        root.rename("x", root, "y"),
        root.rename("f", root, "x", RenameMode.EXCHANGE),
        root.link("x", root, "y"),
        root.set_attributes(Attributes(modified=1), "x"),
    ):
        with pytest.raises(NotFound):
            await refused


MAKING: dict[str, Callable[[DirectoryNode], Awaitable[object]]] = {
    "create": lambda root: root.create("x"),
    "open": lambda root: root.open("x", WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE),
    "mkdir": lambda root: root.mkdir("x"),
    "symlink": lambda root: root.symlink("x", "f"),
    "link": lambda root: root.link("f", root, "x"),
    "rename": lambda root: root.rename("f", root, "x"),
    "rename, not replacing": lambda root: root.rename("f", root, "x", RenameMode.NO_REPLACE),
}


@pytest.mark.parametrize("make", MAKING.values(), ids=MAKING)
async def test_making_something_replaces_a_whiteout(
    make: Callable[[DirectoryNode], Awaitable[object]],
) -> None:
    upper, plain = await upper_with({"f": b""}, "x"), await upper_with({"f": b""})
    for each in (upper, plain):
        await make(each.root)
    assert (await there(upper, "x")).mark == NO_MARK
    assert await names_of(upper.root) == await names_of(plain.root)
    # What the whiteout cost pays for the entry.
    assert await used(upper) == await used(plain)
    await upper.root.remove("x")
    assert await upper.find(upper.root, "x") is None


async def test_a_directory_with_whiteouts_alone_is_empty() -> None:
    upper = await upper_with({"a": {}, "b": {}, "c": {}})
    before = await used(await upper_with())
    for name in "abc":
        await upper.cover(await upper.root.sub(name), "x")
    assert await tree_of(upper.root) == {"a": {}, "b": {}, "c": {}}
    await upper.root.rename("a", upper.root, "b")
    assert await upper.find(await upper.root.sub("b"), "x") is WHITEOUT
    await upper.root.remove("b")
    await upper.remove(upper.root, "c", cover=False)
    assert await used(upper) == before


async def test_endless_whiteouts_end() -> None:
    volume = await MemoryVolume.open(total_bytes_max=10_000)
    upper = MemoryUpper(volume)
    made = 0
    with pytest.raises(NoSpace):
        while made < 10_000:
            await upper.cover(upper.root, str(made))
            made += 1
    assert 100 < made < 200


# A user's changes ---------------------------------------------------------------------------------


async def test_making_where_nothing_or_a_whiteout_is() -> None:
    upper = await upper_with({"taken": b""}, "a", "c", "e", "g")
    root = upper.root
    for name in "ab":
        file = await upper.create(root, name, executable=name == "a")
        await file.write(0, b"x")
    for name, opaque in (("c", True), ("d", False)):
        made = await upper.mkdir(root, name, opaque=opaque)
        assert await upper.about(made) == (await made.stat(), Mark(opaque=opaque))
    for name in "ef":
        await upper.symlink(root, name, "target")
    for name in "gh":
        await upper.link(root, "taken", root, name)
    files = dict.fromkeys("ab", b"x") | dict.fromkeys(("g", "h", "taken"), b"")
    others = {"c": {}, "d": {}, "e": Link("target"), "f": Link("target")}
    assert await tree_of(root) == files | others
    assert [(await stat_of(upper, name)).executable for name in "ab"] == [True, False]
    assert (await stat_of(upper, "h")).link_count == 3
    for refused in (
        upper.create(root, "taken"),
        upper.mkdir(root, "taken", opaque=True),
        upper.symlink(root, "taken", "x"),
        upper.link(root, "a", root, "taken"),
    ):
        with pytest.raises(AlreadyExists):
            await refused


async def test_removing_and_covering() -> None:
    upper = await upper_with({"f": b"", "d": {}, "full": {"x": b""}})
    root = upper.root
    await upper.cover(await root.sub("d"), "x")
    version = (await root.stat()).version
    for name, cover in (("f", True), ("d", True)):
        await upper.remove(root, name, cover=cover)
        assert await upper.find(root, name) is WHITEOUT
        assert (await root.stat()).version > version
        version = (await root.stat()).version
    with pytest.raises(NotEmpty):
        await upper.remove(root, "full", cover=True)
    for name in ("f", "missing"):
        with pytest.raises(NotFound):
            await upper.remove(root, name, cover=True)
    for name in ("f", "full"):
        with pytest.raises(AlreadyExists):
            await upper.cover(root, name)
    assert (await root.stat()).version == version
    await upper.cover(root, "below")
    assert (await root.stat()).version > version
    await upper.remove(await root.sub("full"), "x", cover=False)
    assert await upper.find(await root.sub("full"), "x") is None
    with pytest.raises(InvalidName):
        await upper.cover(root, "a/b")


async def test_uncovering_is_silent() -> None:
    upper = await upper_with({"f": b"", "gone": {}}, "x", "y")
    root = upper.root
    gone = await root.sub("gone")
    await root.remove("gone")
    plain = await upper_with({"f": b""}, "x")
    before = await root.stat()
    await upper.page(root, "", 10)
    for name in ("y", "f", "missing"):
        await upper.uncover(root, name)
    assert await upper.find(root, "y") is None
    assert [name for name, _ in (await upper.page(root, "", 10)).found] == ["f", "x"]
    assert await root.stat() == before
    del gone
    assert await used(upper) == await used(plain)
    with pytest.raises(InvalidName):
        await upper.uncover(root, "..")


class Rename(NamedTuple):
    """A rename in `test_renaming`: of what, to where, and what is there then."""

    name: str
    new_name: str
    cover: bool
    mark: Mark | None
    expected: Mark


RENAMES = [
    Rename("f", "new", cover=False, mark=None, expected=NO_MARK),
    Rename("f", "white", cover=True, mark=None, expected=NO_MARK),
    Rename("f", "g", cover=True, mark=MOVED, expected=NO_MARK),
    Rename("d", "new", cover=True, mark=MOVED, expected=MOVED),
    Rename("d", "white", cover=True, mark=OPAQUE, expected=OPAQUE),
    Rename("d", "e", cover=False, mark=MOVED, expected=MOVED),
    Rename("m", "e", cover=True, mark=None, expected=MOVED),
    Rename("m", "new", cover=True, mark=NO_MARK, expected=NO_MARK),
    Rename("c", "g", cover=True, mark=None, expected=COPY),
]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("case", RENAMES)
async def test_renaming(case: Rename, elsewhere: bool) -> None:
    content = {"d": {"in": b""}, "e": {}, "f": b"f", "g": b"g", "m": {}, "sub": {"e": {}, "g": b""}}
    upper = await upper_with(content)
    root = upper.root
    target = await root.sub("sub") if elsewhere else root
    await upper.cover(target, "white")
    await upper.cover(await target.sub("e"), "inner")
    await upper.set_mark(await root.sub("m"), MOVED)
    await copied(upper, "c")
    before, versions = await stat_of(upper, case.name), (await root.stat(), await target.stat())
    await upper.rename(root, case.name, target, case.new_name, cover=case.cover, mark=case.mark)
    assert await upper.find(root, case.name) == (WHITEOUT if case.cover else None)
    found = await there(upper, case.new_name, target)
    assert found.entry is not None
    assert (found.entry.stat, found.mark) == (before, case.expected)
    for node, old in zip((root, target), versions, strict=True):
        assert (await node.stat()).version > old.version
    # Everything is paid for once.
    await upper.volume.reset()
    del target, node
    assert await used(upper) == (0, 1)


async def test_renames_that_are_refused() -> None:
    upper = await upper_with({"d": {"in": {}}, "f": b"", "full": {"x": b""}}, "white")
    root = upper.root
    inside = await root.sub("d")
    before = await dump(upper), await used(upper)
    long = Mark(redirect="/".join(["x" * 255] * 16))
    assert len(long.redirect) == REDIRECT_BYTES_MAX
    too_long = long._replace(redirect=long.redirect + "y")
    for name, target, new_name, mark, error in (
        ("d", root, "new", too_long, TooLarge),
        ("d", root, "new", Mark(redirect="/".join(["é" * 127] * 17)), TooLarge),
        ("d", root, "new", Mark(redirect="../x"), InvalidName),
        ("d", root, "new", Mark(origin=2**64), InvalidArgument),
        ("d", root, "new", Mark(origin=1, below=1), InvalidArgument),
        ("d", inside, "new", None, InvalidArgument),
        ("d", root, "full", None, NotEmpty),
        ("d", root, "f", None, NotDirectory),
        ("f", root, "full", None, IsDirectory),
        ("white", root, "new", None, NotFound),
        ("missing", root, "new", None, NotFound),
    ):
        with pytest.raises(error):
            await upper.rename(root, name, target, new_name, cover=True, mark=mark)
    assert (await dump(upper), await used(upper)) == before
    await upper.rename(root, "d", root, "new", cover=True, mark=long)
    assert (await there(upper, "new")).mark == long


async def test_renaming_onto_another_name_of_the_node_changes_nothing() -> None:
    upper = await upper_with({"f": b""})
    await upper.link(upper.root, "f", upper.root, "g")
    before = await dump(upper)
    for new_name in "fg":
        await upper.rename(upper.root, "f", upper.root, new_name, cover=True)
    assert await dump(upper) == before


async def test_exchanging() -> None:
    upper = await upper_with({"a": {"in": b""}, "f": b"f", "sub": {"b": {}}}, "white")
    root = upper.root
    sub = await root.sub("sub")
    a, b, f = await root.lookup("a"), await sub.lookup("b"), await root.lookup("f")
    await upper.exchange(root, "a", MOVED, sub, "b", OPAQUE)
    assert await upper.find(sub, "b") == Found(a._replace(name="b"), MOVED)
    assert await upper.find(root, "a") == Found(b._replace(name="a"), OPAQUE)
    await upper.exchange(root, "f", MOVED, sub, "b", None)
    assert await upper.find(sub, "b") == Found(f._replace(name="b"), NO_MARK)
    assert await upper.find(root, "f") == Found(a._replace(name="f"), MOVED)
    before = await dump(upper)
    for refused, error in (
        (upper.exchange(root, "f", None, root, "white", None), NotFound),
        (upper.exchange(root, "sub", None, sub, "b", None), InvalidArgument),
        (upper.exchange(sub, "b", None, root, "sub", None), InvalidArgument),
        (upper.exchange(root, "a", Mark(redirect="x" * 5000), root, "f", None), TooLarge),
    ):
        with pytest.raises(error):
            await refused
    assert await dump(upper) == before
    # A directory that was exchanged knows where it is now.
    await upper.rename(root, "sub", await root.sub("f"), "x", cover=False)
    with pytest.raises(InvalidArgument):
        await upper.rename(root, "f", await (await root.sub("f")).sub("x"), "y", cover=False)


# A model ------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["create", "mkdir", "cover", "copy"]), NAMES, NAMES),
        st.tuples(st.sampled_from(["remove", "erase", "rename", "move", "exchange"]), NAMES, NAMES),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
async def test_any_operations_agree_with_a_dict(steps: list[tuple[str, str, str]]) -> None:
    """A flat directory: what each name stands for, by number, or that it is a whiteout."""
    upper = await upper_with()
    model: dict[str, tuple[str, int] | None] = {}
    for number, (what, name, other) in enumerate(steps, 1):
        if not _apply(model, what, name, other, number):
            with pytest.raises(StorageError):
                await _do(upper, what, name, other, number)
            continue
        await _do(upper, what, name, other, number)
        page = await upper.page(upper.root, "", 100)
        found = dict(page.found)
        assert list(found) == sorted(model)
        for shown, expected in model.items():
            assert await upper.find(upper.root, shown) == found[shown]
            entry = found[shown].entry
            seen = entry and (entry.stat.kind.value, found[shown].mark.origin)
            assert seen == expected
        assert await names_of(upper.root) == sorted(name for name in model if model[name])
        size = sum(entry_cost(name) for name in model)
        assert await used(upper) == (size, 1 + sum(1 for name in model if model[name]))


async def _do(upper: MemoryUpper, what: str, name: str, other: str, number: int) -> None:
    root, mark = upper.root, Mark(origin=number)
    if what == "create":
        await upper.create(root, name)
    elif what == "mkdir":
        await upper.mkdir(root, name, opaque=True)
    elif what == "cover":
        await upper.cover(root, name)
    elif what == "copy":
        await copied(upper, name, mark=mark)
    elif what in ("remove", "erase"):
        await upper.remove(root, name, cover=what == "remove")
    elif what in ("rename", "move"):
        await upper.rename(root, name, root, other, cover=what == "rename", mark=mark)
    else:
        await upper.exchange(root, name, mark, root, other, None)


def _apply(
    model: dict[str, tuple[str, int] | None], what: str, name: str, other: str, number: int
) -> bool:
    """Does it to the model; False where it is refused."""
    there, then = model.get(name), model.get(other)
    if what in ("create", "mkdir") and not there:
        model[name] = ("directory" if what == "mkdir" else "file", 0)
    elif what in ("cover", "copy") and name not in model:
        model[name] = None if what == "cover" else ("file", number)
    elif what in ("remove", "erase") and there:
        model[name] = None
        if what == "erase":
            del model[name]
    elif what in ("rename", "move") and there and (not then or then[0] == there[0]):
        if name != other:
            model[other] = ("directory", number) if there[0] == "directory" else there
            model[name] = None
            if what == "move":
                del model[name]
    elif what == "exchange" and there and then:
        if name != other:
            model[name] = then
            model[other] = ("directory", number) if there[0] == "directory" else there
    else:
        return False
    return True
