"""Processes that work on a CAPOSST1 store, to be killed: each client has keys and names of its own.

Engine workers say what a sync or a compaction made durable; through the backer whatever has
returned is durable.  Nobody collects garbage, which would be that of others, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from capstore.images.devices import FileDevice
from capstore.images.st1_open import format_st1
from capstore.tools.prove.load import CLIENTS, Load, Stream, shuffled
from capstore.tools.prove.st1_chance import chance_workload
from capstore.tools.prove.st1_model import VERSION, Model, object_name
from capstore.tools.prove.st1_steps import DURABLE, key_of
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.workload import Step, content

_WITHOUT: Final = ("collect", "sweep", "begin", "piece", "finish", "abort")
# What the steps of a client put has numbers of its own.
_NUMBERS: Final = 1_000_000


def clients(seed: int, operations: int) -> list[Stream]:
    """What each client does below its keys."""
    return [
        _stream([number], _client(number, seed, operations), lambda step: True)
        for number in range(CLIENTS)
    ]


def mixed(seed: int, operations: int) -> list[Stream]:
    """The same, one among the other, as one stream."""
    own = [_client(number, seed, operations) for number in range(CLIENTS)]
    return [_stream(range(CLIENTS), shuffled(seed, own), lambda step: step.op in DURABLE)]


def _stream(
    numbers: Sequence[int], steps: Sequence[Step], durable: Callable[[Step], bool]
) -> Stream:
    return Stream("st1", steps, durable, Model, _Mine(numbers, steps))


class _Mine:
    """What of a tree is of the clients with these numbers; versions are of all of them."""

    def __init__(self, numbers: Sequence[int], steps: Sequence[Step]) -> None:
        roots = [_root(number) for number in numbers]
        self._heads = tuple(
            head for root in roots for head in (object_name(root.encode()), f"n:{root}")
        )
        self._hashes = {object_name(digest) for step in steps for digest in _hashes(step)}

    def __call__(self, tree: Tree) -> Tree:
        return {
            name: leaf[:1]
            for name, leaf in tree.items()
            if name != VERSION and (name in self._hashes or name.startswith(self._heads))
        }


def _hashes(step: Step) -> list[bytes]:
    """The hashes of all that a step puts, whether under them or not, and those it names."""
    named = [key_of(word) for word in step.paths if word.startswith("h-")]
    if step.op not in ("hashed", "batch"):
        return named
    pairs = zip(step.numbers[::2], step.numbers[1::2], strict=True)
    return named + [hashlib.sha256(content(number, size)).digest() for size, number in pairs]


def _root(number: int) -> str:
    return f"client-{number}/"


def _client(number: int, seed: int, operations: int) -> list[Step]:
    workload = chance_workload(
        CLIENTS * seed + number, operations // CLIENTS, without=_WITHOUT, empty=True
    )
    return [_below(number, step) for part in workload.parts for step in part]


def _below(number: int, step: Step) -> Step:
    """A step with the keys, names and contents of a client."""
    paths = tuple(_word(number, word) for word in step.paths)
    if step.op == "refer":
        return replace(step, paths=paths)
    numbers = tuple(
        (number + 1) * _NUMBERS + value if at % 2 else value
        for at, value in enumerate(step.numbers)
    )
    return Step(step.op, paths, numbers)


def _word(number: int, word: str) -> str:
    goes, name = ("-", word[1:]) if word.startswith("-") else ("", word)
    if name.startswith("h-"):
        _, size, content_number = name.split("-")
        return f"{goes}h-{size}-{(number + 1) * _NUMBERS + int(content_number)}"
    return word if name == "#" else f"{goes}{_root(number)}{name}"


def make(path: str) -> None:
    """Makes an empty store in a new file."""
    device = FileDevice.open(path, create=True)
    try:
        format_st1(device, segment_bytes=1 << 16)
    finally:
        device.close()


LOADS: Final = (
    Load(
        "engine",
        "st1",
        "capstore.tools.prove.st1_worker",
        make,
        mixed,
        {"pwrite64": 800, "fdatasync": 330, "ftruncate": 200, "fallocate": 700},
    ),
    Load(
        "backer",
        "st1",
        "capstore.tools.prove.st1_backer_worker",
        make,
        clients,
        {"pwrite64": 250, "fdatasync": 200, "ftruncate": 40, "fallocate": 100},
    ),
)
ENGINE, BACKER = LOADS
