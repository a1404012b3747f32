"""Every method of every interface is served, and every failure fits its result."""

from __future__ import annotations

from typing import Any

import pytest

from capstore.schema import wire
from capstore.schema.errors import NotFound
from capstore.service import gate, guard, servers, store_servers
from capstore.service.dispatch import BrokenServer

SERVED = {
    wire.File: servers.FileServer,
    wire.Directory: servers.DirectoryServer,
    wire.Store: store_servers.StoreServer,
    wire.Sink: store_servers.SinkServer,
    wire.Namespace: store_servers.NamespaceServer,
    wire.Revoker: servers.RevokerServer,
    wire.Gate: gate.GateServer,
    wire.Reference: gate.ReferenceServer,
}


@pytest.mark.parametrize("interface", SERVED, ids=lambda module: str(module.schema))
def test_every_method_has_an_answer(interface: Any) -> None:
    missing = [
        name
        for name in interface.schema.method_names
        if not callable(getattr(SERVED[interface], f"{name}_context", None))
    ]
    assert not missing


def interfaces_in_results() -> set[str]:
    found = set()
    for name in dir(wire):
        schema = getattr(getattr(wire, name), "schema", None)
        for method in getattr(schema, "methods", {}).values():
            for field in method.result_type.fields.values():
                if field.proto.slot.type.which() == "interface":
                    found.add(str(field.schema).split(":")[-1].rstrip(">"))
    return found


def test_a_broken_capability_fits_wherever_a_capability_is_returned() -> None:
    extended = {str(base).split(":")[-1].rstrip(">") for base in wire.Broken.schema.superclasses}
    assert interfaces_in_results() >= {"File", "Directory", "Store", "Sink", "Watch", "Revoker"}
    assert interfaces_in_results() <= extended


class Uncounted:
    """A session that counts nothing."""

    number = 0
    observer = None

    def call_begins(self) -> None:
        pass

    def call_ends(self) -> None:
        pass

    def answer_queued(self, size: int) -> None:
        pass

    def capability_made(self) -> None:
        pass

    def capability_dropped(self) -> None:
        pass


def test_broken_answers_every_method() -> None:
    broken = BrokenServer(NotFound(""), Uncounted())
    for name in wire.Broken.schema.method_names_inherited:
        assert callable(getattr(broken, f"{name}_context"))


def test_every_result_of_a_method_says_its_error() -> None:
    without = []
    for interface in (*SERVED, wire.Watch):
        for name, method in interface.schema.methods.items():
            field = method.result_type.fields.get("error")
            if field is None or field.proto.slot.type.which() != "struct":
                without.append(f"{interface.schema}.{name}")
    assert not without


def test_every_method_of_the_node_protocol_has_an_effect() -> None:
    from capstore.backers.node import DirectoryNode, FileNode

    methods = {
        name
        for node in (DirectoryNode, FileNode)
        for name in dir(node)
        if not name.startswith("_") and callable(getattr(node, name))
    }
    assert methods == set(guard.EFFECTS)
