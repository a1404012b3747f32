"""The audit: a line for each call, whatever the call; never a secret in one; and what happens when
it cannot be written."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.backers.st1 import St1Store
from capstore.schema import wire
from capstore.schema.errors import NotFound, Revoked, StorageIOError
from capstore.service import gate, servers, store_servers
from capstore.service.audit import Audit, Only, Origin, Selection
from capstore.service.client import connect, open_connection
from capstore.service.dispatch import Answering, Method, Server
from capstore.service.grants import Policy
from capstore.service.observing import Observers
from capstore.service.remote import Directory
from tests.service.inprocess import Served
from tests.service.observed import ListSink, code_of, interfaces, observed, raw_gate

pytestmark = pytest.mark.anyio

ME = os.getuid()


class Heard:
    """A service under audit, and what the audit says."""

    def __init__(self, served: Served, sink: ListSink, audit: Audit) -> None:
        self.served = served
        self.sink = sink
        self.audit = audit

    async def lines(self) -> list[dict[str, Any]]:
        """All lines so far, of calls that have ended."""
        async with asyncio.timeout(10):
            while self.audit.waiting:
                await asyncio.sleep(0.005)
        return self.sink.lines


@asynccontextmanager
async def heard(
    selection: Selection | None = None, *, tls: bool = False, **more: Any
) -> AsyncIterator[Heard]:
    sink = ListSink()
    audit = Audit(sink, selection, **more)
    with_store = {"m": await MemoryVolume.open()}
    async with observed(with_store, audit, tls=tls) as served:
        yield Heard(served, sink, audit)
    assert sink.closed
    assert not audit.waiting


# Every method -------------------------------------------------------------------------------------


def served_kinds(kind: type[Answering]) -> set[type[Answering]]:
    """The capability servers there are, by whatever module."""
    below = {each for direct in kind.__subclasses__() for each in served_kinds(direct)}
    below |= set(kind.__subclasses__()) - {Server}
    return {each for each in below if each.__module__.startswith("capstore.")}


def test_every_method_of_every_server_passes_the_one_place() -> None:
    kinds = served_kinds(Answering)
    assert {gate.ReferenceServer, servers.FileServer, store_servers.SinkServer} < kinds
    known = interfaces()
    for kind in kinds:
        name = kind.__name__.removesuffix("Server")
        for method in known[name].schema.method_names:
            wrapped = getattr(kind, f"{method}_context")
            cells = [cell.cell_contents for cell in wrapped.__closure__ or ()]
            named = [each for each in cells if isinstance(each, Method)]
            assert [str(each) for each in named] == [f"{name}.{method}"]


class _Watcher(wire.Watcher.Server):  # type: ignore[misc]
    pass


async def fresh(interface: str, token: str, store_token: str, raw: Any) -> Any:
    """A capability of this interface, of its own."""
    if interface == "Gate":
        return raw
    if interface == "Reference":
        return (await raw.reference(token)).reference
    if interface in ("Store", "Sink", "Namespace"):
        store = (await raw.restore(store_token)).capability.as_interface(wire.Store)
        if interface == "Sink":
            return (await store.begin(b"key")).sink
        return (await store.namespace()).namespace if interface == "Namespace" else store
    root = (await raw.restore(token)).capability.as_interface(wire.Directory)
    if interface == "File":
        return (await root.open("file", 3)).file
    if interface == "Revoker":
        return (await root.attenuate({"revocable": True, "fieldsKnown": 13})).revoker
    if interface == "Broken":
        return (await root.sub("no such name")).directory.cast_as(wire.Broken)
    if interface == "Watch":
        return (await root.watch(_Watcher())).watch
    return root


@pytest.mark.parametrize("interface", interfaces())
async def test_every_method_of_the_schema_gives_one_line(interface: str, tmp_path: Path) -> None:
    schema = interfaces()[interface].schema
    methods = sorted(schema.method_names_inherited if interface == "Broken" else schema.methods)
    sink = ListSink()
    audit = Audit(sink, Selection((f"{interface}.*",)))
    volumes = {
        "m": await MemoryVolume.open(),
        "o": await St1Store.open(tmp_path / "o.st1", create=True),
    }
    async with observed(volumes, audit) as served:
        tokens = served.unix["m"].token, served.unix["o"].token
        async with raw_gate(served.unix["m"]) as raw:
            for method in methods:
                capability = await fresh(interface, *tokens, raw)
                await _settled(audit)
                sink.raw.clear()
                # What ends the volume's owner would end the test.
                arguments = {"id": 99} if interface == "Reference" else {}
                fields = schema.methods[method].param_type.fields if arguments else {}
                asked = {name: value for name, value in arguments.items() if name in fields}
                code = await code_of(getattr(capability, method)(**asked))
                await _settled(audit)
                said = [(line["interface"], line["method"], line["code"]) for line in sink.lines]
                assert said == [(interface, method, code)]


async def _settled(audit: Audit) -> None:
    async with asyncio.timeout(10):
        while audit.waiting:
            audit._begin()
            await asyncio.sleep(0)


# What a line says ---------------------------------------------------------------------------------


async def test_a_line_says_who_did_what_and_how_it_ended() -> None:
    async with heard() as all_of:
        uri = all_of.served.unix["m"]
        async with connect(uri) as root:
            assert isinstance(root, Directory)
            file = await root.create("notes")
            await file.write(0, b"0123456789")
            assert bytes(await file.read(2, 5)) == b"23456"
            node = (await file.stat()).node_id
            with pytest.raises(NotFound):
                await root.open("nothing")
            root_node = (await root.stat()).node_id
        lines = await all_of.lines()
    assert all(
        list(line)
        == [
            "time",
            "connection",
            "uid",
            "volume",
            "reference",
            "label",
            "interface",
            "method",
            "node",
            "bytes",
            "code",
            "microseconds",
        ]
        for line in lines
    )
    assert {(line["connection"], line["uid"], line["volume"]) for line in lines} == {(1, ME, "m")}
    assert {(line["reference"], line["label"]) for line in lines} == {(1, "owner")}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    by_method = {f"{line['interface']}.{line['method']}": line for line in lines}
    assert by_method["File.write"]["bytes"] == 10
    assert by_method["File.read"]["bytes"] == 5
    assert by_method["File.write"]["node"] == by_method["File.stat"]["node"] == node
    assert by_method["Directory.open"]["code"] == "notFound"
    assert by_method["Directory.open"]["node"] == root_node
    assert by_method["Gate.restore"]["node"] is None
    assert 0 < by_method["File.read"]["microseconds"] < 10_000_000


def test_the_page_describes_every_field_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    table = page.split("| field | what it says |\n|---|---|\n")[1].split("\n\n")[0]
    described = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    assert described == {*shown, "address", "name", "newName", "lost"}


async def test_a_node_that_does_not_tell_its_id_is_none() -> None:
    class Silent:
        async def stat(self) -> Any:
            raise StorageIOError("the disk is on fire")

    observers = Observers(Audit(ListSink()), None)
    server = Answering()
    server.guarded = SimpleNamespace(_node=Silent())
    assert observers.wants_node(server, Method("File", "read"), "ok")
    await observers.find_node(server)
    assert server.node_id is None
    # Released: its grant has ended.
    server.guarded = SimpleNamespace(_node=None)
    await observers.find_node(server)
    assert server.node_id is None


async def test_a_connection_over_tls_is_told_by_its_address() -> None:
    async with heard(tls=True) as all_of:
        async with connect(all_of.served.tls["m"]) as root:
            await root.stat()
        lines = await all_of.lines()
    assert {line["address"].rpartition(":")[0] for line in lines} == {"127.0.0.1"}
    assert all("uid" not in line for line in lines)


async def test_a_call_through_a_saved_reference_says_its_label_also_when_that_has_ended() -> None:
    async with heard() as all_of:
        uri = all_of.served.unix["m"]
        async with open_connection(uri) as owner:
            root = await owner.root()
            assert isinstance(root, Directory)
            token = await root.save("CI job 17")
            lent_uri = uri.with_token(token)
            async with connect(lent_uri) as lent, connect(lent_uri) as late:
                await lent.stat()
                control = await owner.reference(token)
                await control.revoke((await control.status()).id)
                # The label is told also where the first call comes behind the end.
                for ended in (lent, late):
                    with pytest.raises(Revoked):
                        await ended.stat()
        lines = await all_of.lines()
    ours = [line for line in lines if line["label"] == "CI job 17"]
    said = [(line["interface"], line["method"], line["code"]) for line in ours]
    assert said.count(("Directory", "stat", "ok")) == 1
    assert said.count(("Directory", "stat", "revoked")) == 2
    assert ("Gate", "restore", "ok") in said
    assert ("Reference", "revoke", "ok") in said
    assert {line["reference"] for line in ours} == {2}


async def test_no_line_holds_a_secret(tmp_path: Path) -> None:
    sink = ListSink()
    audit = Audit(sink)
    volumes = {
        "m": await MemoryVolume.open(),
        "o": await St1Store.open(tmp_path / "o.st1", create=True),
    }
    async with observed(volumes, audit) as served:
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            file = await root.create("NAME-of-entry")
            await file.write(0, b"CONTENT-of-file")
            await file.append(b"CONTENT-appended")
            await root.symlink("NAME-of-link", "TARGET-of-link")
            await root.rename("NAME-of-link", root, "NAME-renamed")
            saved = await root.save("label")
            tickets = (await root.raw.ticket()).ticket
            gate = connection._gate.raw
            wrong = "W" * 43
            assert await code_of(gate.restore(wrong)) == "denied"
            store = (await gate.restore(served.unix["o"].token)).capability
            store = store.as_interface(wire.Store)
            for call in (
                store.put(b"CONTENT-object", b"KEY-of-object"),
                store.get(b"KEY-of-object"),
                store.delete(b"KEY-of-object"),
                store.list(b"KEY-prefix", b"CURSOR"),
                store.subStore(b"KEY-prefix"),
            ):
                await call
            names = (await store.namespace()).namespace
            await names.bind("NAME-bound", {"reference": 2}, {}, saved)
        await _settled(audit)
    raw = b"".join(sink.raw)
    assert len(sink.raw) > 15
    secrets = [served.unix["m"].token, served.unix["o"].token, saved, wrong]
    for secret in (*secrets, *(each[:8] for each in secrets), tickets.hex(), "label\x00"):
        assert secret.encode() not in raw
    for planted in (b"CONTENT", b"KEY", b"TARGET", b"CURSOR", b"NAME"):
        assert planted not in raw


async def test_names_are_told_where_they_are_asked_for_and_keys_never(tmp_path: Path) -> None:
    sink = ListSink()
    audit = Audit(sink, names=True)
    store = await St1Store.open(tmp_path / "o.st1", create=True)
    async with observed({"m": await MemoryVolume.open(), "o": store}, audit) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            await root.create("a\n\u202eb")
            await root.rename("a\n\u202eb", root, "c")
            assert await code_of(root.raw.lookup("x" * 1000)) == "invalidName"
        async with raw_gate(served.unix["o"]) as gate:
            raw = (await gate.restore(served.unix["o"].token)).capability.as_interface(wire.Store)
            await raw.put(b"data", b"KEY-of-object")
        await _settled(audit)
    by_method = {line["method"]: line for line in sink.lines}
    assert by_method["create"]["name"] == "a\n\u202eb"
    assert (by_method["rename"]["name"], by_method["rename"]["newName"]) == ("a\n\u202eb", "c")
    assert by_method["lookup"]["name"] is None
    assert b"KEY" not in b"".join(sink.raw)
    assert all(line.isascii() and line.count(b"\n") == 1 for line in sink.raw)


# What is recorded ---------------------------------------------------------------------------------


async def exercised(selection: Selection) -> list[tuple[str, str]]:
    """What is recorded of a little of everything."""
    async with heard(selection) as all_of:
        async with open_connection(all_of.served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            await root.create("file")
            await root.open("file")
            reader = await root.read_only()
            assert await code_of(reader.raw.mkdir("new")) == "readOnly"
            assert await code_of(root.raw.lookup("gone")) == "notFound"
            await root.save("label")
        return [
            (f"{line['interface']}.{line['method']}", line["code"]) for line in await all_of.lines()
        ]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (
            {Only.CHANGES},
            {
                ("Directory.create", "ok"),
                ("Directory.mkdir", "readOnly"),
                ("Directory.save", "ok"),
            },
        ),
        ({Only.FAILURES}, {("Directory.mkdir", "readOnly"), ("Directory.lookup", "notFound")}),
        ({Only.REFUSALS}, {("Directory.mkdir", "readOnly")}),
        ({Only.TRACED}, set()),
        (
            {Only.CHANGES, Only.FAILURES},
            {
                ("Directory.create", "ok"),
                ("Directory.mkdir", "readOnly"),
                ("Directory.lookup", "notFound"),
                ("Directory.save", "ok"),
            },
        ),
    ],
)
async def test_only_some_kinds(only: set[Only], expected: set[tuple[str, str]]) -> None:
    assert set(await exercised(Selection(only=frozenset(only)))) == expected


async def test_only_some_methods() -> None:
    said = await exercised(Selection(("*.lookup", "Gate.*")))
    assert set(said) == {("Directory.lookup", "notFound"), ("Gate.restore", "ok")}


def test_a_call_under_a_traced_capability_is_recorded_whatever_is_selected() -> None:
    selection = Selection(("Store.*",), frozenset({Only.REFUSALS}))
    method = Method("Directory", "list")
    assert not selection.wants(method, "ok", None, False)
    assert selection.wants(method, "ok", None, True)


async def test_traced_reaches_the_audit_through_attenuation() -> None:
    async with heard(Selection(only=frozenset({Only.TRACED}))) as all_of:
        async with connect(all_of.served.unix["m"]) as root:
            assert isinstance(root, Directory)
            await root.mkdir("sub")
            traced = (await root.attenuate(Policy(traced=True))).capability
            below = await traced.sub("sub")
            await below.stat()
        said = [f"{line['interface']}.{line['method']}" for line in await all_of.lines()]
    assert said == ["Directory.sub", "Directory.stat"]


# Cancellation -------------------------------------------------------------------------------------


async def test_a_call_that_was_taken_back_has_a_line() -> None:
    class Slow(MemoryVolume):
        async def usage(self) -> Any:
            await asyncio.Event().wait()

    sink = ListSink()
    audit = Audit(sink)
    async with observed({"m": await Slow.open()}, audit) as served:
        async with open_connection(served.unix["m"]) as connection:
            root = await connection.root()
            assert isinstance(root, Directory)
            call = asyncio.ensure_future(root.usage())
            await root.stat()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await root.stat()
        await _settled(audit)
    usage = [line["code"] for line in sink.lines if line["method"] == "usage"]
    assert usage == ["cancelled"]


# A full queue, a full disk ------------------------------------------------------------------------


class Gated(ListSink):
    """Writes when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        assert self.gate.wait(20)
        return super().write(lines)


