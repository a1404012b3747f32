"""Names that a policy hides: patterns, what is below them, other spellings, pages, keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    FileNode,
    NodeKind,
    OpenFlags,
    RenameMode,
)
from capstore.schema.errors import Code, NotEmpty, StorageError
from capstore.schema.limits import HIDDEN_PATTERNS_MAX
from capstore.service.client import connect, open_connection
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory
from capstore.service.hidden import below, hidden_of, shown
from capstore.service.remote import Directory, answer_of
from capstore.service.scope import Scope
from capstore.service.store_guard import GuardedStore
from tests.contract.faults import DelayedDirectory, Delays
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving
from tests.service.policed import CREATE, a_tree, code_of

pytestmark = pytest.mark.anyio


# Hidden names -------------------------------------------------------------------------------------

globs = st.text("ab*?[]!-^|&~.\\(é", min_size=1, max_size=12).filter(lambda text: "**" not in text)


@settings(max_examples=300)
@given(glob=globs, name=st.text("ab-]é.", min_size=1, max_size=6))
async def test_a_glob_is_what_fnmatch_says(glob: str, name: str) -> None:
    import fnmatch

    hidden = hidden_of((glob,))
    assert hidden is not None
    assert hidden.name(name) == fnmatch.fnmatchcase(name, glob)
    data = name.encode(), glob.encode()
    # Keys are matched byte by byte.
    assert hidden.key(data[0]) == fnmatch.fnmatchcase(data[0], data[1])
    deeper = hidden_of(below(b"p/", (glob,)))
    assert deeper is not None
    assert deeper.key(b"p/" + data[0]) == hidden.key(data[0])
    assert not deeper.key(b"q/" + data[0])
    assert [shown(each) for each in below(b"p/", (glob,))] == [glob]


async def test_no_pattern_takes_for_ever() -> None:
    evil = tuple(
        f"*{'a' * repeat}*{'a*' * 40}b{number}"
        for number, repeat in enumerate([100, 30, 10, 1] * 4)
    )
    hidden = hidden_of(evil)
    assert hidden is not None
    begun = time.process_time()
    for _ in range(20):
        assert not hidden.name("a" * 255)
    assert time.process_time() - begun < 1


NAMES = st.sampled_from(["a", "d", "l", "x", "hidden-a", "hidden-d", "hidden-x", "new", "hidden-n"])
HIDDEN_MOVES = st.one_of(
    st.tuples(st.sampled_from(["lookup", "open", "create", "mkdir", "sub", "remove"]), NAMES),
    st.tuples(st.sampled_from(["write", "symlink", "stat"]), NAMES),
    st.tuples(st.sampled_from(["rename", "link", "exchange"]), NAMES, NAMES),
    st.tuples(st.sampled_from(["list", "snapshot", "attenuate", "dry", "save"])),
)


async def _ids_below_hidden(directory: DirectoryNode, *, hidden: bool = False) -> dict[int, object]:
    found: dict[int, object] = {}
    for entry in (await directory.list()).entries:
        here = hidden or entry.name.startswith("hidden-")
        content: object = entry.target
        if entry.stat.kind is NodeKind.DIRECTORY:
            child = await directory.sub(entry.name)
            found |= await _ids_below_hidden(child, hidden=here)
            content = [each.name for each in (await child.list()).entries]
        elif entry.stat.kind is NodeKind.FILE:
            content = bytes(await (await directory.open(entry.name)).read(0, 100))
        if here:
            found[entry.stat.node_id] = (entry.name, content)
    return found


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(HIDDEN_MOVES, min_size=5, max_size=30), choose=st.randoms())
async def test_nothing_below_a_hidden_name_is_reached(moves: list[Any], choose: Any) -> None:
    volume, _ = await a_tree()
    before = await _ids_below_hidden(volume.root)
    assert len(before) == 5
    async with serving({"m": volume}) as served, open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        narrowed = (await root.attenuate(Policy(hidden_names=("hidden-*",)))).capability
        held: list[Any] = [narrowed]
        for move in moves:
            here = choose.choice([each for each in held if isinstance(each, Directory)])
            there = choose.choice([each for each in held if isinstance(each, Directory)])
            try:
                held += await _moved(connection, here, there, *move)
            except StorageError:
                continue
        for each in held:
            if isinstance(each, Directory):
                listed = (await each.list()).entries
                assert not [entry for entry in listed if entry.name.startswith("hidden-")]
                assert not {entry.stat.node_id for entry in listed} & set(before)
            assert (await each.stat()).node_id not in before
        assert await _ids_below_hidden(volume.root) == before


async def _moved(
    connection: Any, here: Directory, there: Directory, verb: str, *names: str
) -> list[Any]:
    match verb:
        case "lookup" | "remove" | "list" | "stat":
            await getattr(here, verb)(*names if verb not in ("stat", "list") else ())
            return []
        case "open":
            return [await here.open(names[0], CREATE)]
        case "write":
            await here.write_file(names[0], b"changed")
            return []
        case "symlink":
            await here.symlink(names[0], "hidden-a")
            return []
        case "rename" | "link":
            await getattr(here, verb)(names[0], there, names[1])
            return []
        case "exchange":
            await here.rename(names[0], there, names[1], RenameMode.EXCHANGE)
            return []
        case "attenuate":
            return [(await here.attenuate(Policy(hidden_names=("y",)))).capability]
        case "dry":
            await (await here.attenuate(Policy(dry_run=True))).capability.list()
            return []
        case "save":
            return [await connection.restore(await here.save("x"))]
        case _:
            return [await getattr(here, verb)(*names)]


async def test_a_directory_with_hidden_entries_is_not_empty() -> None:
    _, top = await a_tree()
    here = top.narrowed(Policy(hidden_names=("hidden-*",)))
    inner = await here.sub("d")
    await inner.remove("x")
    assert not (await inner.list()).entries
    with pytest.raises(NotEmpty):
        await here.remove("d")


class Caseless(DelayedDirectory):
    """Finds what is there under any spelling, as FAT does."""

    async def lookup(self, name: str) -> Entry:
        return await super().lookup(name.lower())

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        return await super().open(name.lower(), flags)

    async def sub(self, name: str) -> DirectoryNode:
        return await super().sub(name.lower())


async def test_no_other_spelling_finds_what_is_hidden() -> None:
    volume, top = await a_tree()
    here = GuardedDirectory(Caseless(volume.root, Delays()), top.grant).narrowed(
        Policy(hidden_names=("hidden-*",))
    )
    for call in (
        here.lookup("HIDDEN-a"),
        here.open("HIDDEN-a"),
        here.sub("Hidden-d"),
        here.set_attributes(Attributes(modified=1), "HIDDEN-A"),
        here.remove("HIDDEN-A"),
        here.rename("HIDDEN-A", here, "seen"),
        here.link("HIDDEN-A", here, "seen"),
    ):
        assert await code_of(call) is Code.NOT_FOUND
    await here.open("A")


async def test_pages_without_what_is_hidden_are_full() -> None:
    volume = await MemoryVolume.open()
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    for number in range(300):
        await top.create(f"{'hidden' if number % 7 else 'seen'}-{number:03}")
    here = top.narrowed(Policy(hidden_names=("hidden*",)))
    expected = [f"seen-{number:03}" for number in range(0, 300, 7)]
    found: list[str] = []
    sizes, more = [], True
    while more:
        page = await here.list(found[-1] if found else "", 10)
        found += [entry.name for entry in page.entries]
        sizes.append(len(page.entries))
        more = page.more
    assert found == expected
    assert sizes == [10, 10, 10, 10, 3]
    nothing = top.narrowed(Policy(hidden_names=("*",)))
    page = await nothing.list()
    assert (list(page.entries), page.more) == ([], False)


async def test_keys_are_hidden_as_whole_keys(tmp_path: Path) -> None:
    model = ModelStore()
    store = GuardedStore(model, Grant(ServedVolume("s", model), Policy()), Scope())
    for key in (b"a/secret", b"a/open", b"secret", b"b/secret"):
        await store.put(b"x", key)
    hidden = store.narrowed(Policy(hidden_names=("a?secret",)))
    assert [each.key for each in (await hidden.list()).objects] == [
        b"a/open",
        b"b/secret",
        b"secret",
    ]
    part = hidden.sub_store(b"a/")
    assert [each.key for each in (await part.list()).objects] == [b"open"]
    assert await code_of(part.put(b"x", b"secret")) is Code.NOT_FOUND
    # What was put on below a prefix is about what is seen there, and stays so.
    below_a = store.sub_store(b"a/").narrowed(Policy(hidden_names=("secret",)))
    deeper = below_a.sub_store(b"s")
    assert await code_of(deeper.get(b"ecret")) is Code.NOT_FOUND
    assert not await deeper.has(b"ecret")
    assert [each.key for each in (await below_a.list()).objects] == [b"open"]
    everything = store.narrowed(Policy(hidden_names=("*",)))
    assert await code_of(everything.put(b"by content")) is Code.NOT_FOUND
    sink = await everything.begin()
    await sink.write(b"by content")
    assert await code_of(sink.commit()) is Code.NOT_FOUND
    drop = everything.put_only()
    assert await code_of(drop.put(b"x")) is Code.NOT_FOUND


# Dry runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["a/b", "**", "", "\0zz\0x", "\x0061\0x", b"\xff", "x" * 256])
async def test_a_pattern_from_a_stranger_is_looked_at(bad: str | bytes) -> None:
    volume, _ = await a_tree()
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        request = root.raw.attenuate_request()
        request.init("policy").hiddenNames = [bad]
        assert await code_of(answer_of(request.send())) is Code.INVALID_ARGUMENT
        request = root.raw.attenuate_request()
        request.init("policy").hiddenNames = ["x"] * (HIDDEN_PATTERNS_MAX + 1)
        assert await code_of(answer_of(request.send())) is Code.TOO_LARGE
