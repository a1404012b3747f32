"""What a policy costs: the same calls of a capability that it is put on, and of one without.

Invariants: both are of one connection to one service, and take turns; calls that change something
leave it as it was, so that neither finds what the other has left.  Many calls are in flight, so
that the service is what is measured: it is busy, and the client waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

from capstore.backers.node import OpenFlags
from capstore.schema.limits import KIB
from capstore.service.audit import DELAY_SECONDS
from capstore.service.policy import Policy
from capstore.service.remote import Directory, File
from capstore.tools.bench.authority_site import Serving, serving
from capstore.tools.bench.contestants import checked, each
from capstore.tools.bench.measure import SUBJECT
from capstore.tools.bench.parameters import Parameters
from capstore.tools.bench.slices import Meter, Slices

UNWRAPPED: Final = "unwrapped"

# So many files are read, and as many others written; a page of a listing has so many entries.
_FILES: Final = 128
_PAGE_ENTRIES: Final = 16
_APPENDED_BYTES: Final = KIB
_NEVER_NS: Final = 10**9 * 3600 * 24 * 365
# No bench comes near these.
_MANY_CALLS: Final = 10**9
_MANY_BYTES: Final = 10**15


@dataclass(frozen=True, slots=True)
class _Files:
    """A directory as one of both has it, and its files that are open to be appended to."""

    name: str
    root: Directory
    logs: Sequence[File]
    small_bytes: int


# A call of a file, by its number.
_Call = Callable[[_Files, int], Awaitable[None]]
Choice = tuple[_Call, int]


def _read_name(index: int) -> str:
    return f"file-{index:06}"


def _written_name(index: int) -> str:
    return f"written-{index:06}"


async def _read(files: _Files, index: int) -> None:
    data, _, _ = await files.root.read_file(_read_name(index))
    if len(data) != files.small_bytes:
        checked(files.name, len(data), files.small_bytes)


async def _write(files: _Files, index: int) -> None:
    await files.root.write_file(_written_name(index), bytes(files.small_bytes))


async def _list(files: _Files, index: int) -> None:
    page = await files.root.list("", _PAGE_ENTRIES)
    checked(files.name, len(page.entries), _PAGE_ENTRIES)


async def _append(files: _Files, index: int) -> None:
    await files.logs[index].append(bytes(_APPENDED_BYTES))


async def _make_and_remove(files: _Files, index: int) -> None:
    name = f"new-{index:06}"
    await files.root.write_file(name, bytes(files.small_bytes))
    await files.root.remove(name)


_MIX: Final = (_read, _write, _list)


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Policies, each put on what the one before gave, and the calls that they bear on."""

    name: str
    what: str
    policies: Callable[[], Sequence[Policy]]
    calls: Sequence[_Call] = _MIX
    traced: bool = False

    def enter(self, parameters: Parameters) -> AbstractAsyncContextManager[Slices[Choice]]:
        """What is done with them and without."""
        return _slices(self, parameters)


def _in_a_year() -> Policy:
    return Policy(expires_at=time.time_ns() + _NEVER_NS)


_HIDDEN: Final = Policy(hidden_names=("*.secret", ".git", "build-[0-9]*"))
_RATE: Final = Policy(calls_per_second=_MANY_CALLS, bytes_per_second=_MANY_BYTES)
_BYTES: Final = Policy(max_bytes=_MANY_BYTES)
_FILE_BYTES: Final = Policy(max_file_bytes=_MANY_BYTES)

