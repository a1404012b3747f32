"""Every kind of cases there is, and how those of each are measured.

Invariants: kinds stand in the order of the tables.  Each is measured where no event loop runs: who
takes part has a loop of its own, or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from capstore.tools.bench import (
    authority_cases,
    image_cases,
    measure,
    overlay_cases,
    st1_cases,
    wf1_cases,
)
from capstore.tools.bench import cases as service_cases
from capstore.tools.bench.cases import Case, ServiceCase
from capstore.tools.bench.image_cases import ImageCase
from capstore.tools.bench.measure import Outcome
from capstore.tools.bench.parameters import Parameters

C = TypeVar("C", bound=Case)
One = TypeVar("One", bound=Case, contravariant=True)
Hears = Callable[[str], None]


class Cases(Protocol):
    """A module that has cases."""

    @property
    def CASES(self) -> Sequence[Any]:  # noqa: N802 - it is a constant
        """In the order of the table."""


class Run(Protocol[One]):
    """Measures cases that can be run here, with everything in a folder."""

    def __call__(
        self,
        parameters: Parameters,
        cases: Sequence[One],
        folder: Path,
        tell: Hears,
        advance: Hears,
        /,
    ) -> list[Outcome]:
        """What they came to; `tell` hears what is being made, `advance` a case's name after each
        figure.  Raises `BenchError`."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[C]):
    """One kind: the module that has its cases, and what measures them."""

    module: Cases
    run: Run[C]

    def chosen(self, glob: str) -> list[C]:
        """Its cases whose names fit."""
        return [case for case in self.module.CASES if fnmatchcase(case.name, glob)]


def _run_service(
    parameters: Parameters,
    cases: Sequence[ServiceCase],
    folder: Path,
    tell: Hears,
    advance: Hears,
) -> list[Outcome]:
    return asyncio.run(measure.run(parameters, cases, advance))


def _run_images(
    parameters: Parameters,
    cases: Sequence[ImageCase],
    folder: Path,
    tell: Hears,
    advance: Hears,
) -> list[Outcome]:
    return asyncio.run(image_cases.run(parameters, cases, folder, tell, advance))


KINDS: Final[tuple[Kind[Any], ...]] = (
    Kind(service_cases, _run_service),
    Kind(image_cases, _run_images),
    Kind(wf1_cases, wf1_cases.run),
    Kind(st1_cases, st1_cases.run),
    Kind(overlay_cases, overlay_cases.run),
    Kind(authority_cases, authority_cases.run),
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Cases by kind."""

    by_kind: Sequence[tuple[Kind[Any], Sequence[Case]]]

    @staticmethod
    def of(glob: str) -> Chosen:
        """All whose names fit."""
        return Chosen([(kind, kind.chosen(glob)) for kind in KINDS])

    @property
    def cases(self) -> list[Case]:
        """All of them."""
        return [case for _, cases in self.by_kind for case in cases]
