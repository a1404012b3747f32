"""Real sessions for the fuzzer of the wire: what a client sends that tries every method.

Invariants: nothing in a session waits for an answer (calls are made on promised results), so its
bytes mean the same whenever they are sent again, in one piece or in many.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import capnp

from capstore.schema import wire
from capstore.service.frames import frame_at
from capstore.service.loop import kj_loop_running
from capstore.service.transport import Transport, protocol_with

_TURNS: Final = 20
# Stands where a session has its token, and is as long.
TOKEN: Final = "T" * 43


@dataclass(frozen=True, slots=True)
class Session:
    """What a client sends, in messages; `volume` says of which volume the token is."""

    name: str
    volume: str
    frames: tuple[bytes, ...]

    def with_token(self, token: str) -> list[bytes]:
        """The same session of a client that has `token`."""
        return [frame.replace(TOKEN.encode(), token.encode()) for frame in self.frames]


class _Tour:
    """Makes calls and keeps their promises."""

    def __init__(self, gate: Any, token: str) -> None:
        self.gate = gate
        self.token = token
        self.promises: list[Any] = []

    def ask(self, capability: Any, method: str, **fields: Any) -> Any:
        """Makes a call."""
        request = getattr(capability, f"{method}_request")()
        for field, value in fields.items():
            if isinstance(value, dict):
                struct = request.init(field)
                for name, part in value.items():
                    setattr(struct, name, part)
            else:
                setattr(request, field, value)
        promise = request.send()
        self.promises.append(promise)
        return promise

    def restored(self, interface: Any) -> Any:
        """What the token stands for."""
        return self.ask(self.gate, "restore", token=self.token).capability.cast_as(interface)


def _names(tour: _Tour) -> None:
    root = tour.restored(wire.Directory)
    below = tour.ask(root, "mkdir", name="a").directory
    below = tour.ask(below, "mkdir", name="b").directory
    tour.ask(below, "create", name="f", executable=True)
    tour.ask(below, "symlink", name="l", target="../x")
    tour.ask(below, "link", name="f", target=root, newName="g")
    tour.ask(below, "rename", name="f", target=root, newName="h", mode="exchange")
    tour.ask(root, "rename", name="g", target=below, newName="f")
    for method, fields in (
        ("lookup", {"name": "f"}),
        ("list", {"limit": 3}),
        ("list", {"cursor": b"a"}),
        ("stat", {}),
        ("sync", {}),
        ("usage", {}),
        ("ticket", {}),
        ("setAttributes", {"name": "f", "attributes": {"setModified": True, "modified": 5}}),
        ("remove", {"name": "l", "expect": "notDirectory"}),
    ):
        tour.ask(below, method, **fields)
    tour.ask(tour.ask(root, "snapshot").directory, "list")
    tour.ask(tour.ask(root, "sub", name="a").directory, "remove", name="b")


def _content(tour: _Tour) -> None:
    root = tour.restored(wire.Directory)
    file = tour.ask(root, "create", name="c").file
    tour.ask(file, "write", offset=0, data=b"content" * 100)
    tour.ask(file, "write", offset=1000, data=b"x" * 20_000)
    tour.ask(file, "append", data=b"more")
    for method, fields in (
        ("read", {"offset": 0, "length": 4096}),
        ("stat", {}),
        ("truncate", {"size": 100}),
        ("setAttributes", {"attributes": {"setExecutable": True, "executable": True}}),
        ("sync", {}),
        ("close", {}),
        ("read", {"offset": 0, "length": 1}),
    ):
        tour.ask(file, method, **fields)
    opened = tour.ask(root, "open", name="c", flags=1).file
    tour.ask(tour.ask(opened, "readOnly").file, "write", data=b"no")
    tour.ask(root, "remove", name="c")


class _Watcher(wire.Watcher.Server):  # type: ignore[misc]
    async def changed_context(self, context: Any) -> None:
        """Hears nothing."""


def _authority(tour: _Tour) -> None:
    root = tour.restored(wire.Directory)
    policy = {"readOnly": True, "revocable": True, "expiresAt": 1 << 62, "fieldsKnown": 8}
    made = tour.ask(root, "attenuate", policy=policy)
    tour.ask(made.directory, "mkdir", name="no")
    tour.ask(made.revoker, "status")
    tour.ask(made.directory, "save", label="saved")
    tour.ask(made.revoker, "revoke")
    tour.ask(made.directory, "list")
    quota = {"maxBytes": 1000, "maxNodes": 5, "callsPerSecond": 50, "fieldsKnown": 8}
    narrow = tour.ask(root, "attenuate", policy=quota).directory
    tour.ask(tour.ask(narrow, "create", name="q").file, "write", data=b"y" * 2000)
    tour.ask(tour.ask(root, "readOnly").directory, "save", label="again")
    tour.ask(tour.gate, "restore", token="A" * 43)
    tour.ask(tour.gate, "info")
    control = tour.ask(tour.gate, "reference", token=tour.token).reference
    tour.ask(control, "status")
    tour.ask(control, "list", limit=2)
    tour.ask(control, "revoke", id=1 << 40)
    tour.ask(root, "watch")
    watch = tour.ask(root, "watch", watcher=_Watcher()).watch
    tour.ask(root, "mkdir", name="watched")
    tour.ask(root, "remove", name="watched")
    tour.ask(watch, "close")


def _objects(tour: _Tour) -> None:
    store = tour.restored(wire.Store)
    tour.ask(store, "put", data=b"data" * 50, key=b"k", condition={"absent": None})
    tour.ask(store, "put", data=b"by hash")
    for method, fields in (
        ("get", {"key": b"k"}),
        ("has", {"key": b"k"}),
        ("list", {"prefix": b"k", "limit": 2}),
        ("stat", {"key": b"k"}),
        ("read", {"key": b"k", "offset": 2, "length": 100}),
        ("sync", {}),
        ("usage", {}),
        ("delete", {"key": b"k", "condition": {"version": 1}}),
        ("ticket", {}),
        ("save", {"label": "s"}),
        ("collect", {"olderThan": 1 << 40}),
    ):
        tour.ask(store, method, **fields)
    request = store.batch_request()
    items = request.init("items", 2)
    items[0].key, items[0].put = b"b", b"batched"
    items[1].key, items[1].delete = b"b", None
    tour.promises.append(request.send())
    sink = tour.ask(store, "begin", key=b"s", size=300).sink
    for _ in range(3):
        tour.ask(sink, "write", data=b"z" * 100)
    tour.ask(sink, "commit")
    tour.ask(sink, "abort")


def _names_of_objects(tour: _Tour) -> None:
    store = tour.restored(wire.Store)
    policy = {"maxBytes": 5000, "callsPerSecond": 9, "fieldsKnown": 8}
    tour.ask(tour.ask(store, "attenuate", policy=policy).store, "put", data=b"x", key=b"q")
    tour.ask(tour.ask(store, "getOnly").store, "put", data=b"no", key=b"n")
    tour.ask(tour.ask(store, "putOnly").store, "put", data=b"drop", key=b"d")
    part = tour.ask(store, "subStore", prefix=b"p/").store
    tour.ask(part, "put", data=b"x", key=b"1")
    tour.ask(part, "list")
    names = tour.ask(store, "namespace").namespace
    tour.ask(names, "bind", name="n", binding={"hash": b"h" * 32}, token="")
    tour.ask(names, "bind", name="r", binding={"reference": 0}, token=tour.token)
    lent = tour.ask(names, "resolve", name="r").capability.cast_as(wire.Store)
    tour.ask(lent, "get", key=b"k")
    tour.ask(names, "list", limit=2)
    tour.ask(names, "save", label="n")
    tour.ask(tour.ask(names, "sub", name="n").namespace, "resolve", name="x")
    tour.ask(names, "unbind", name="r")


_TOURS: Final[Mapping[str, tuple[str, Callable[[_Tour], None]]]] = {
    "names": ("tree", _names),
    "content": ("tree", _content),
    "authority": ("tree", _authority),
    "objects": ("objects", _objects),
    "bindings": ("objects", _names_of_objects),
}


class _Recording(Transport):
    """Keeps what is written."""

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.written = bytearray()

    def pass_on(self, data: bytes) -> None:
        self.written += data
        super().pass_on(data)


async def recorded(socket: str, tokens: Mapping[str, str]) -> list[Session]:
    """The sessions, as they were led with a service at `socket`; `tokens` by volume."""
    sessions = []
    async with kj_loop_running():
        for name, (volume, tour) in _TOURS.items():
            data = await _led(socket, tokens[volume], tour)
            data = data.replace(tokens[volume].encode(), TOKEN.encode())
            sessions.append(Session(name, volume, tuple(split(data))))
    return sessions


async def _led(socket: str, token: str, tour: Callable[[_Tour], None]) -> bytes:
    streams: list[capnp.AsyncIoStream] = []
    protocol = protocol_with(_Recording, streams.append)
    await asyncio.get_running_loop().create_unix_connection(lambda: protocol, socket)
    transport = protocol.transport
    rpc = capnp.TwoPartyClient(streams[0])
    led = _Tour(rpc.bootstrap().cast_as(wire.Gate), token)
    try:
        tour(led)
        for promise in led.promises:
            await promise
        led.promises.clear()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return bytes(transport.written)
    finally:
        rpc.close()
        transport.abort()


def split(data: bytes) -> list[bytes]:
    """A stream of messages, one by one."""
    frames, at = [], 0
    while (frame := frame_at(data, at, len(data))) is not None:
        frames.append(data[at : at + frame.size])
        at += frame.size
    return frames


def count(sessions: list[Session]) -> int:
    """How many messages there are."""
    return sum(len(session.frames) for session in itertools.chain(sessions))