ALONE: Final = (
    Wrapping("read-only", "read and list", lambda: [Policy(read_only=True)], calls=(_read, _list)),
    Wrapping(
        "append-only",
        "read, append and list",
        lambda: [Policy(append_only=True)],
        calls=(_read, _append, _list),
    ),
    Wrapping("expiry", "read, write and list", lambda: [_in_a_year()]),
    Wrapping("max-bytes", "read, write and list", lambda: [_BYTES]),
    Wrapping(
        "max-nodes",
        "read, make and remove, and list",
        lambda: [Policy(max_nodes=_MANY_CALLS)],
        calls=(_read, _make_and_remove, _list),
    ),
    Wrapping("max-file-bytes", "read, write and list", lambda: [_FILE_BYTES]),
    Wrapping("rate", "read, write and list", lambda: [_RATE]),
    Wrapping("hidden", "read, write and list", lambda: [_HIDDEN]),
    Wrapping("dry-run", "read, write and list", lambda: [Policy(dry_run=True)]),
    Wrapping(
        "traced",
        "read, write and list, with an audit of it",
        lambda: [Policy(traced=True)],
        traced=True,
    ),
)
STACKED: Final = Wrapping(
    "stacked",
    "read, write and list under five: expiry, max-bytes, max-file-bytes, rate, hidden names",
    lambda: [_in_a_year(), _BYTES, _FILE_BYTES, _RATE, _HIDDEN],
)
# The calls on which a policy weighs most, alone.
MOST: Final = (
    Wrapping("max-bytes-write", "write under a quota of bytes", lambda: [_BYTES], calls=(_write,)),
    Wrapping("dry-run-list", "list in a dry run", lambda: [Policy(dry_run=True)], calls=(_list,)),
)


@asynccontextmanager
async def _slices(wrapping: Wrapping, parameters: Parameters) -> AsyncIterator[Slices[Choice]]:
    traced = wrapping.traced
    async with serving(audit=traced) as service, service.root() as root:
        await _fill(root, parameters)
        wrapped = await put_on(root, wrapping.policies())
        both = {
            name: await _files(name, one, wrapping, parameters)
            for name, one in ((SUBJECT, wrapped), (UNWRAPPED, root))
        }
        logs = both[UNWRAPPED].logs
        count = parameters.authority_traced_slice if traced else parameters.authority_slice

        def work(files: _Files) -> Callable[[Sequence[Choice]], Awaitable[int]]:
            async def one(choice: Choice) -> None:
                call, index = choice
                await call(files, index)

            async def all_(choices: Sequence[Choice]) -> int:
                await each(choices, one, parameters.calls_in_flight)
                return len(choices)

            return all_

        async def ready(choices: Sequence[Choice]) -> None:
            for file in logs:
                await file.truncate(0)
            if traced:
                # What was audited of others is written behind them.
                await asyncio.sleep(2 * DELAY_SECONDS)

        yield Slices(
            lambda rng: chosen(rng, wrapping.calls, count),
            {name: work(files) for name, files in both.items()},
            dict.fromkeys(both, ready),
            meters=metered(both, service),
        )


async def put_on(root: Directory, policies: Sequence[Policy]) -> Directory:
    """A directory under policies, each put on what the one before gave."""
    for policy in policies:
        capability = (await root.attenuate(policy)).capability
        assert isinstance(capability, Directory)  # noqa: S101 - it is of one
        root = capability
    return root


def chosen(rng: Random, calls: Sequence[_Call], count: int) -> list[Choice]:
    """So many calls, of each as many as of the others; those that follow one another are of
    different files."""
    order = rng.sample(range(_FILES), k=_FILES)
    choices = []
    for number in range(count):
        call = calls[number % len(calls)]
        choices.append((call, order[number // len(calls) % _FILES]))
    return choices


def metered(names: Iterable[str], service: Serving) -> Mapping[str, Mapping[str, Meter]]:
    """The meters of contestants whom `service` serves, where this kernel has them: how long it has
    a processor for a call."""
    if not service.process.is_metered:
        return {}
    return {name: {"server_us": service.process.ran_us} for name in names}


async def _fill(root: Directory, parameters: Parameters) -> None:
    content = bytes(parameters.small_bytes)

    async def put(name: str) -> None:
        await root.write_file(name, content)

    names = [name(index) for index in range(_FILES) for name in (_read_name, _written_name)]
    await each(names, put, parameters.calls_in_flight)


async def _files(name: str, root: Directory, wrapping: Wrapping, parameters: Parameters) -> _Files:
    flags = OpenFlags.WRITE | OpenFlags.CREATE
    count = _FILES if _append in wrapping.calls else 0
    logs = [await root.open(f"log-{index:06}", flags) for index in range(count)]
    return _Files(name, root, logs, parameters.small_bytes)