async def test_calls_wait_where_the_queue_is_full_and_no_line_is_lost() -> None:
    sink = Gated()
    audit = Audit(sink, queue_lines_max=8)
    async with observed({"m": await MemoryVolume.open()}, audit) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            calls = [asyncio.ensure_future(root.stat()) for _ in range(50)]
            # The loop goes on, and so do calls until there is no room.
            while not audit.holds_back:
                await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not all(call.done() for call in calls)
            sink.gate.set()
            async with asyncio.timeout(10):
                await asyncio.gather(*calls)
    assert Counter(line["method"] for line in sink.lines)["stat"] == 50
    assert audit.lost == 0


async def test_the_queue_is_bounded_by_the_calls_under_way() -> None:
    sink = Gated()
    audit = Audit(sink, queue_lines_max=8)
    async with observed({"m": await MemoryVolume.open()}, audit) as served:
        async with connect(served.unix["m"]) as root:
            assert isinstance(root, Directory)
            while not audit.holds_back:
                await root.stat()
            for _ in range(5):
                # Who takes calls back again and again is no way around it.
                calls = [asyncio.ensure_future(root.stat()) for _ in range(40)]
                await asyncio.sleep(0.01)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert audit.waiting <= 8 + 40 * 5
            before = audit.waiting
            assert before >= 8
            sink.gate.set()
            async with asyncio.timeout(10):
                await root.stat()


