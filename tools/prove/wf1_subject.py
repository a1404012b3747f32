"""CAPOSWF1 as a subject of the proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from capstore.images.device import BlockDevice
from capstore.images.wf1_engine import Engine
from capstore.tools.prove import wf1_ace, wf1_scenarios, wf1_start
from capstore.tools.prove.canaries import Canary
from capstore.tools.prove.load import Load
from capstore.tools.prove.recording import Disagreement
from capstore.tools.prove.subject import DamageSubject, Subject, Tree
from capstore.tools.prove.wf1_canaries import CANARIES
from capstore.tools.prove.wf1_chance import chance_workload
from capstore.tools.prove.wf1_examine import Wf1Examiner
from capstore.tools.prove.wf1_load import LOADS
from capstore.tools.prove.wf1_model import Model
from capstore.tools.prove.wf1_steps import DURABLE, KEEPING, held, to_engine, to_model
from capstore.tools.prove.workload import Step, Workload, steps


class Wf1Subject(Subject[Engine, Model]):
    """Trees of files in a CAPOSWF1 volume."""

    name = "wf1"
    title = "CAPOSWF1"
    durable = DURABLE
    keeping = KEEPING
    after = (
        steps("create z; append z 700 9001; commit; rename z a; sync"),
        steps("create z; sync; append z 5000 9001; checkpoint; remove z; sync"),
        steps("symlink z z; commit; clean; sync"),
        steps("create z; append z 700 9001; commit; rename z s; sync"),
    )
    more = steps("create z; append z 300 9; sync")
    damage = DamageSubject(
        steps(
            "rename d/a e/a; write a 200 600 21; sync; symlink l d; link a b; checkpoint; create"
            " d/x; append d/x 3000 22; sync; remove a; commit; append d/x 700 23; sync; mkdir f;"
            " rename e/a f/a; sync"
        ),
        room=0,
    )
    scenarios = wf1_scenarios.SCENARIOS
    loads: ClassVar[Sequence[Load]] = LOADS
    lingering = frozenset(("cleaning",))

    def begin(self, workload: Workload) -> tuple[bytes, Model]:
        return wf1_start.start(workload.room, over_another=workload.over_another)

    def opened(self, device: BlockDevice, life: int = 0, *, writable: bool = True) -> Engine:
        return wf1_start.opened(device, life, writable=writable)

    def seen(self, engine: Engine) -> Tree:
        return wf1_start.seen(engine)

    def to_engine(self, engine: Engine, step: Step) -> None:
        to_engine(engine, step)

    def to_model(self, model: Model, step: Step) -> Sequence[Model]:
        to_model(model, step)
        return ()

    def phase(self, engine: Engine, step: Step) -> str:
        return {"checkpoint": "checkpoint", "clean": "cleaning"}.get(step.op, "operation")

    def follower(self) -> Callable[[Engine, Step, Tree], None]:
        """What is held shows what it showed when it was taken."""
        moments: list[Tree] = []

        def follow(engine: Engine, step: Step, tree: Tree) -> None:
            if step.op == "snapshot":
                moments.append(tree)
            elif step.op == "drop":
                moments.clear()
            for snapshot, then in zip(held(engine).snapshots, moments, strict=True):
                if wf1_start.seen(engine, snapshot.state) != then:
                    raise Disagreement(f"after {step} a snapshot is not what it was")

        return follow

    def ace(self, length: int) -> Sequence[Workload]:
        return wf1_ace.length_1() if length == 1 else wf1_ace.length_2()

    def chance(self, seed: int, operations: int) -> Workload:
        return chance_workload(seed, operations)

    def scenario(self, name: str) -> Workload:
        return wf1_scenarios.scenario(name)

    def examiner(self) -> Wf1Examiner:
        return Wf1Examiner()

    def canaries(self) -> Sequence[Canary]:
        return CANARIES


SUBJECT: Final = Wf1Subject()
