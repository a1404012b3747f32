"""The text of ``mounts:``: how it is taken apart, opened, and closed again."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import open_mounts, parse_mounts
from capstore.backers.node import Volume
from capstore.schema.errors import InvalidArgument, NotFound, StorageError
from tests.contract.harness import names_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("argument", "mounts"),
    [
        ("/=memory:", {"/": "memory:"}),
        ("/=A,/tmp=B", {"/": "A", "/tmp": "B"}),
        ("/tmp=B,/=A", {"/tmp": "B", "/": "A"}),
        (
            "/=tar:base.tar,/tmp=memory:,max-bytes=1MiB,/home=dir:home,ro",
            {"/": "tar:base.tar", "/tmp": "memory:,max-bytes=1MiB", "/home": "dir:home,ro"},
        ),
        ("/=dir:/a/b,/a/b=dir:/c", {"/": "dir:/a/b", "/a/b": "dir:/c"}),
        ("/=pyfs:ftp://h/a=b,/x=y=z", {"/": "pyfs:ftp://h/a=b", "/x": "y=z"}),
        ("/=overlay:a,create+b,/x=c", {"/": "overlay:a,create+b", "/x": "c"}),
        # A component is handed on as it stands, escapes included, which are its own.
        (r"/=dir:a\,/b,ro,/x=c", {"/": r"dir:a\,/b,ro", "/x": "c"}),
        (r"/=dir:a\\,/x=c", {"/": r"dir:a\\", "/x": "c"}),
        (r"/=dir:a\\\,/x=c", {"/": r"dir:a\\\,/x=c"}),
        ("/=dir:a,,b,", {"/": "dir:a,,b,"}),
        ("/=dir:a\n,/x=\\", {"/": "dir:a\n", "/x": "\\"}),
        # In a prefix they are dropped.
        (r"/=a,/x\=y\,z\\=c", {"/": "a", r"/x=y,z" + "\\": "c"}),
        (r"/=a,/x\,/y=c", {"/": "a", "/x,/y": "c"}),
        ("/=a,/é\nb=c", {"/": "a", "/é\nb": "c"}),
        (f"/=a,{'/é' * 1365}=c", {"/": "a", "/é" * 1365: "c"}),
    ],
)
def test_taking_apart(argument: str, mounts: dict[str, str]) -> None:
    assert parse_mounts(argument) == mounts


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "number 1 is no mount"),
        ("memory:", "number 1 is no mount"),
        ("/=a,/b", "number 2 is no mount"),
        (r"/=a,/b\=c", "number 2 is no mount"),
        ("=a", 'the prefix "" is no absolute path'),
        ("tmp=a,/=b", 'the prefix "tmp" is no absolute path'),
        ("./=a", 'the prefix "./" is no absolute path'),
        ("/tmp=a", 'nothing is mounted at "/"'),
        ("/=a,/tmp=b,/tmp=c", 'the prefix "/tmp" comes twice'),
        (r"/=a,/tmp=b,/t\mp=c", 'the prefix "/tmp" comes twice'),
        ("/=a,/=b", 'the prefix "/" comes twice'),
        ("/=,/tmp=b", 'nothing is said of what is mounted at "/"'),
        ("/=a,/.=b", 'in the prefix "/."'),
        ("/=a,/b/../c=d", 'in the prefix "/b/../c"'),
        ("/=a,/b//c=d", 'in the prefix "/b//c"'),
        ("/=a,//=d", 'in the prefix "//"'),
        ("/=a,/b/=d", 'in the prefix "/b/"'),
        ("/=a,/b\0=d", "in the prefix"),
        ("/=a,/\ud800=d", "in the prefix"),
        (f"/=a,/{'x' * 256}=d", "at most 255 bytes"),
        (f"/=a,{'/é' * 1365}a=d", "at most 4095 bytes"),
        ("/=a" + "".join(f",/{number}=b" for number in range(255)), "at most 255 volumes"),
    ],
)
def test_what_is_refused(argument: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message.replace(".", r"\.")):
        parse_mounts(argument)


def test_a_refusal_shows_no_specification() -> None:
    for argument in ("pyfs:ftp://me:secret@host", "/=pyfs:ftp://me:secret@host,/a", "/=secret,/=b"):
        with pytest.raises(InvalidArgument) as caught:
            parse_mounts(argument)
        assert "secret" not in caught.value.message


# Opening -----------------------------------------------------------------------------------------


class Watched(MemoryVolume):
    """Knows whether it was closed, and may be slow or fail in it."""

    fails = False

    async def close(self) -> None:
        await asyncio.sleep(0.001)
        await super().close()
        if self.fails:
            raise NotFound("failed to close")


async def test_components_are_opened_by_their_specifications() -> None:
    async def opener(text: str) -> Volume:
        return await MemoryVolume.open(nodes_max=len(text))

    volume = await open_mounts("/=seven:7,/tmp=nine:,nn9", opener)
    assert (await volume.usage()).total_nodes == 7
    assert (await (await volume.root.sub("tmp")).usage()).total_nodes == 9
    assert await names_of(volume.root) == ["tmp"]
    await volume.close()


async def test_nothing_is_opened_for_what_is_refused() -> None:
    async def opener(text: str) -> Volume:
        raise AssertionError(text)

    with pytest.raises(InvalidArgument):
        await open_mounts("/=a,/tmp=b,/tmp=c", opener)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_opened_is_closed_when_another_one_fails(fails: bool) -> None:
    opened: list[Watched] = []

    async def opener(text: str) -> Volume:
        if text == "c":
            raise StorageError("no such thing")
        opened.append(await Watched.open())
        opened[-1].fails = fails
        return opened[-1]

    with pytest.raises(StorageError, match="no such thing"):
        await open_mounts("/=a,/b=b,/c=c", opener)
    assert [volume.closed for volume in opened] == [True, True]


async def test_a_volume_that_is_opened_twice_is_closed() -> None:
    one = await Watched.open()

    async def opener(text: str) -> Volume:
        return one

    with pytest.raises(InvalidArgument, match="at one prefix only"):
        await open_mounts("/=a,/b=a", opener)
    assert one.closed


async def test_what_was_opened_is_closed_when_the_caller_is_cancelled() -> None:
    """Also when he is cancelled again meanwhile."""
    opened: list[Watched] = []
    third = asyncio.Event()

    async def opener(text: str) -> Volume:
        if text == "c":
            third.set()
            await asyncio.sleep(3600)
        opened.append(await Watched.open())
        return opened[-1]

    task = asyncio.create_task(open_mounts("/=a,/b=b,/c=c", opener))
    await third.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [volume.closed for volume in opened] == [True, True]


async def test_what_was_opened_is_closed_in_a_cancelled_scope() -> None:
    opened: list[Watched] = []

    async def opener(text: str) -> Volume:
        if text == "b":
            await anyio.sleep_forever()
        opened.append(await Watched.open())
        return opened[-1]

    with anyio.move_on_after(0.01) as scope:
        await open_mounts("/=a,/b=b", opener)
    assert scope.cancelled_caught
    assert opened[0].closed
