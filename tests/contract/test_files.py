"""Open files: content, flags, and the life of a handle."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from capstore.backers.node import Attributes, DirectoryNode, FileNode, OpenFlags
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotFound,
    ReadOnly,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import TRANSFER_BYTES_MAX
from tests.contract.harness import Harness, Link, content_of, names_of, populate

pytestmark = pytest.mark.anyio

READ = OpenFlags.READ
WRITE = OpenFlags.WRITE
CREATE = OpenFlags.CREATE
EXCLUSIVE = OpenFlags.EXCLUSIVE
TRUNCATE = OpenFlags.TRUNCATE


async def everything(file: FileNode) -> bytes:
    return bytes(await file.read(0, await file.size()))


async def test_a_new_file_is_empty(root: DirectoryNode) -> None:
    file = await root.create("f")
    assert await file.size() == 0
    assert bytes(await file.read(0, 10)) == b""
    assert (await root.lookup("f")).stat.size == 0


async def test_what_was_written_is_read(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"hello world")
    await file.write(6, bytearray(b"there"))
    await file.write(11, memoryview(b"!"))
    assert await everything(file) == b"hello there!"
    assert bytes(await file.read(6, 5)) == b"there"
    assert bytes(await file.read(6, 100)) == b"there!"
    assert bytes(await file.read(12, 5)) == b""
    assert bytes(await file.read(100, 5)) == b""
    assert bytes(await file.read(3, 0)) == b""
    assert await content_of(root, "f") == b"hello there!"


async def test_read_into_fills_what_there_is_and_leaves_the_rest(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abcdef")
    buffer = bytearray(b"........")
    assert await file.read_into(2, memoryview(buffer)) == 4
    assert bytes(buffer[:4]) == b"cdef"
    assert await file.read_into(6, memoryview(buffer)) == 0
    assert await file.read_into(0, memoryview(buffer)[:0]) == 0


async def test_what_was_read_stays_when_the_file_changes(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"before")
    read = await file.read(0, 6)
    await file.write(0, b"after!")
    assert bytes(read) == b"before"


async def test_a_gap_reads_as_zeros(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(200_000, b"end")
    assert await file.size() == 200_003
    assert await everything(file) == bytes(200_000) + b"end"
    await file.write(100_000, b"middle")
    assert bytes(await file.read(99_998, 10)) == b"\0\0middle\0\0"


async def test_truncate_cuts_and_extends_with_zeros(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"x" * 100_000)
    await file.truncate(70_000)
    await file.truncate(90_000)
    assert await everything(file) == b"x" * 70_000 + bytes(20_000)
    await file.truncate(0)
    assert await file.size() == 0
    await file.truncate(5)
    assert await everything(file) == bytes(5)


async def test_writing_nothing_changes_nothing(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    await file.write(10, b"")
    assert await file.append(b"") == 3
    assert await everything(file) == b"abc"


async def test_append_goes_to_the_end_and_says_where(root: DirectoryNode) -> None:
    file = await root.create("f")
    assert await file.append(b"abc") == 0
    assert await file.append(b"de") == 3
    await file.truncate(10)
    assert await file.append(b"f") == 10
    assert await everything(file) == b"abcde\0\0\0\0\0f"


async def test_concurrent_appends_do_not_overlap(root: DirectoryNode) -> None:
    await root.create("f")
    at: dict[int, int] = {}

    async def append(number: int) -> None:
        file = await root.open("f", WRITE)
        at[number] = await file.append(bytes([number]) * (number + 1))
        await file.close()

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(append, number)
    content = await content_of(root, "f")
    assert len(content) == sum(range(1, 21))
    for number, offset in at.items():
        assert content[offset : offset + number + 1] == bytes([number]) * (number + 1)


async def test_a_large_transfer(root: DirectoryNode) -> None:
    data = bytes(range(256)) * (TRANSFER_BYTES_MAX // 256)
    file = await root.create("f")
    await file.write(1, data)
    assert bytes(await file.read(1, len(data))) == data
    assert await file.size() == len(data) + 1


@pytest.mark.parametrize("offset", [-1, -(2**63), -(2**70)])
async def test_negative_offsets_are_refused(root: DirectoryNode, offset: int) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    with pytest.raises(InvalidArgument):
        await file.write(offset, b"x")
    with pytest.raises(InvalidArgument):
        await file.truncate(offset)
    with pytest.raises(InvalidArgument):
        await file.read_into(offset, memoryview(bytearray(1)))
    assert await everything(file) == b"abc"


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70])
async def test_offsets_beyond_any_file_are_refused(root: DirectoryNode, offset: int) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    refused = (TooLarge, InvalidArgument, NoSpace)
    with pytest.raises(refused):
        await file.write(offset, b"xy")
    with pytest.raises(refused):
        await file.truncate(offset + 1)
    with suppress(*refused):
        assert await file.read_into(offset, memoryview(bytearray(1))) == 0
    assert await everything(file) == b"abc"


# What is there, the flags, and what comes of it: content after, or the error.
OPENING: list[tuple[str, OpenFlags, bytes | type[StorageError]]] = [
    ("missing", READ, NotFound),
    ("missing", WRITE, NotFound),
    ("missing", WRITE | TRUNCATE, NotFound),
    ("missing", WRITE | CREATE, b""),
    ("missing", WRITE | CREATE | EXCLUSIVE, b""),
    ("missing", WRITE | CREATE | TRUNCATE, b""),
    ("missing", WRITE | CREATE | EXCLUSIVE | TRUNCATE, b""),
    ("file", READ, b"old"),
    ("file", WRITE, b"old"),
    ("file", WRITE | TRUNCATE, b""),
    ("file", WRITE | CREATE, b"old"),
    ("file", WRITE | CREATE | EXCLUSIVE, AlreadyExists),
    ("file", WRITE | CREATE | TRUNCATE, b""),
    ("file", WRITE | CREATE | EXCLUSIVE | TRUNCATE, AlreadyExists),
    ("directory", READ, IsDirectory),
    ("directory", WRITE, IsDirectory),
    ("directory", WRITE | CREATE, IsDirectory),
    ("directory", WRITE | CREATE | EXCLUSIVE, AlreadyExists),
    ("directory", WRITE | TRUNCATE, IsDirectory),
    ("link", READ, Unsupported),
    ("link", WRITE, Unsupported),
    ("link", WRITE | CREATE, Unsupported),
    ("link", WRITE | TRUNCATE, Unsupported),
    ("link", WRITE | CREATE | EXCLUSIVE, AlreadyExists),
    ("dangling", READ, Unsupported),
    ("dangling", WRITE | CREATE, Unsupported),
]


@pytest.mark.parametrize(("what", "flags", "outcome"), OPENING)
async def test_open(
    root: DirectoryNode, what: str, flags: OpenFlags, outcome: bytes | type[StorageError]
) -> None:
    await populate(
        root,
        {"file": b"old", "directory": {}, "link": Link("file"), "dangling": Link("missing")},
    )
    before = await names_of(root)
    if isinstance(outcome, bytes):
        file = await root.open(what, flags)
        assert await everything(file) == outcome
        if flags & WRITE:
            await file.write(0, b"new")
        else:
            with pytest.raises(ReadOnly):
                await file.write(0, b"new")
        return
    with pytest.raises(outcome):
        await root.open(what, flags)
    assert await names_of(root) == before
    assert await content_of(root, "file") == b"old"


@pytest.mark.parametrize(
    "flags",
    [CREATE, TRUNCATE, EXCLUSIVE, CREATE | EXCLUSIVE, WRITE | EXCLUSIVE, OpenFlags(16)],
)
async def test_flags_that_make_no_sense(root: DirectoryNode, flags: OpenFlags) -> None:
    await populate(root, {"file": b"old"})
    for name in ("file", "missing"):
        with pytest.raises(InvalidArgument):
            await root.open(name, flags)
    assert await content_of(root, "file") == b"old"
    assert await names_of(root) == ["file"]


async def test_a_file_that_was_opened_for_reading_only_reads(root: DirectoryNode) -> None:
    await populate(root, {"file": b"old"})
    file = await root.open("file")
    with pytest.raises(ReadOnly):
        await file.write(0, b"x")
    with pytest.raises(ReadOnly):
        await file.append(b"x")
    with pytest.raises(ReadOnly):
        await file.truncate(0)
    with pytest.raises(ReadOnly):
        await file.set_attributes(Attributes(executable=True))
    assert await everything(file) == b"old"


async def test_create_does_not_replace(root: DirectoryNode) -> None:
    await populate(root, {"file": b"old", "directory": {}, "link": Link("nowhere")})
    for name in ("file", "directory", "link"):
        with pytest.raises(AlreadyExists):
            await root.create(name)
    assert await content_of(root, "file") == b"old"


async def test_create_executable(harness: Harness) -> None:
    if not harness.executable:
        pytest.skip("no executable bit")
    file = await harness.root.create("x", executable=True)
    assert (await file.stat()).executable
    assert (await harness.root.lookup("x")).stat.executable
    await harness.root.create("y")
    assert not (await harness.root.lookup("y")).stat.executable


async def test_an_open_file_outlives_its_name(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    reader = await root.open("f")
    await root.remove("f")
    await file.write(3, b"def")
    assert await everything(reader) == b"abcdef"
    assert (await file.stat()).link_count == 0
    await root.create("f")
    assert await content_of(root, "f") == b""
    assert await everything(file) == b"abcdef"


async def test_an_open_file_outlives_being_replaced(root: DirectoryNode) -> None:
    await populate(root, {"old": b"old", "new": b"new"})
    file = await root.open("old", WRITE)
    await root.rename("new", root, "old")
    assert await everything(file) == b"old"
    await file.write(0, b"xxx")
    assert await content_of(root, "old") == b"new"


async def test_an_open_file_follows_its_renaming(root: DirectoryNode) -> None:
    await populate(root, {"a": {}, "b": {}})
    a, b = await root.sub("a"), await root.sub("b")
    file = await a.create("f")
    await a.rename("f", b, "g")
    await root.rename("b", root, "c")
    await file.write(0, b"moved")
    assert await content_of(await root.sub("c"), "g") == b"moved"


async def test_two_handles_see_one_file(root: DirectoryNode) -> None:
    one = await root.create("f")
    two = await root.open("f", WRITE)
    await one.write(0, b"abc")
    assert await everything(two) == b"abc"
    await two.truncate(1)
    assert await one.size() == 1


async def test_a_closed_file_answers_closed(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    other = await root.open("f", WRITE)
    await file.close()
    await file.close()
    with pytest.raises(Closed):
        await file.read_into(0, memoryview(bytearray(1)))
    with pytest.raises(Closed):
        await file.read(0, 1)
    with pytest.raises(Closed):
        await file.write(0, b"x")
    with pytest.raises(Closed):
        await file.append(b"x")
    with pytest.raises(Closed):
        await file.truncate(0)
    with pytest.raises(Closed):
        await file.set_attributes(Attributes(executable=True))
    with pytest.raises(Closed):
        await file.sync()
    assert await everything(other) == b"abc"


async def test_sync_of_a_file(root: DirectoryNode) -> None:
    file = await root.create("f")
    await file.write(0, b"abc")
    await file.sync()
    assert await everything(file) == b"abc"
    await root.remove("f")
    await file.sync()