async def test_a_disk_that_is_full_is_told_and_calls_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with heard() as all_of:
        sink, audit = all_of.sink, all_of.audit
        async with connect(all_of.served.unix["m"]) as root:
            sink.full = True
            with caplog.at_level(logging.WARNING, "capstore.service"):
                for _ in range(3):
                    await root.stat()
                    await all_of.lines()
                assert audit.failing
                sink.full = False
                for _ in range(2):
                    await root.stat()
                    lines = await all_of.lines()
    said = [record.getMessage() for record in caplog.records]
    assert [each for each in said if "the audit" in each] == [
        "the audit cannot be written (noSpace: No space left on device): calls go on without it",
        f"the audit is written again; {audit.lost} lines were lost so far",
    ]
    assert audit.lost >= 3
    lost = [line["lost"] for line in lines if "lost" in line]
    assert sum(lost) == audit.lost
    # It stands before what came behind.
    assert ["lost" in line for line in lines[-3:]] == [True, False, False]


async def test_a_part_that_was_written_is_no_loss() -> None:
    sink = ListSink()
    audit = Audit(sink)
    sink.room = 2
    for number in range(5):
        audit.note(number, {}, Origin(), Method("File", "read"), None, 0, "ok", 5, None)
    audit._begin()
    while audit.waiting:
        await asyncio.sleep(0)
    assert (audit.lines, audit.lost) == (2, 3)
    sink.room = None
    audit.note(5, {}, Origin(), Method("File", "read"), None, 0, "ok", 5, None)
    await audit.close()
    assert [line.get("lost", line.get("connection")) for line in sink.lines] == [0, 1, 3, 5]


@pytest.mark.parametrize("selection", [None, Selection(only=frozenset({Only.REFUSALS}))])
async def test_calls_are_refused_while_a_required_audit_cannot_be_written(
    selection: Selection | None,
) -> None:
    async with heard(selection, required=True) as all_of:
        sink, audit = all_of.sink, all_of.audit
        async with connect(all_of.served.unix["m"]) as root:
            assert isinstance(root, Directory)
            sink.full = True
            reader = await root.read_only()
            assert await code_of(reader.raw.mkdir("refused")) == "readOnly"
            await all_of.lines()
            assert audit.failing
            with pytest.raises(StorageIOError, match="audit"):
                await root.mkdir("not made")
            await all_of.lines()
            sink.full = False
            async with asyncio.timeout(10):
                while True:
                    try:
                        await root.mkdir("made")
                        break
                    except StorageIOError:
                        await asyncio.sleep(0.01)
            with pytest.raises(NotFound):
                await root.lookup("not made")
