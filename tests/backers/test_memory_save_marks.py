"""Marks, whiteouts and nodes without names in a memory volume's file."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from capstore.backers.layer import NO_MARK, WHITEOUT, Mark
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_data import CHUNK_BYTES
from capstore.backers.memory_layer import MemoryLayer, MemoryUpper
from capstore.backers.node import Provenance
from capstore.images import paxtree
from capstore.images.paxtree import Header, Member, MemberKind
from capstore.schema.errors import (
    Corrupt,
    NoSpace,
)
from tests.backers.hosts import host_tree
from tests.backers.memory_layers import LIKE, OPAQUE, SHARED, copied, dump, fill
from tests.contract.harness import (
    Link,
    content_of,
    tree_of,
)

pytestmark = pytest.mark.anyio


async def used(volume: MemoryVolume) -> tuple[int, int]:
    usage = await volume.usage()
    return usage.used_bytes, usage.used_nodes


async def saved(path: Path) -> MemoryVolume:
    return await MemoryVolume.open(file=str(path))


# Marks --------------------------------------------------------------------------------------------


async def test_marks_come_back(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    await fill(upper)
    root = upper.root
    await upper.set_mark(root, Mark(origin=2**64 - 1))
    name = "é" * 127
    await upper.cover(root, name)
    long = Mark(redirect="/".join(["x" * 255] * 16), opaque=True)
    deep = await upper.copy_directory(root, "deep", LIKE, long)
    await upper.cover(deep, "in")
    await upper.link(root, "shared", deep, "again")
    quiet = await upper.copy_directory(root, "quiet", LIKE, NO_MARK)
    await upper.copy_symlink(quiet, "in", "x", LIKE, NO_MARK)
    for number, provenance in enumerate(Provenance, 100):
        like = LIKE._replace(provenance=provenance)
        await copied(upper, provenance.value, b"", Mark(origin=number), like)
    everything, usage = await dump(upper), await used(upper.volume)
    assert (await root.lookup("shared")).stat.link_count == 2
    await upper.volume.close()

    again = MemoryUpper(await saved(path))
    assert await dump(again) == everything
    assert await used(again.volume) == usage
    assert await again.linked(9) is not None
    await again.adopt(SHARED.origin, again.root, "third")
    assert await content_of(again.root, "third") == b"shared"
    await again.volume.reset()
    await again.volume.close()
    last = await saved(path)
    assert await used(last) == (0, 1)
    await last.close()


SILENT: dict[str, Callable[[MemoryUpper], Awaitable[object]]] = {
    "a mark": lambda up: up.set_mark(up.root, OPAQUE),
    "a directory": lambda up: up.copy_directory(up.root, "new", LIKE, NO_MARK),
    "a link": lambda up: up.copy_symlink(up.root, "new", "x", LIKE, NO_MARK),
    "a whiteout less": lambda up: up.uncover(up.root, "white"),
    "a name": lambda up: up.adopt(SHARED.origin, up.root, "new"),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
async def test_a_change_that_nobody_sees_is_saved(
    change: Callable[[MemoryUpper], Awaitable[object]], tmp_path: Path
) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    await fill(upper)
    await upper.volume.sync()
    await change(upper)
    everything = await dump(upper)
    await upper.volume.close()
    again = MemoryUpper(await saved(path))
    assert await dump(again) == everything
    await again.volume.close()


async def test_a_name_that_a_file_is_given_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    file = await upper.unnamed()
    await upper.volume.sync()
    await upper.name_file(file, upper.root, "new", LIKE, NO_MARK)
    await upper.volume.close()
    again = await saved(path)
    assert await tree_of(again.root) == {"new": b""}
    await again.close()


async def test_a_save_shows_marks_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    await fill(upper)
    await (await upper.root.create("large")).write(0, b"x" * 100 * CHUNK_BYTES)
    everything = await dump(upper)
    sync = asyncio.create_task(upper.volume.sync())
    while not upper.volume.tree.generation:
        await asyncio.sleep(0)
    await upper.volume.reset()
    await sync
    copy = tmp_path / "copy.pax"
    copy.write_bytes(path.read_bytes())
    await upper.volume.close()
    first = MemoryUpper(await saved(copy))
    assert await dump(first) == everything
    await first.volume.close()


async def test_gnu_tar_reads_an_upper(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    await fill(upper)
    await upper.cover(upper.root, "n" * 255)
    await upper.volume.close()
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        ["tar", "--warning=no-unknown-keyword", "-xf", path, "-C", out], check=True, text=True
    )
    (unnamed,) = (out / "@unnamed").iterdir()
    assert os.readlink(unnamed) == "target"
    unnamed.unlink()
    assert host_tree(out) == {
        ".wh." + "n" * 251: b"",
        ".wh.white": b"",
        "@unnamed": {},
        "d": {".wh.inner": b""},
        "f": b"content",
        "full": {"x": b""},
        "m": {},
        "shared": b"shared",
    }


# Saved by the release before marks were: d/f with a second name, executable, and a link.
FORMAT_1 = zlib.decompress(
    base64.b85decode(
        b"c-rll-Hw|u5QVwsDR_Y<p79@Ca8XsgZq@b$9E>+n14M*f_3;bovLS&@qbg>%%A6alk-<XNIiEe5+3lOE&I6BPt&|"
        b"XlXRGrkLm^+rhdKZgEQlV08T7bsOx-Sji=Q0++<zj3=+noq-+z4h_Icr|x-d-&p~PeHsoFjkd79~!T4f3(Utx?!*"
        b";t`Oa5k388s|b}$9Kxg=KEBJ$d9#bZOVtX3M|CI=Zm~p<@I5*9!#z?j;S<gxQX*HAo)`E9{ewH<bSDy=ok6ly8xn"
        b"{Y1Zjt8FCgC&8GD_sD3LJ{U8Y;IrVoN6T|G-nL00<^wiu>t+O{(nI@rNLv!b*$?ag7UN8{?oXgzuL{kWO(PHU;jc"
        b"#kTl&|`~8w1y<1w7X^*F1<M`TtJxUySl!0p<TJ`Oo|Ox0eYZ#{|GB0>C5z<dp=#2?AK1Xl|7u0(i-P>zx4qkpBu4"
        b"<^TQUzZ&O1r~IEK|7D;5Yg5~c1W;oF@aqYnt|Wk%Ab`ta5gYA@03Pzc+xNH5e|?(&z>td|V&s4S`CpYyYg#e__5a"
        b"?E|6-#5r-=Wv@E?2rZ#!)Nf&Ygi^mPa-+HT69hgo*%#)km$${~P{4*_S*|Nay()%-Uu24NjB-#7oav-JNi`F}jt5"
        b"?Bx+`Ts8RpP%o4m;coNn<xLpvH$1(e*JqP!Sj9bx*H+h{6@%QmKbA*4!7w4x%b!q)2hvXApes{B$7A%1{coRd;"
    )
)


async def test_what_was_saved_before_marks_loads(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    path.write_bytes(FORMAT_1)
    volume = await saved(path)
    assert await tree_of(volume.root) == {
        "d": {"f": b"content"},
        "hard": b"content",
        "l": Link("d/f"),
    }
    link, file = await volume.root.lookup("l"), await volume.root.lookup("hard")
    assert (link.stat.created, link.stat.modified) == (5, -7)
    assert link.stat.provenance is Provenance.WALL_CLOCK
    assert (file.stat.executable, file.stat.link_count) == (True, 2)
    upper = MemoryUpper(volume)
    await upper.cover(upper.root, "x")
    await volume.close()
    again = await saved(path)
    assert await MemoryLayer(again).find(again.root, "x") is WHITEOUT
    await again.close()


ROOT = Member(MemberKind.DIRECTORY, 1, 0, "")
FORGED = {
    "redirected file": [Member(MemberKind.FILE, 2, 1, "f", redirect="x")],
    "opaque link": [Member(MemberKind.SYMLINK, 2, 1, "l", target="x", opaque=True)],
    "directory with names below": [Member(MemberKind.DIRECTORY, 2, 1, "d", origin=1, below=1)],
    "names below of no origin": [Member(MemberKind.FILE, 2, 1, "f", below=1)],
    "redirect upwards": [Member(MemberKind.DIRECTORY, 2, 1, "d", redirect="../x")],
    "absolute redirect": [Member(MemberKind.DIRECTORY, 2, 1, "d", redirect="/x")],
    "long redirect": [Member(MemberKind.DIRECTORY, 2, 1, "d", redirect="x/" * 2047 + "xx")],
    "two nodes of one origin": [
        Member(MemberKind.FILE, 2, 1, "f", origin=1, below=1),
        Member(MemberKind.FILE, 3, 1, "g", origin=1, below=1),
    ],
    "two unnamed nodes of one origin": [
        Member(MemberKind.FILE, 2, 0, "", origin=1, below=1),
        Member(MemberKind.FILE, 3, 0, "", origin=1, below=1),
    ],
    "two whiteouts of one name": [Member(MemberKind.WHITEOUT, 0, 1, "x")] * 2,
    "a whiteout over an entry": [
        Member(MemberKind.FILE, 2, 1, "x"),
        Member(MemberKind.WHITEOUT, 0, 1, "x"),
    ],
    "an entry over a whiteout": [
        Member(MemberKind.WHITEOUT, 0, 1, "x"),
        Member(MemberKind.FILE, 2, 1, "x"),
    ],
    "a whiteout in a file": [
        Member(MemberKind.FILE, 2, 1, "f", linked=True),
        Member(MemberKind.WHITEOUT, 0, 2, "x"),
    ],
    "a node that nothing shows": [Member(MemberKind.FILE, 2, 0, "", origin=1)],
    "a second root": [Member(MemberKind.DIRECTORY, 2, 0, "", origin=1)],
    "an unnamed node twice": [Member(MemberKind.FILE, 2, 0, "", origin=1, below=1)] * 2,
}


@pytest.mark.parametrize("members", FORGED.values(), ids=FORGED)
async def test_forged_marks_are_corrupt(members: list[Member], tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    with path.open("wb") as stream:
        writer = paxtree._Writer(stream)
        writer._directories[2] = "./f/"
        writer.write(Header(bytes(16), 100, 100, 1 + len(members)), [ROOT, *members])
    raw = path.read_bytes()
    with pytest.raises(Corrupt):
        await saved(path)
    assert path.read_bytes() == raw


async def test_marks_count_when_they_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tree.pax"
    upper = MemoryUpper(await saved(path))
    await fill(upper)
    size, nodes = await used(upper.volume)
    await upper.volume.close()
    for limits in ({"total_bytes_max": size - 1}, {"nodes_max": nodes - 1}):
        with pytest.raises(NoSpace):
            await MemoryVolume.open(file=str(path), **limits)
    fits = await MemoryVolume.open(file=str(path), total_bytes_max=size, nodes_max=nodes)
    await fits.close()
