"""Overlays, and what else there is, opened to be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstore.backers.node import OpenFlags
from capstore.backers.overlay_view import open_to_read
from capstore.backers.spec import open_volume
from capstore.schema.errors import Busy, InvalidArgument, InvalidName, NotFound, ReadOnly
from tests.backers import oci

pytestmark = pytest.mark.anyio

UPPERS = ("wf1:{0}/upper.wf1", "dir:{0}/upper", "memory:{0}/upper.memory")


@pytest.fixture(params=UPPERS)
async def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An overlay in which something was changed, with a node that lower layers show, too."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "one").write_text("lower")
    (base / "two").hardlink_to(base / "one")
    (base / "gone").touch()
    (tmp_path / "upper").mkdir()
    upper = str(request.param).format(tmp_path)
    spec = f"overlay:{upper}+dir:{base}"
    made = await open_volume(spec.replace("upper.wf1", "upper.wf1,create"))
    file = await made.root.open("one", OpenFlags.WRITE)
    await file.write(0, b"UPPER")
    await file.close()
    await made.root.remove("gone")
    await made.close()
    return spec


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = path.stat().st_mtime_ns, content
    return found


async def test_a_view_shows_the_overlay(spec: str) -> None:
    overlay = await open_volume(spec)
    expected = await oci.of_nodes(overlay.root)
    ids = {name: (await overlay.root.lookup(name)).stat for name in ("one", "two")}
    await overlay.close()
    view = await open_to_read(spec)
    assert await oci.of_nodes(view.root) == expected
    for name, stat in ids.items():
        found = (await view.root.lookup(name)).stat
        assert found == stat._replace(version=found.version)
    await view.close()


async def test_a_view_changes_nothing(spec: str, tmp_path: Path) -> None:
    if "overlay:dir:" in spec:
        # Somebody may be writing it just now.
        (tmp_path / "upper/.wh..wh.capstore/making/unnamed").write_text("x")
    before = files_of(tmp_path)
    view = await open_to_read(spec)
    assert view.read_only
    with pytest.raises(ReadOnly):
        await view.root.open("one", OpenFlags.WRITE)
    with pytest.raises(ReadOnly):
        await view.root.remove("two")
    with pytest.raises(ReadOnly):
        await view.root.mkdir("new")
    await view.sync()
    await view.close()
    assert files_of(tmp_path) == before


async def test_many_can_look_at_once(spec: str) -> None:
    if "memory:" in spec:
        view = await open_to_read(spec)
        with pytest.raises(Busy):
            await open_to_read(spec)
        await view.close()
        return
    views = [await open_to_read(spec) for _ in range(3)]
    for view in views:
        file = await view.root.open("two")
        assert bytes(await file.read(0, 10)) == b"UPPER"
        await file.close()
        await view.close()


async def test_parts_of_a_tree_are_opened_to_be_read(spec: str, tmp_path: Path) -> None:
    volume = await open_to_read(f"mounts:/=dir:{tmp_path}/base,/two=dir:{tmp_path}/upper")
    assert volume.read_only
    await volume.close()
    over = spec.replace("+", r"\+", 1)
    if "overlay:dir:" in spec:
        # The names that marks are cannot be those of two overlays.
        with pytest.raises(InvalidName):
            await open_to_read(f"overlay:{over}+memory:")
        return
    volume = await open_to_read(f"overlay:{over}+memory:")
    assert (await volume.root.lookup("one")).stat.link_count == 2
    await volume.close()


@pytest.mark.parametrize("name", ["memory:{0}/no", "wf1:{0}/no,create", "dir:{0}/no"])
async def test_nothing_is_made(name: str, tmp_path: Path) -> None:
    for spec in (name, f"overlay:{name}+memory:", f"overlay:memory:+{name}"):
        with pytest.raises(NotFound):
            await open_to_read(spec.format(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec",
    ["overlay:memory:", "overlay:oci:x+memory:", "overlay:dir:/+dir:/", "no:x"],
)
async def test_specifications_that_make_no_sense(spec: str) -> None:
    with pytest.raises(InvalidArgument):
        await open_to_read(spec)
