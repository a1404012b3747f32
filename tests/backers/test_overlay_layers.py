"""The cases that a layered filesystem has to get right, each named for what it asserts.

They are those of LiteBox's layered filesystem, in this protocol's words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from capstore.backers.node import DirectoryNode, Expect, NodeKind, OpenFlags, Provenance, Stat
from capstore.schema.errors import AlreadyExists, IsDirectory, NotDirectory, NotEmpty, NotFound
from tests.backers.overlays import FEW, Folder, file, folder, overlaid
from tests.contract.harness import content_of, names_of, populate, replace_content, tree_of

pytestmark = pytest.mark.anyio

WRITE = OpenFlags.WRITE
CREATE = OpenFlags.WRITE | OpenFlags.CREATE
EXCLUSIVE = CREATE | OpenFlags.EXCLUSIVE
BELOW: Folder = folder(
    {
        "bar": folder({"baz": file(b"deep below")}),
        "empty": folder(),
        "foo": file(b"from below"),
    }
)


@pytest.fixture(params=FEW)
async def root(request: pytest.FixtureRequest) -> AsyncIterator[DirectoryNode]:
    """An overlay's root, with `BELOW` below and nothing above."""
    async with overlaid(request.param, BELOW) as volume:
        yield volume.root


async def test_a_file_below_is_read(root: DirectoryNode) -> None:
    assert await content_of(root, "foo") == b"from below"
    assert await content_of(await root.sub("bar"), "baz") == b"deep below"


async def test_a_name_under_no_layer_is_not_found(root: DirectoryNode) -> None:
    for call in (root.lookup, root.open, root.sub, root.remove):
        with pytest.raises(NotFound):
            await call("missing")
    bar = await root.sub("bar")
    with pytest.raises(NotFound):
        await bar.open("missing")
    with pytest.raises(NotDirectory):
        await root.sub("foo")


async def test_a_reader_sees_from_the_start_what_a_writer_wrote(root: DirectoryNode) -> None:
    reader = await root.open("foo")
    assert bytes(await reader.read(0, 100)) == b"from below"
    writer = await root.open("foo", WRITE)
    await writer.write(0, b"share")
    assert bytes(await reader.read(0, 100)) == b"sharebelow"
    assert (await reader.stat()).node_id == (await writer.stat()).node_id


async def test_a_reader_goes_on_from_its_position_in_what_was_written(root: DirectoryNode) -> None:
    reader = await root.open("foo")
    position = len(await reader.read(0, 4))
    writer = await root.open("foo", WRITE)
    await writer.write(0, b"FROM ABOVE, and more")
    assert bytes(await reader.read(position, 100)) == b" ABOVE, and more"
    await writer.append(b" yet")
    assert bytes(await reader.read(20, 100)) == b" yet"


async def test_a_file_removed_while_open_is_still_read_and_written(root: DirectoryNode) -> None:
    reader = await root.open("foo")
    writer = await root.open("foo", WRITE)
    await root.remove("foo")
    with pytest.raises(NotFound):
        await root.open("foo")
    assert await names_of(root) == ["bar", "empty"]
    assert bytes(await reader.read(0, 100)) == b"from below"
    await writer.write(0, b"gone")
    assert bytes(await reader.read(0, 100)) == b"gone below"
    assert (await reader.stat()).link_count == 0
    assert await names_of(root) == ["bar", "empty"]


async def test_a_directory_is_no_file_and_a_file_no_directory(root: DirectoryNode) -> None:
    bar = await root.sub("bar")
    await bar.create("new")
    for flags in (OpenFlags.READ, WRITE, CREATE, WRITE | OpenFlags.TRUNCATE):
        with pytest.raises(IsDirectory):
            await root.open("bar", flags)
        with pytest.raises(IsDirectory):
            await root.open("empty", flags)
    for name in ("baz", "new"):
        with pytest.raises(NotDirectory):
            await bar.sub(name)
    with pytest.raises(NotFound):
        await bar.sub("missing")


async def test_opening_to_create_does_not_shadow_what_is_below(root: DirectoryNode) -> None:
    opened = await root.open("foo", CREATE)
    assert bytes(await opened.read(0, 100)) == b"from below"
    await opened.close()
    assert await content_of(root, "foo") == b"from below"
    with pytest.raises(AlreadyExists):
        await root.create("foo")
    with pytest.raises(AlreadyExists):
        await root.mkdir("bar")
    assert await tree_of(root) == {
        "bar": {"baz": b"deep below"},
        "empty": {},
        "foo": b"from below",
    }


async def test_a_listing_has_what_one_layer_has(root: DirectoryNode) -> None:
    assert await names_of(root) == ["bar", "empty", "foo"]
    assert await names_of(await root.sub("bar")) == ["baz"]
    only_above = await root.mkdir("above")
    await populate(only_above, {"b": b"", "a": {}})
    assert await names_of(only_above) == ["a", "b"]


