"""Names in a store that lend a saved reference: what they give, and when that ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capstore.backers.store import Binding
from capstore.schema.errors import Denied, NotFound, ReadOnly, Revoked, StorageError
from capstore.service.client import open_connection
from capstore.service.grants import Policy
from capstore.service.remote import Directory, answer_of
from capstore.service.remote_store import RemoteNamespace, RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.inprocess import Served
from tests.service.policed import code_of

pytestmark = pytest.mark.anyio


async def test_a_name_for_a_saved_capability(store: RemoteStore, served: Served) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root = await connection.root()
        assert isinstance(root, Directory)
        await root.write_file("f", b"content")
        directory = await root.save("directory")
        part: Any = await store.sub_store(b"a/")
        names = store.names
        await names.bind_token("directory", directory)
        await names.bind_token("part", await part.save("part"))
        await names.bind_token("names", await (await names.sub("deep")).save("names"))
        binding, found = await names.resolve_capability("directory")
        assert binding.reference
        assert isinstance(found, Directory)
        assert (await found.read_file("f"))[0] == b"content"
        _, found = await names.resolve_capability("part")
        assert isinstance(found, RemoteStore)
        await found.put(b"x", b"1")
        assert await store.get(b"a/1") == b"x"
        _, found = await names.resolve_capability("names")
        assert isinstance(found, RemoteNamespace)
        with pytest.raises(NotFound):
            await names.resolve_capability("missing")
        # The end of the reference is the end of what the name gives.
        control = await connection.reference(directory)
        _, live = await names.resolve_capability("directory")
        assert isinstance(live, Directory)
        await control.revoke((await control.status()).id)
        assert await code_of(live.list()) == Revoked.code
        assert await code_of(names.resolve_capability("directory")) == NotFound.code
        assert (await names.list()).bindings[0].name == "directory"


async def test_what_a_name_gives_has_no_more_than_the_namespace(
    store: RemoteStore, served: Served
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        await root.write_file("f", b"content")
        names = store.names
        await names.bind_token("d", await root.save(""))
        reading = (await store.read_only()).names
        _, found = await reading.resolve_capability("d")
        assert isinstance(found, Directory)
        assert (await found.read_file("f"))[0] == b"content"
        assert await code_of(found.mkdir("x")) == ReadOnly.code
        assert await code_of((await found.open("f")).save()) == Denied.code
        for each in (found, (await names.resolve_capability("d"))[1]):
            assert isinstance(each, Directory)
            assert await code_of(each.save()) == Denied.code
        narrowed = await store.attenuate(Policy(), revocable=True)
        _, lent = await narrowed.capability.names.resolve_capability("d")
        assert isinstance(lent, Directory)
        deeper = await lent.read_only()
        assert narrowed.revoker is not None
        await narrowed.revoker.revoke()
        for each in (lent, deeper):
            assert await code_of(each.list()) == Revoked.code
        await root.list()


async def test_binding_a_reference_takes_authority_over_it(
    store: RemoteStore, served: Served
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        others = await root.save("others")
        control = await connection.reference(others)
        other = (await control.status()).id
        mine = await store.save("mine")
        below = (await (await connection.reference(mine)).status()).id
        names = store.names
        # Who restored the store may name what was saved below it; nobody else, by number.
        await names.bind(Binding("mine", reference=below))
        for call in (
            names.bind(Binding("n", reference=other)),
            names.bind(Binding("n", reference=0)),
            names.bind(Binding("n", reference=10**6)),
            names.bind_token("n", "A" * 43),
            names.bind_token("n", others[:-1]),
            (await names.sub("below")).bind(Binding("n", reference=below)),
            (await store.attenuate(Policy(calls_per_second=9000))).capability.names.bind(
                Binding("n", reference=below)
            ),
        ):
            assert await code_of(call) == Denied.code
        # A token of another reference than the id says.
        request = names.raw.bind_request()
        request.name, request.token = "n", others
        request.binding.reference = below
        assert await code_of(answer_of(request.send())) == Denied.code
        # A restored namespace may name what was saved from it.
        restored_names: Any = await connection.restore(await names.save("names"))
        assert await code_of(restored_names.bind(Binding("n", reference=below))) == Denied.code
        child = await restored_names.save("child")
        child_id = (await (await connection.reference(child)).status()).id
        await restored_names.bind(Binding("child", reference=child_id))
        assert [each.name for each in (await names.list()).bindings] == ["child", "mine"]


async def test_what_was_saved_below_a_live_capability_is_not_bound_by_number(
    store: RemoteStore, served: Served
) -> None:
    """Saving below one with a rate gives it a reference of its own, from which nobody restored."""
    async with open_connection(served.unix["m"]) as connection:
        live: Any = (await store.attenuate(Policy(calls_per_second=9000))).capability
        token = await live.save("below")
        number = (await (await connection.reference(token)).status()).id
        assert await code_of(live.names.bind(Binding("n", reference=number))) == Denied.code
        await live.names.bind_token("n", token)


async def test_a_number_in_the_store_is_no_authority(
    store: RemoteStore, served: Served, model: ModelStore
) -> None:
    async with open_connection(served.unix["m"]) as connection:
        root: Any = await connection.root()
        control = await connection.reference(await root.save("others"))
        other = (await control.status()).id
        # As if the image had come from elsewhere, with numbers of its own.
        for number in (other, 1, 2, 10**9):
            await model.names.bind(Binding("n", reference=number))
            assert await code_of(store.names.resolve_capability("n")) == NotFound.code


async def test_names_that_lend_each_other_end_in_time(store: RemoteStore) -> None:
    names = store.names
    await names.bind_token("self", await store.save(""))
    holder: Any = store
    with pytest.raises(StorageError):
        for _ in range(100):
            _, holder = await holder.names.resolve_capability("self")
    narrowed = await store.attenuate(Policy(), revocable=True)
    _, lent = await narrowed.capability.names.resolve_capability("self")
    for _ in range(20):
        _, lent = await lent.names.resolve_capability("self")
    assert narrowed.revoker is not None
    async with asyncio.timeout(5):
        assert (await narrowed.revoker.status())[1] >= 1
        await narrowed.revoker.revoke()
    assert await code_of(lent.list()) == Revoked.code
