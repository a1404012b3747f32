"""A call of every method of the schema, and a scene to make them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import OpenFlags
from capstore.backers.store import Binding
from capstore.service.client import open_connection
from capstore.service.policy import Policy
from capstore.service.remote import Attenuable, Directory, answer_of
from capstore.service.remote_store import RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving
from tests.service.observed import traced_only
from tests.service.policed import picture


@dataclass(frozen=True)
class Asked:
    """What a call is made with: names by parameter, and data."""

    names: Mapping[str, str]
    data: bytes

    def name(self, parameter: str = "name") -> str:
        return self.names[parameter]

    def key(self, parameter: str = "key") -> bytes:
        return self.names[parameter].encode()


Call = Callable[[Any, Asked], Awaitable[object]]


@dataclass(frozen=True)
class Way:
    """How a method is called, and with what names where nothing else is asked for."""

    call: Call
    names: Mapping[str, str]


def way(call: Call, **names: str) -> Way:
    return Way(call, names)


def ask(method: str, *positional: str, **fields: Any) -> Call:
    """A call that takes the names `positional` from what is asked for, and `fields`."""

    async def call(cap: Attenuable, asked: Asked) -> object:
        request = getattr(cap.raw, f"{method}_request")()
        for parameter in positional:
            is_key = parameter == "key"
            setattr(request, parameter, asked.key() if is_key else asked.name(parameter))
        for field, value in fields.items():
            setattr(request, field, asked.data if value is DATA else value)
        return await answer_of(request.send())

    return call


DATA = object()


async def _batch(cap: RemoteStore, asked: Asked) -> object:
    request = cap.raw.batch_request()
    item = request.init("items", 1)[0]
    item.key, item.put = asked.key("items"), asked.data
    return await answer_of(request.send())


async def _move(cap: Directory, asked: Asked, method: str) -> object:
    request = getattr(cap.raw, f"{method}_request")()
    request.name, request.target, request.newName = asked.name(), cap.raw, asked.name("newName")
    return await answer_of(request.send())


async def _rename(cap: Directory, asked: Asked) -> object:
    return await _move(cap, asked, "rename")


async def _link(cap: Directory, asked: Asked) -> object:
    return await _move(cap, asked, "link")


async def _bind(cap: Any, asked: Asked) -> object:
    request = cap.raw.bind_request()
    request.name = asked.name()
    request.init("binding").hash = HASH
    return await answer_of(request.send())


async def _set(cap: Any, asked: Asked) -> object:
    request = cap.raw.setAttributes_request()
    if "name" in asked.names:
        request.name = asked.name()
    change = request.init("attributes")
    change.setExecutable = change.executable = True
    return await answer_of(request.send())


async def _attenuate(cap: Any, asked: Asked) -> object:
    return await cap.attenuate(Policy())


async def _watch(cap: Directory, asked: Asked) -> object:
    async with cap.watch():
        return None


class _Sink(Attenuable):
    """A put in pieces as the schema has it, with whatever beginning it answered."""


def derived(method: str) -> Way:
    return way(ask(method))


CALLS: dict[tuple[str, str], Way] = {
    ("File", "read"): way(ask("read", length=10)),
    ("File", "write"): way(ask("write", offset=7, data=DATA)),
    ("File", "stat"): derived("stat"),
    ("File", "truncate"): way(ask("truncate", size=100)),
    ("File", "sync"): derived("sync"),
    ("File", "close"): derived("close"),
    ("File", "append"): way(ask("append", data=DATA)),
    ("File", "readOnly"): derived("readOnly"),
    ("File", "attenuate"): way(_attenuate),
    ("File", "setAttributes"): way(_set),
    ("File", "save"): way(ask("save", label="x")),
    ("Directory", "open"): way(ask("open", "name"), name="f"),
    ("Directory", "list"): way(ask("list", limit=2)),
    ("Directory", "mkdir"): way(ask("mkdir", "name"), name="new"),
    ("Directory", "remove"): way(ask("remove", "name"), name="f"),
    ("Directory", "sub"): way(ask("sub", "name"), name="d"),
    ("Directory", "create"): way(ask("create", "name"), name="new"),
    ("Directory", "rename"): way(_rename, name="f", newName="new"),
    ("Directory", "lookup"): way(ask("lookup", "name"), name="f"),
    ("Directory", "stat"): derived("stat"),
    ("Directory", "readOnly"): derived("readOnly"),
    ("Directory", "attenuate"): way(_attenuate),
    ("Directory", "sync"): derived("sync"),
    ("Directory", "symlink"): way(ask("symlink", "name", target="elsewhere"), name="new"),
    ("Directory", "link"): way(_link, name="f", newName="new"),
    ("Directory", "setAttributes"): way(_set, name="f"),
    ("Directory", "usage"): derived("usage"),
    ("Directory", "snapshot"): derived("snapshot"),
    ("Directory", "watch"): way(_watch),
    ("Directory", "ticket"): derived("ticket"),
    ("Directory", "save"): way(ask("save", label="x")),
    ("Store", "put"): way(ask("put", "key", data=DATA), key="new"),
    ("Store", "get"): way(ask("get", "key"), key="f"),
    ("Store", "has"): way(ask("has", "key"), key="f"),
    ("Store", "delete"): way(ask("delete", "key"), key="f"),
    ("Store", "list"): way(ask("list", limit=2)),
    ("Store", "stat"): way(ask("stat", "key"), key="f"),
    ("Store", "read"): way(ask("read", "key", length=3), key="f"),
    ("Store", "begin"): way(ask("begin", "key", size=8), key="new"),
    ("Store", "batch"): way(_batch, items="new"),
    ("Store", "sync"): derived("sync"),
    ("Store", "usage"): derived("usage"),
    ("Store", "getOnly"): derived("getOnly"),
    ("Store", "putOnly"): derived("putOnly"),
    ("Store", "subStore"): way(ask("subStore", prefix=b"x")),
    ("Store", "attenuate"): way(_attenuate),
    ("Store", "ticket"): derived("ticket"),
    ("Store", "save"): way(ask("save", label="x")),
    ("Store", "compact"): derived("compact"),
    ("Store", "collect"): derived("collect"),
    ("Store", "namespace"): derived("namespace"),
    ("Sink", "write"): way(ask("write", data=DATA)),
    ("Sink", "commit"): derived("commit"),
    ("Sink", "abort"): derived("abort"),
    ("Namespace", "resolve"): way(ask("resolve", "name"), name="f"),
    ("Namespace", "bind"): way(_bind, name="new"),
    ("Namespace", "unbind"): way(ask("unbind", "name"), name="f"),
    ("Namespace", "list"): way(ask("list", limit=2)),
    ("Namespace", "sub"): way(ask("sub", "name"), name="d"),
    ("Namespace", "save"): way(ask("save", label="x")),
}
CONTENT, HIDDEN = b"content", "hidden-"


class Scene:
    """A service with a tree and a store that are made anew for each call."""

    def __init__(self, volume: MemoryVolume, model: ModelStore, roots: Mapping[str, Any]) -> None:
        self.volume = volume
        self.model = model
        self._roots = roots
        self._number = 0
        self._path = ""

    async def reset(self) -> None:
        self._number += 1
        self._path = str(self._number)
        top = await self.volume.root.mkdir(self._path)
        self.real = top
        for prefix in ("", HIDDEN):
            await (await top.create(prefix + "f")).write(0, CONTENT)
            await (await (await top.mkdir(prefix + "d")).create("below")).write(0, CONTENT)
            await top.symlink(prefix + "l", "f")
        self.model.state.objects.clear()
        self.model.state.names.clear()
        for prefix in ("", HIDDEN):
            await self.model.put(CONTENT, f"{prefix}f".encode())
            await self.model.put(CONTENT, f"{prefix}g".encode())
        global HASH
        HASH = (await self.model.put(b"bound")).key
        for name in ("f", "g", HIDDEN + "f"):
            await self.model.names.bind(Binding(name, hash=HASH))

    async def whole(self, interface: str) -> Any:
        """What is attenuated for a call of `interface`."""
        if interface in ("Store", "Sink", "Namespace"):
            return self._roots["s"]
        top = await self._roots["m"].sub(self._path)
        return await top.open("f", OpenFlags.WRITE) if interface == "File" else top

    async def picture(self) -> object:
        names = sorted(self.model.state.names.items())
        objects = {key: each.data for key, each in self.model.state.objects.items()}
        return await picture(self.real), names, objects


HASH = b""


@asynccontextmanager
async def the_scene() -> AsyncIterator[Scene]:
    volume, model = await MemoryVolume.open(), ModelStore()
    async with (
        serving({"m": volume, "s": model}, observers=traced_only()) as served,
        open_connection(served.unix["m"]) as tree,
        open_connection(served.unix["s"]) as store,
    ):
        roots = {"m": await tree.root(), "s": await store.root()}
        yield Scene(volume, model, roots)


async def reached(interface: str, cap: Any) -> Any:
    """The capability of `interface` that `cap` leads to; a broken one says why it is."""
    if interface == "Sink":
        request = cap.raw.begin_request()
        request.key = b"sink"
        return _Sink(request.send().sink)
    if interface == "Namespace":
        return _Sink(cap.raw.namespace().namespace)
    return cap


def asked(way: Way, /, **other: str) -> Asked:
    return Asked({**way.names, **other}, b"12345678")
