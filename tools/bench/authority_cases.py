"""The authority cases: what policies, TLS, and other people's connections cost.

Invariants: both who are compared are served from memory, by services in processes of their own, and
take turns of some milliseconds where they can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capstore.tools.bench import authority_crowd as crowd
from capstore.tools.bench import authority_policies as policies
from capstore.tools.bench import authority_tls as tls
from capstore.tools.bench import turns
from capstore.tools.bench.authority_crowd import ALONE, Round
from capstore.tools.bench.authority_policies import UNWRAPPED, Wrapping
from capstore.tools.bench.authority_site import TLS, UNIX, descriptors_missing
from capstore.tools.bench.cases import Case, Ceiling, Goal
from capstore.tools.bench.measure import SUBJECT, Outcome
from capstore.tools.bench.parameters import FULL, Parameters
from capstore.tools.bench.slices import Slices, measured
from capstore.tools.bench.wf1_taken import Taken

_ALONE_RATIO: Final = 0.8
_STACKED_RATIO: Final = 0.6
_CROWDED_RATIO: Final = 0.8
_IDLE_KIB_MAX: Final = 200
_P99_RATIO_MAX: Final = 5
# A slice of calls that wait for one another.
_SLICE_CALLS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityCase(Case):
    """A case of capstore beside itself, `rival`."""

    rival: str
    connections: int = 0

    def turn_count(self) -> int:
        return 2

    def absence(self) -> str | None:
        return descriptors_missing(self.connections)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceCase(AuthorityCase):
    """A case in short turns, of what `enter` opens."""

    enter: Callable[[Parameters], AbstractAsyncContextManager[Slices[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCase(AuthorityCase):
    """A case of which `enter` gives whole rounds."""

    enter: Callable[[Parameters], AbstractAsyncContextManager[Round]]


def _policy_case(wrapping: Wrapping, ratio: float | None) -> SliceCase:
    return SliceCase(
        name=f"authority-{wrapping.name}",
        what=f"{wrapping.what}, with the policy and without",
        unit="operations/s",
        enter=wrapping.enter,
        rival=UNWRAPPED,
        goal=None if ratio is None else Goal(ratio, rival=UNWRAPPED),
    )


def _tls_case(name: str, what: str, unit: str, enter: tls.Enter) -> SliceCase:
    return SliceCase(
        name=f"authority-tls-{name}",
        what=f"{what} over TLS, beside a unix socket",
        unit=unit,
        enter=enter,
        rival=UNIX,
    )


def _crowd_case(name: str, transport: str, over: str) -> SliceCase:
    connections = FULL.authority_connections
    return SliceCase(
        name=name,
        what=f"{connections} connections{over}, {FULL.authority_active} of them active, beside "
        "those alone",
        unit="calls/s",
        enter=crowd.crowded(transport),
        rival=ALONE,
        connections=connections,
        goal=Goal(_CROWDED_RATIO, rival=ALONE),
        ceilings=(Ceiling("idle_kib", _IDLE_KIB_MAX),),
    )


CASES: Final[tuple[AuthorityCase, ...]] = (
    *(_policy_case(wrapping, _ALONE_RATIO) for wrapping in policies.ALONE),
    _policy_case(policies.STACKED, _STACKED_RATIO),
    *(_policy_case(wrapping, None) for wrapping in policies.MOST),
    _tls_case(
        "read",
        "open and read a small file, one after another,",
        "calls/s",
        tls.over_both(tls.small_reads(lambda parameters: 1), lambda parameters: _SLICE_CALLS),
    ),
    _tls_case(
        "read-many",
        "the same, many in flight,",
        "calls/s",
        tls.over_both(
            tls.small_reads(lambda parameters: parameters.calls_in_flight),
            lambda parameters: parameters.authority_slice,
        ),
    ),
    _tls_case(
        "read-256k",
        "read a large file, 256k blocks in a window,",
        "bytes/s",
        tls.over_both(tls.reads),
    ),
    _tls_case(
        "write-256k",
        "write it, 256k blocks in a window,",
        "bytes/s",
        tls.over_both(tls.writes),
    ),
    _crowd_case("authority-crowd", UNIX, ""),
    _crowd_case("authority-crowd-tls", TLS, " over TLS"),
    RoundCase(
        name="authority-flood",
        what="ask now and then beside a client that floods, and alone",
        unit="calls/s",
        enter=crowd.flooded,
        rival=ALONE,
        ceilings=(Ceiling("p99_ratio", _P99_RATIO_MAX),),
    ),
)


def run(
    parameters: Parameters,
    cases: Sequence[AuthorityCase],
    folder: Path,
    tell: Callable[[str], None],
    advance: Callable[[str], None],
) -> list[Outcome]:
    """Measures `cases`; there is nothing in `folder`.

    Not to be called where an event loop runs.  `tell` hears what is begun, `advance` a case's name
    after each figure.  Raises `BenchError`.
    """
    outcomes = []
    for case in cases:
        tell(f"beginning {case.name}")
        outcomes.append(asyncio.run(_measured(parameters, case, advance)))
    return outcomes


async def _measured(
    parameters: Parameters, case: AuthorityCase, advance: Callable[[str], None]
) -> Outcome:
    if isinstance(case, SliceCase):
        async with case.enter(parameters) as slices:
            return await measured(parameters, case, slices, advance)
    assert isinstance(case, RoundCase)  # noqa: S101 - there are no others
    taken: dict[str, list[Taken]] = {SUBJECT: [], case.rival: []}
    async with case.enter(parameters) as one_round:
        for _ in range(case.rounds(parameters.rounds)):
            for name, one in (await one_round()).items():
                taken[name].append(one)
                advance(case.name)
    return turns.outcome(case, taken)
