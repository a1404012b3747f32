"""What overlay filesystems are tested with, family by family, each step compared with a model.

A name can be in several states before a step: below only, copied up, made above, removed, and
made again where it was removed.  Each family takes its step from each of them.  Renames are in
``test_overlay_renames.py``, hard links in ``test_overlay_links.py``.
"""

from __future__ import annotations

import pytest

from capstore.backers.node import Attributes, DirectoryNode, Expect, FileNode, OpenFlags
from capstore.schema.errors import InvalidArgument, NotFound
from tests.backers.overlay_bench import TREE, bench, remove_all
from tests.backers.overlays import BASE, FEW, Entry, Link, facts, file, folder
from tests.contract import model
from tests.contract.harness import content_of, names_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE


@pytest.fixture(params=FEW)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a stack."""
    assert isinstance(request.param, str)
    return request.param


# Opening -----------------------------------------------------------------------------------------

FLAGS = [OpenFlags(flags) for flags in range(16)]
TARGETS: dict[str, Entry | None] = {
    "existing": file(b"content"),
    "missing": None,
    "directory": folder({"x": file()}),
    "link": Link("../existing", facts()),
    "broken": Link("missing", facts()),
}


@pytest.mark.parametrize("target", TARGETS)
async def test_open_flags(name: str, target: str) -> None:
    what = TARGETS[target]
    here = {} if what is None else {target: what}
    tree = folder({f"{int(flags):02}": folder(here) for flags in FLAGS})
    async with bench(name, tree) as at:
        for flags in FLAGS:
            where = f"{int(flags):02}/{target}"
            number, last = await at.twin.at(where)
            try:
                flags.check()
            except InvalidArgument:
                with pytest.raises(InvalidArgument):
                    await at.twin.directory(number)[0].open(last, flags)
                continue
            # Once as it is, once as that left it, and where it was removed.
            await at.twin.do("open", where, flags)
            await at.twin.do("open", where, flags)
            await at.twin.check()
            if target != "directory":
                await at.twin.do("remove", where, Expect.ANY)
                await at.twin.do("open", where, flags)
        await at.twin.check_all()


async def test_what_is_written_through_each_flag(name: str) -> None:
    flags = [one for one in FLAGS if one.writes and OpenFlags.EXCLUSIVE not in one]
    tree = folder({str(int(one)): file(b"0123456789") for one in flags})
    async with bench(name, tree) as at:
        for one in flags:
            await at.twin.do("open", str(int(one)), one)
            await at.twin.write(len(at.twin.files) - 1, 3, b"abc")
            await at.twin.append(len(at.twin.files) - 1, b"end")
        await at.twin.check_all()
        for one in flags:
            await at.twin.truncate(0, 5)
            await at.twin.do("open", str(int(one)), OpenFlags.READ)
        await at.twin.check_all()


# Removing and making again -----------------------------------------------------------------------


async def test_unlinking_and_making_again(name: str) -> None:
    async with bench(name, TREE) as at:
        for turn in range(3):
            for path in ("f", "a/f", "a/sub/g"):
                await at.twin.do("remove", path, Expect.NOT_DIRECTORY)
                await at.twin.check()
                await at.twin.put(path, f"turn {turn}".encode())
                await at.twin.check()
        assert await content_of(at.volume.root, "f") == b"turn 2"


async def test_removing_and_making_directories_again(name: str) -> None:
    async with bench(name, TREE) as at:
        for turn in range(3):
            await remove_all(at.twin, "a")
            await at.twin.check()
            with pytest.raises(NotFound):
                await at.volume.root.sub("a")
            await at.twin.do("mkdir", "a")
            await at.twin.check()
            await at.twin.do("mkdir", "a/sub")
            await at.twin.put(f"a/sub/{turn}", b"new")
            await at.twin.check()
            if turn == 1:
                await at.again()
        assert model.dump(at.twin.ideal)["a"] == {"sub": {"2": b"new"}}


async def test_a_name_changes_its_kind(name: str) -> None:
    async with bench(name, TREE) as at:
        for path in ("f", "c", "a"):
            await remove_all(at.twin, path)
            await at.twin.do("symlink", path)
            await at.twin.check()
            await at.twin.do("remove", path, Expect.ANY)
            await at.twin.do("mkdir", path)
            await at.twin.put(f"{path}/f", b"in a directory")
            await at.twin.check()
            await remove_all(at.twin, path)
            await at.twin.put(path, b"a file")
            await at.twin.check()


async def test_what_was_removed_stays_with_who_holds_it(name: str) -> None:
    async with bench(name, TREE) as at:
        held = await (await at.volume.root.sub("a")).sub("sub")
        await at.twin.do("open", "a/sub/g", OpenFlags.READ)
        await at.twin.do("open", "a/sub/g", WRITE)
        await remove_all(at.twin, "a")
        assert await names_of(held) == []
        with pytest.raises(NotFound):
            await held.create("x")
        with pytest.raises(NotFound):
            await at.volume.root.rename("f", held, "x")
        assert (await held.stat()).link_count == 0
        await at.twin.read(0)
        await at.twin.write(0, 2, b"written")
        await at.twin.append(0, b"!")
        await at.twin.read(0)
        await at.twin.check_all()
        await at.twin.do("mkdir", "a")
        await at.twin.do("mkdir", "a/sub")
        assert await names_of(held) == []
        await at.twin.check_all()


# Attributes --------------------------------------------------------------------------------------


async def test_attributes_of_what_is_below(name: str) -> None:
    async with bench(name, BASE) as at:
        for path in ("é", "a/a", "-", "a/b", "a/b/c", "b", "c", "a/c"):
            for executable in (True, False):
                await at.twin.do("attributes", path, 3_000_000_000, executable)
                at.twin.touched |= set(at.twin.known)
                await at.twin.check()
        root = at.volume.root
        before = await root.stat()
        await root.set_attributes(Attributes(modified=before.modified + 1))
        assert (await root.stat()).modified == before.modified + 1
        at.twin.touched |= set(at.twin.known)
        await at.twin.check_all()


async def test_through_an_open_file_below(name: str) -> None:
    async with bench(name, TREE) as at:
        opened = await at.volume.root.open("f", WRITE)
        before = await opened.stat()
        await opened.set_attributes(Attributes(modified=9_000_000_000, executable=True))
        after = await opened.stat()
        assert (after.modified, after.executable) == (9_000_000_000, True)
        assert after.node_id == before.node_id
        assert await at.volume.root.lookup("f") == ("f", after, None)
        await opened.close()
        await at.volume.root.set_attributes(Attributes(modified=1, executable=False), "f")
        at.twin.known.clear()


# Handles -----------------------------------------------------------------------------------------


async def test_saved_handles_lead_to_the_same_node(name: str) -> None:
    async with bench(name, TREE) as at:
        root = at.volume.root
        sub = await (await root.sub("a")).sub("sub")
        saved = {
            path: await at.volume.handle_of(node)
            for path, node in (
                ("", root),
                ("a/sub", sub),
                ("a/sub/g", await sub.open("g")),
                ("f", await root.open("f")),
                ("b/f", await (await root.sub("b")).open("f")),
            )
        }
        before = {
            path: (await (await at.volume.node_of(handle)).stat()).node_id
            for path, handle in saved.items()
        }
        await at.twin.put("a/sub/g", b"copied up")
        await at.twin.do("create", "a/sub/new")
        await at.again()
        for path, handle in saved.items():
            node = await at.volume.node_of(handle)
            assert (await node.stat()).node_id == before[path]
        found = await at.volume.node_of(saved["a/sub/g"])
        assert isinstance(found, FileNode)
        assert bytes(await found.read(0, 100)) == b"copied up"
        await found.close()
        await at.twin.do("remove", "f", Expect.ANY)
        await at.twin.move("g", "f")
        await at.twin.do("remove", "b/f", Expect.ANY)
        for gone in ("f", "b/f"):
            with pytest.raises(NotFound):
                await at.volume.node_of(saved[gone])
        with pytest.raises(InvalidArgument):
            await at.volume.node_of(b"")


# Listing -----------------------------------------------------------------------------------------


async def test_a_walk_while_entries_change(name: str) -> None:
    """What nobody touches appears exactly once, of whatever layer it is."""
    kept = [f"{number:03} kept" for number in range(60)]
    doomed = [f"{number:03} gone" for number in range(60)]
    tree = folder(dict.fromkeys(kept[::2] + doomed, file()))
    async with bench(name, tree) as at:
        root = at.volume.root
        for one in kept[1::2]:
            await root.create(one)
        seen: list[str] = []
        for turn in range(1000):
            page = await root.list(seen[-1] if seen else "", 5)
            seen += [entry.name for entry in page.entries]
            await root.create(f"{turn * 7 % 60:03} new {turn}")
            await root.remove(doomed.pop(turn * 11 % len(doomed)))
            if not page.more:
                break
        assert [one for one in seen if one.endswith("kept")] == kept
        assert len(seen) == len(set(seen))
        await _clear(root)
        at.twin.ideal.entries.clear()
        at.twin.touched.add(at.twin.ideal)


async def _clear(root: DirectoryNode) -> None:
    seen = 0
    while True:
        page = await root.list("", 7)
        for entry in page.entries:
            await root.remove(entry.name)
            seen += 1
        if not page.more:
            return


async def test_a_walk_that_renames_and_recreates(name: str) -> None:
    tree = folder({f"{number:02}": file(b"%d" % number) for number in range(40)})
    async with bench(name, tree) as at:
        seen: list[str] = []
        more = True
        while more:
            page = await at.volume.root.list(seen[-1] if seen else "", 4)
            more = page.more
            for number, entry in enumerate(page.entries):
                seen.append(entry.name)
                if number == 0:
                    await at.twin.do("remove", entry.name, Expect.ANY)
                elif number == 1:
                    await at.twin.put(entry.name, b"copied up")
                elif number == 2:
                    await at.twin.move(entry.name, f"00 moved {entry.name}")
                else:
                    await at.twin.do("remove", entry.name, Expect.ANY)
                    await at.twin.do("mkdir", entry.name)
        assert seen == [f"{number:02}" for number in range(40)]
        await at.twin.check_all()
