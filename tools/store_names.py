"""Names over a store: `bind`, `unbind`, `resolve`, `names`.

Invariants: a path of names leads through namespaces to a name in the last one; every name of it is
checked before anything is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from capstore.backers.store import Binding, Condition, Namespace, ObjectStore
from capstore.schema.errors import InvalidArgument, StorageError
from capstore.service.object_streams import binding_pages, namespace_at
from capstore.service.remote_store import RemoteNamespace
from capstore.service.uri import CapabilityURI, split_path
from capstore.tools.console import about, out, out_json, printable
from capstore.tools.location import same_service
from capstore.tools.store_objects import opened_thing, out_json_pages

# The hash of a content, the id of a saved reference, or the URI of one.
Target = bytes | int | CapabilityURI


@asynccontextmanager
async def _names_of(uri: CapabilityURI) -> AsyncIterator[Namespace]:
    """The names over the store of `uri`, or those that it stands for itself."""
    async with opened_thing(uri) as thing:
        if isinstance(thing, ObjectStore):
            yield thing.names
        elif isinstance(thing, Namespace):
            yield thing
        else:
            raise InvalidArgument("the URI stands neither for a store nor for names")


@asynccontextmanager
async def _named(uri: CapabilityURI, text: str) -> AsyncIterator[tuple[Namespace, str]]:
    """The namespace that the path of names `text` leads to, and the name in it."""
    path = split_path(text)
    if not path:
        raise InvalidArgument("the name is missing")
    async with _names_of(uri) as top:
        try:
            yield await namespace_at(top, path[:-1]), path[-1]
        except StorageError as error:
            raise about(path, error) from error


async def bind(
    uri: CapabilityURI, name: str, target: Target, condition: Condition, *, json: bool
) -> None:
    """Has `name` stand for `target`."""
    async with _named(uri, name) as (names, last):
        if isinstance(target, CapabilityURI):
            version = await _bind_shared(names, uri, last, target, condition)
        else:
            digest, reference = (target, None) if isinstance(target, bytes) else (None, target)
            binding = Binding(last, hash=digest, reference=reference)
            version = await names.bind(binding, condition)
    if json:
        out_json({"name": last, "version": version})


async def _bind_shared(
    names: Namespace, uri: CapabilityURI, name: str, shared: CapabilityURI, condition: Condition
) -> int:
    if not same_service(uri, shared) or not isinstance(names, RemoteNamespace):
        raise InvalidArgument("a name stands for what its own service has saved")
    if shared.path:
        raise InvalidArgument("a name stands for what a URI stands for, not for a path below it")
    return await names.bind_token(name, shared.token, condition)


async def unbind(uri: CapabilityURI, name: str, condition: Condition) -> None:
    """Removes `name`."""
    async with _named(uri, name) as (names, last):
        await names.unbind(last, condition)


async def resolve(uri: CapabilityURI, name: str, *, json: bool) -> None:
    """Shows what `name` stands for."""
    async with _named(uri, name) as (names, last):
        binding = await names.resolve(last)
    if json:
        out_json(_json(binding))
    else:
        out(_target(binding))


async def names(uri: CapabilityURI, path: str, *, json: bool) -> None:
    """Lists the names below `path`."""
    below = split_path(path)
    async with _names_of(uri) as top:
        listed = await namespace_at(top, below)
        async with aclosing(binding_pages(listed)) as pages:
            if json:
                await out_json_pages(pages, _json)
                return
            async for bindings in pages:
                for binding in bindings:
                    out(f"{_target(binding)} {printable(binding.name)}")


def _target(binding: Binding) -> str:
    if binding.hash is not None:
        return binding.hash.hex()
    return f"reference {binding.reference}"


def _json(binding: Binding) -> dict[str, Any]:
    return {
        "name": binding.name,
        "version": binding.version,
        "hash": binding.hash.hex() if binding.hash is not None else None,
        "reference": binding.reference,
    }
