"""CAPOSST1 as a subject of the proof."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Final

from capstore.images.device import BlockDevice
from capstore.images.st1_engine import St1Engine
from capstore.tools.prove import st1_ace, st1_scenarios, st1_start
from capstore.tools.prove.canaries import Canary
from capstore.tools.prove.explore import Tally
from capstore.tools.prove.load import Load
from capstore.tools.prove.st1_canaries import CANARIES
from capstore.tools.prove.st1_chance import chance_workload
from capstore.tools.prove.st1_examine import St1Examiner
from capstore.tools.prove.st1_history import histories
from capstore.tools.prove.st1_load import LOADS
from capstore.tools.prove.st1_model import VERSION, Model
from capstore.tools.prove.st1_steps import DURABLE, KEEPING, held, to_engine, to_model
from capstore.tools.prove.subject import DamageSubject, Subject, Tree
from capstore.tools.prove.workload import Step, Workload, steps

_COMPACTING: Final = frozenset(("compact", "step", "work"))
_COLLECTING: Final = frozenset(("collect", "sweep"))


class St1Subject(Subject[St1Engine, Model]):
    """Objects and names in a CAPOSST1 store."""

    name = "st1"
    title = "CAPOSST1"
    durable = DURABLE
    keeping = KEEPING
    lazy = frozenset(("step", "sweep", "abort"))
    aside = frozenset((VERSION,))
    after = (
        steps("put z 70 9001; commit; put a 700 9002; sync"),
        steps("put z 5000 9001; sync; delete z; compact; put z 5 9002; sync"),
        steps("hashed 900 9001; commit; step; step; step; collect; sync"),
        steps("batch z y # 70 9001 5000 9002 660 9003; commit; put b 9 9004; sync"),
    )
    more = steps("put z 300 9; sync; delete z; sync")
    damage = DamageSubject(
        steps(
            "put b 600 21; sync; hashed 5000 22; bind m/o h-5000-22; compact; put x 900 23; sync;"
            " delete a; commit; put y 70 24; batch z -b # 300 25 80 26; sync; unbind n; sync"
        ),
        room=0,
    )
    scenarios = st1_scenarios.SCENARIOS
    loads: ClassVar[Sequence[Load]] = LOADS

    def begin(self, workload: Workload) -> tuple[bytes, Model]:
        return st1_start.start(workload.room, over_another=workload.over_another)

    def opened(self, device: BlockDevice, life: int = 0, *, writable: bool = True) -> St1Engine:
        return st1_start.opened(device, life, writable=writable)

    def seen(self, engine: St1Engine) -> Tree:
        return st1_start.seen(engine)

    def to_engine(self, engine: St1Engine, step: Step) -> None:
        to_engine(engine, step)

    def to_model(self, model: Model, step: Step) -> Sequence[Model]:
        return to_model(model, step)

    def reborn(self, model: Model) -> Model:
        return model.reborn()

    def gave_up(self, model: Model, step: Step) -> None:
        if step.op in _COLLECTING:
            model.collection = None

    def phase(self, engine: St1Engine, step: Step) -> str:
        if step.op in _COMPACTING:
            return "compaction"
        if step.op in _COLLECTING:
            return "collection"
        return "operation" if held(engine).compacting is None else "operation while compacted"

    def settings(self) -> AbstractContextManager[object]:
        return st1_start.small_steps()

    def ace(self, length: int) -> Sequence[Workload]:
        return st1_ace.length_1() if length == 1 else st1_ace.length_2()

    def chance(self, seed: int, operations: int) -> Workload:
        return chance_workload(seed, operations)

    def scenario(self, name: str) -> Workload:
        return st1_scenarios.scenario(name)

    def examiner(self) -> St1Examiner:
        return St1Examiner()

    def histories(self, seed: int, times: int) -> Tally:
        return histories(seed, times)

    def canaries(self) -> Sequence[Canary]:
        return CANARIES


SUBJECT: Final = St1Subject()
