"""Processes that work on a CAPOSWF1 volume, to be killed: each client in a directory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.wf1_open import format_wf1
from capstore.tools.prove.load import CLIENTS, Load, Stream, shuffled
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.wf1_chance import chance_workload
from capstore.tools.prove.wf1_model import Model
from capstore.tools.prove.wf1_start import START
from capstore.tools.prove.wf1_steps import DURABLE
from capstore.tools.prove.workload import Step, steps


def clients(seed: int, operations: int) -> list[Stream]:
    """What each client does in its directory."""
    return [
        _stream(_client(number, seed, operations), {_root(number)}) for number in range(CLIENTS)
    ]


def mixed(seed: int, operations: int) -> list[Stream]:
    """The same, one among the other, as one stream."""
    own = [_client(number, seed, operations) for number in range(CLIENTS)]
    return [_stream(shuffled(seed, own), set(map(_root, range(CLIENTS))))]


def _root(number: int) -> str:
    return f"client-{number}"


def _stream(mine: Sequence[Step], roots: set[str]) -> Stream:
    return Stream("wf1", mine, lambda step: step.op in DURABLE, Model, _below_roots(roots))


def _below_roots(roots: set[str]) -> Callable[[Tree], Tree]:
    def part_of(tree: Tree) -> Tree:
        return {path: leaf for path, leaf in tree.items() if path.partition("/")[0] in roots}

    return part_of


def _client(number: int, seed: int, operations: int) -> list[Step]:
    root = _root(number)
    workload = chance_workload(CLIENTS * seed + number, operations // CLIENTS)
    mine = [Step("mkdir", (root,)), *(_below(root, step) for step in steps(START))]
    return mine + [_below(root, step) for part in workload.parts for step in part]


def _below(root: str, step: Step) -> Step:
    # The second argument of a symbolic link is a target, and no path of the volume.
    paths = step.paths[:1] if step.op == "symlink" else step.paths
    return Step(step.op, (*(f"{root}/{p}" for p in paths), *step.paths[len(paths) :]), step.numbers)


def make(path: str) -> None:
    """Makes an empty volume in a new file."""
    device = FileDevice.open(path, create=True)
    try:
        format_wf1(device)
    finally:
        device.close()


LOADS: Final = (
    Load(
        "engine",
        "wf1",
        "capstore.tools.prove.wf1_worker",
        make,
        mixed,
        {"pwrite64": 900, "fdatasync": 250, "ftruncate": 6, "fallocate": 60},
    ),
    Load(
        "backer",
        "wf1",
        "capstore.tools.prove.wf1_backer_worker",
        make,
        clients,
        {"pwrite64": 150, "fdatasync": 70, "ftruncate": 2, "fallocate": 7},
    ),
)
ENGINE, BACKER = LOADS
