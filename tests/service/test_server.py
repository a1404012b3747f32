"""Listening, and stopping in order."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, FileNode
from capstore.schema.errors import Busy, Closed, InvalidArgument, StorageIOError
from capstore.service.client import connect
from capstore.service.listening import bound_tcp
from capstore.service.remote import Directory
from capstore.service.server import start
from capstore.service.state import StateDirectory
from tests.service.inprocess import serving

pytestmark = pytest.mark.anyio


async def test_a_stale_socket_is_replaced_and_removed_at_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving({"m": await MemoryVolume.open()}, folder=tmp_path) as served:
        async with connect(served.unix["m"]) as root:
            await root.stat()
    assert not path.exists()


async def test_a_socket_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        with pytest.raises(Busy):
            async with serving({"m": await MemoryVolume.open()}, folder=tmp_path):
                pass
        assert (tmp_path / "socket").exists()


async def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    with pytest.raises(Busy):
        async with serving({"m": await MemoryVolume.open()}, folder=tmp_path):
            pass
    assert (tmp_path / "socket").read_text() == "precious"


async def test_a_socket_path_too_long_says_so(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    async with start({"m": await MemoryVolume.open()}, state) as service:
        with pytest.raises(InvalidArgument, match="107 bytes"):
            await service.listen_unix(tmp_path / ("x" * 120))


async def test_a_port_in_use_is_busy(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        state = StateDirectory.open(tmp_path / "state")
        async with start({"m": await MemoryVolume.open()}, state) as service:
            with pytest.raises(Busy):
                await service.listen_tls("127.0.0.1", other.getsockname()[1])


async def test_the_key_stays_over_a_restart(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with serving({"m": await MemoryVolume.open()}, folder=tmp_path, tls=True) as served:
            seen.append((served.tls["m"].fingerprint, served.tls["m"].token))
    assert seen[0] == seen[1]


class FailingVolume(MemoryVolume):
    async def close(self) -> None:
        raise StorageIOError("the disk is on fire")


async def test_one_volume_that_fails_to_close_does_not_keep_the_others_open(tmp_path: Path) -> None:
    failing = await MemoryVolume.open()
    failing.__class__ = FailingVolume
    other = await MemoryVolume.open()
    with pytest.raises(StorageIOError, match="on fire"):
        async with serving({"a": failing, "b": other}, folder=tmp_path):
            pass
    with pytest.raises(Closed):
        await other.root.stat()
    StateDirectory.open(tmp_path / "state").close()


class SlowVolume(MemoryVolume):
    """Its root makes directories slowly and cannot be hurried, as a disk cannot."""

    made = False
    began: asyncio.Event

    @property
    def root(self) -> DirectoryNode:
        return _SlowRoot(self)  # type: ignore[abstract]

    async def close(self) -> None:
        assert self.made, "closed under a change that was under way"
        await super().close()


class _SlowRoot(DirectoryNode):
    def __init__(self, volume: SlowVolume) -> None:
        self._volume = volume

    async def mkdir(self, name: str) -> DirectoryNode:
        self._volume.began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            self._volume.made = True
            raise
        raise AssertionError

    async def _not_here(self, *args: object, **more: object) -> FileNode:
        raise AssertionError

    lookup = list = open = create = sub = remove = rename = symlink = link = _not_here  # type: ignore[assignment]
    set_attributes = usage = stat = sync = _not_here  # type: ignore[assignment]


async def test_a_change_under_way_ends_before_the_volume_is_closed(tmp_path: Path) -> None:
    volume = await MemoryVolume.open()
    volume.__class__ = SlowVolume
    assert isinstance(volume, SlowVolume)
    volume.began = asyncio.Event()
    async with serving({"m": volume}, folder=tmp_path) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            making = asyncio.ensure_future(root.mkdir("x"))
            await volume.began.wait()
            await served.service.stop()
            with pytest.raises(Exception, match="connection"):
                await making


async def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    async with serving({"m": await MemoryVolume.open()}, folder=tmp_path) as served:
        await served.service.stop()
        await served.service.stop()


async def test_answers_over_tcp_are_not_held_back() -> None:
    """By Nagle's algorithm, which asyncio switches off only for what it knows to be TCP."""
    loop = asyncio.get_running_loop()
    (listening,) = await bound_tcp("127.0.0.1", 0)
    listening.listen()
    with listening, socket.create_connection(listening.getsockname()):
        accepted, _ = await loop.sock_accept(listening)
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
        sent = transport.get_extra_info("socket")
        assert sent.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        await asyncio.sleep(0)
