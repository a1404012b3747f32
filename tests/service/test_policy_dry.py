"""Dry runs: what they remember, what they leave alone, how they are bounded and saved."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Attributes
from capstore.backers.store import Binding, Condition, Delete, Put
from capstore.schema.errors import (
    Busy,
    Code,
    CrossVolume,
    Denied,
    InvalidArgument,
    NoSpace,
    NotFound,
    QuotaExceeded,
    Revoked,
    TooLarge,
)
from capstore.schema.limits import DRY_BYTES_MAX, DRY_RUNS_MAX
from capstore.service.authority import Authority
from capstore.service.client import connect
from capstore.service.grants import Grant, Policy, ServedVolume
from capstore.service.guard import GuardedDirectory
from capstore.service.references import ReferenceTable
from capstore.service.remote import Directory
from capstore.service.remote_store import RemoteStore
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, authority_over, owner_of
from tests.service.inprocess import serving
from tests.service.policed import WRITE, a_tree, code_of, picture

pytestmark = pytest.mark.anyio


async def test_a_dry_run_remembers_and_changes_nothing() -> None:
    volume, _ = await a_tree()
    before = await picture(volume.root)
    async with serving({"m": volume}) as served, connect(served.unix["m"]) as root:
        assert isinstance(root, Directory)
        dry: Directory = (await root.attenuate(Policy(dry_run=True))).capability
        file = await dry.open("a", WRITE)
        await file.write(3, b"CHANGED")
        await (await dry.create("new")).append(b"made")
        await dry.remove("l")
        await dry.rename("d", dry, "e")
        await (await (await dry.sub("e")).create("y")).write(0, b"y")
        inside = await picture(dry)
        assert [name for name, _ in inside] == ["a", "e", "hidden-a", "hidden-d", "new"]  # type: ignore[misc]
        assert bytes(await (await dry.open("a")).read(0, 100)) == b"conCHANGED"
        for call in (
            dry.rename("a", root, "a"),
            root.rename("a", dry, "z"),
            dry.link("a", root, "z"),
        ):
            assert await code_of(call) in (Code.CROSS_VOLUME, Code.DENIED)
        await dry.sync()
        assert (await dry.usage()).used_nodes >= (await root.usage()).used_nodes
        # What is done in earnest shows where the dry run has not changed it.
        assert await code_of(dry.lookup("later")) is Code.NOT_FOUND
        await root.mkdir("later")
        await dry.lookup("later")
        await root.remove("later")
        # A second one begins with what is there, not with what the first one has.
        other = (await root.attenuate(Policy(dry_run=True))).capability
        assert await picture(other) == before
        assert await picture(volume.root) == before


async def test_a_dry_run_of_a_file() -> None:
    _, top = await a_tree()
    file = await top.open("a", WRITE)
    await file.truncate(10_000)
    dry = await file.attenuated(Policy(dry_run=True))
    again = dry.narrowed(Policy())
    model = bytearray(await file.read(0, 10_000))
    for offset, size in ((0, 3), (4090, 10), (9_999, 1), (20_000, 5), (5, 9_000)):
        data = bytes([offset % 250 + 1]) * size
        await dry.write(offset, data)
        model.extend(bytes(max(0, offset + size - len(model))))
        model[offset : offset + size] = data
        assert bytes(await again.read(0, 30_000)) == model
    for size in (12_345, 4_097, 4_096, 10, 5_000, 0, 3):
        await dry.truncate(size)
        del model[size:]
        model.extend(bytes(size - len(model)))
        assert bytes(await again.read(0, 30_000)) == model
        assert (await dry.stat()).size == await dry.size() == size
    offsets = await asyncio.gather(*(dry.append(b"%d" % number) for number in range(5)))
    assert offsets == [3, 4, 5, 6, 7]
    await dry.set_attributes(Attributes(executable=True))
    assert (await dry.stat()).executable
    assert not (await file.stat()).executable
    assert bytes(await file.read(0, 7)) == b"content"
    assert await file.size() == 10_000
    with pytest.raises(NoSpace):
        for offset in range(0, 2 * DRY_BYTES_MAX, 2**20):
            await dry.write(offset, b"x" * 2**20)
    await dry.close()
    assert bytes(await again.read(0, 1)) == b"x"
    await file.close()
    assert bytes(await again.read(0, 1)) == b"x"


async def test_a_dry_run_of_a_store() -> None:
    model = ModelStore()
    async with serving({"s": model}) as served, connect(served.unix["s"]) as store:
        assert isinstance(store, RemoteStore)
        for key in (b"a", b"b", b"c"):
            await store.put(b"old", key)
        content = (await store.put(b"content")).key
        await store.names.bind(Binding("n", hash=content))
        before = dict(model.state.objects), dict(model.state.names)
        dry: RemoteStore = (await store.attenuate(Policy(dry_run=True))).capability
        stat = await dry.put(b"new", b"b")
        assert stat.version > (await store.stat(b"b")).version
        await dry.delete(b"c")
        await dry.batch([Put(b"d", b"d"), Delete(b"a")])
        sink = await dry.begin(b"e")
        await sink.write(b"in ")
        await sink.write(b"pieces")
        await sink.commit()
        assert await dry.get(b"e") == b"in pieces"
        assert await dry.get(b"b") == b"new"
        assert bytes((await dry.read(b"b", 1, 1)).data) == b"e"
        keys = [each.key for each in (await dry.list()).objects if len(each.key) == 1]
        assert keys == [b"b", b"d", b"e"]
        paged: list[bytes] = []
        page = await dry.list(limit=1)
        while page.objects:
            paged += [each.key for each in page.objects]
            page = await dry.list(after=paged[-1], limit=1)
        assert sorted({*keys, content}) == paged
        for call, code in (
            (dry.get(b"a"), Code.NOT_FOUND),
            (dry.delete(b"c"), Code.NOT_FOUND),
            (dry.put(b"x", b"d", Condition(absent=True)), Code.CONFLICT),
            (dry.put(b"x", b"b", Condition(version=1)), Code.CONFLICT),
            (dry.put(b"x", content), Code.CONFLICT),
            (dry.batch([Put(b"z", b"z"), Delete(b"missing")]), Code.NOT_FOUND),
            (dry.compact(), Code.DENIED),
        ):
            assert await code_of(call) is code
        assert not await dry.has(b"z")
        await dry.put(b"again", b"b", Condition(version=stat.version))
        names = dry.names
        await names.unbind("n")
        await names.bind(Binding("m", hash=content))
        await (await names.sub("below")).bind(Binding("k", hash=content))
        assert [each.name for each in (await names.list()).bindings] == ["m"]
        assert (await (await dry.names.sub("below")).resolve("k")).hash == content
        token = await store.save("mine")
        await names.bind_token("ref", token)
        _, lent = await names.resolve_capability("ref")
        await lent.put(b"x", b"as if")  # type: ignore[union-attr]
        assert await code_of(store.names.resolve("ref")) is Code.NOT_FOUND
        for number in range(10):
            code = await code_of(dry.put(b"x" * 2**19, b"%d" % number))
        assert code is Code.NO_SPACE
        assert not await store.has(b"as if")
        assert (dict(model.state.objects), dict(model.state.names)) == before


async def test_binding_a_name_in_a_dry_run_notes_nothing(tmp_path: Path) -> None:
    model = ModelStore()
    table = ReferenceTable.load(tmp_path / "references.json", KEY)
    authority = Authority({"s": model}, table, KEY)
    await authority.ensure_owners()
    store: Any = await authority.restore(authority.owner_token("s"))
    token = await authority.save(store, "mine")
    names = store.narrowed(Policy(dry_run=True)).namespace()
    reference = await authority.may_bind(names, 0, token)
    await names.bind(Binding("n", reference=reference))
    assert await authority.lent(reference, names)
    known = table.get(reference)
    assert known is not None
    assert known.bound == ()
    with pytest.raises(NotFound):
        await authority.lent(reference, store.namespace())


async def test_a_dry_run_stands_under_the_other_policies() -> None:
    _, top = await a_tree()
    outer = top.narrowed(Policy(max_bytes=100))
    await (await outer.create("f")).write(0, b"x" * 60)
    dry = await outer.attenuated(Policy(dry_run=True))
    file = await dry.open("f", WRITE)
    await file.append(b"x" * 40)
    with pytest.raises(QuotaExceeded):
        await file.append(b"x")
    # What was not done took no room.
    assert outer.grant.books[0].bytes_used == 60
    await (await outer.open("f", WRITE)).append(b"x" * 40)
    adding = dry.narrowed(Policy(append_only=True, hidden_names=("hidden*",)))
    with pytest.raises(Denied):
        await adding.remove("f")
    with pytest.raises(NotFound):
        await adding.sub("hidden-d")
    dry.grant.end(Revoked("over"))
    with pytest.raises(Revoked):
        await adding.list()


async def test_a_saved_dry_run_begins_anew(tmp_path: Path) -> None:
    authority, volume = await authority_over(tmp_path)
    root = await owner_of(authority)
    inner = await root.mkdir("d")
    await (await inner.create("f")).write(0, b"content")
    dry = await root.attenuated(Policy(dry_run=True, max_bytes=50))
    dry_inner = await dry.sub("d")
    file = await dry_inner.open("f", WRITE)
    await file.append(b"x" * 40)
    made = await dry_inner.create("made")
    with pytest.raises(NotFound):
        await authority.save(made, "")
    tokens = [await authority.save(each, "") for each in (dry, dry_inner, file)]
    for restart in (False, True, True):
        if restart:
            authority, _ = await authority_over(tmp_path, volume=volume)
        whole: Any = await authority.restore(tokens[0])
        assert [entry.name for entry in (await whole.list()).entries] == ["d"]
        for _ in range(2):
            restored: Any = await authority.restore(tokens[1])
            assert [entry.name for entry in (await restored.list()).entries] == ["f"]
            await (await restored.create("g")).write(0, b"x" * 50)
            with pytest.raises(QuotaExceeded):
                await (await restored.create("h")).write(0, b"x")
        again: Any = await authority.restore(tokens[2])
        assert bytes(await again.read(0, 100)) == b"content"
        await again.write(0, b"CONTENT")
    assert bytes(await (await inner.open("f")).read(0, 100)) == b"content"


async def test_dry_runs_are_bounded() -> None:
    _, top = await a_tree()
    runs = [await top.attenuated(Policy(dry_run=True)) for _ in range(DRY_RUNS_MAX)]
    for call in (
        top.attenuated(Policy(dry_run=True)),
        (await top.open("a")).attenuated(Policy(dry_run=True)),
    ):
        with pytest.raises(Busy):
            await call
    del runs
    gc.collect()
    full = await top.attenuated(Policy(dry_run=True))
    with pytest.raises((NoSpace, TooLarge)):
        for number in range(10):
            await (await full.create(f"{number}")).write(0, b"x" * 2**20)


async def test_what_is_only_read_has_no_dry_run() -> None:
    class ReadOnlyVolume(MemoryVolume):
        @property
        def read_only(self) -> bool:
            return True

    volume = await MemoryVolume.open()
    volume.__class__ = ReadOnlyVolume
    top = GuardedDirectory(volume.root, Grant(ServedVolume("m", volume), Policy()))
    dry = await top.attenuated(Policy(dry_run=True))
    assert dry.node is top.node


async def test_moves_between_a_dry_run_and_the_tree() -> None:
    _, top = await a_tree()
    dry = await top.attenuated(Policy(dry_run=True))
    with pytest.raises(CrossVolume):
        await top.rename("a", dry, "z")
    with pytest.raises(Denied):
        await dry.rename("a", top, "z")
    with pytest.raises(InvalidArgument):
        await dry.rename("d", await dry.sub("d"), "z")