async def test_a_listing_merges_the_layers_and_has_each_name_once(root: DirectoryNode) -> None:
    await populate(root, {"aaa": b"first", "zzz": {}})
    await replace_content(root, "foo", b"now above")
    await (await root.sub("bar")).create("baa")
    assert await names_of(root) == ["aaa", "bar", "empty", "foo", "zzz"]
    assert await names_of(await root.sub("bar")) == ["baa", "baz"]
    kinds = {entry.name: entry.stat.kind for entry in (await root.list()).entries}
    assert kinds["foo"] is NodeKind.FILE
    assert kinds["bar"] is NodeKind.DIRECTORY


async def test_an_exclusive_create_works_only_where_nothing_is(root: DirectoryNode) -> None:
    """Over a new name, one below, one above, and a directory."""
    await (await root.open("new", EXCLUSIVE)).write(0, b"made")
    for name in ("foo", "new", "bar", "empty"):
        with pytest.raises(AlreadyExists):
            await root.open(name, EXCLUSIVE)
        with pytest.raises(AlreadyExists):
            await root.create(name)
    assert await content_of(root, "foo") == b"from below"
    assert await content_of(root, "new") == b"made"


async def test_an_exclusive_create_works_over_what_was_removed(root: DirectoryNode) -> None:
    await root.remove("foo")
    made = await root.open("foo", EXCLUSIVE)
    assert await made.size() == 0
    await made.write(0, b"again")
    assert await content_of(root, "foo") == b"again"
    with pytest.raises(AlreadyExists):
        await root.open("foo", EXCLUSIVE)
    assert await names_of(root) == ["bar", "empty", "foo"]


async def test_things_are_made_inside_a_directory_below(root: DirectoryNode) -> None:
    bar = await root.sub("bar")
    inner = await bar.mkdir("inner")
    await populate(inner, {"deep": b"made"})
    await populate(bar, {"file": b"beside"})
    assert await tree_of(root) == {
        "bar": {"baz": b"deep below", "file": b"beside", "inner": {"deep": b"made"}},
        "empty": {},
        "foo": b"from below",
    }


async def test_a_change_deep_below_brings_its_ancestors_along(root: DirectoryNode) -> None:
    bar = await root.sub("bar")
    before = [_lasting(await one.stat()) for one in (root, bar)]
    writer = await bar.open("baz", WRITE)
    await writer.write(5, b"above")
    assert await content_of(await root.sub("bar"), "baz") == b"deep above"
    after = [_lasting(await one.stat()) for one in (root, bar)]
    assert after == before, "what was made above them is no change"
    assert await names_of(root) == ["bar", "empty", "foo"]


def _lasting(stat: Stat) -> Stat:
    """Without what a copy has of its own, or not every layer can record."""
    return stat._replace(version=0, created=0, provenance=Provenance.UNKNOWN)


async def test_opening_to_truncate_empties_a_file_below(root: DirectoryNode) -> None:
    reader = await root.open("foo")
    opened = await root.open("foo", WRITE | OpenFlags.TRUNCATE)
    assert await opened.size() == 0
    assert await reader.size() == 0
    await opened.write(0, b"new")
    assert bytes(await reader.read(0, 100)) == b"new"
    assert await content_of(root, "foo") == b"new"


async def test_a_directory_only_above_is_removed(root: DirectoryNode) -> None:
    await root.mkdir("only above")
    await root.remove("only above", Expect.DIRECTORY)
    with pytest.raises(NotFound):
        await root.lookup("only above")
    await root.mkdir("only above")
    assert await names_of(await root.sub("only above")) == []


async def test_a_directory_that_is_not_empty_above_is_not_removed(root: DirectoryNode) -> None:
    above = await root.mkdir("only above")
    await above.create("x")
    await (await root.sub("empty")).create("y")
    for name in ("only above", "empty"):
        with pytest.raises(NotEmpty):
            await root.remove(name)
    await above.remove("x")
    await root.remove("only above")


async def test_a_directory_that_is_not_empty_below_is_not_removed(root: DirectoryNode) -> None:
    with pytest.raises(NotEmpty):
        await root.remove("bar")
    await (await root.sub("bar")).remove("baz")
    await root.remove("bar")
    await root.remove("empty")
    assert await tree_of(root) == {"foo": b"from below"}
    await root.mkdir("bar")
    assert await tree_of(root) == {"bar": {}, "foo": b"from below"}


async def test_removing_a_directory_does_not_remove_a_file(root: DirectoryNode) -> None:
    await root.create("new")
    for name in ("foo", "new"):
        with pytest.raises(NotDirectory):
            await root.remove(name, Expect.DIRECTORY)
        with pytest.raises(IsDirectory):
            await root.remove("bar", Expect.NOT_DIRECTORY)
    assert await content_of(root, "foo") == b"from below"
