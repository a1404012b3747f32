"""Overlays as a subject of the proof, with an upper layer that is a CAPOSWF1 volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from capstore.images.device import BlockDevice
from capstore.tools.prove import overlay_ace, overlay_scenarios, overlay_start
from capstore.tools.prove.canaries import Canary
from capstore.tools.prove.load import Load
from capstore.tools.prove.overlay_canaries import CANARIES
from capstore.tools.prove.overlay_chance import chance_workload
from capstore.tools.prove.overlay_examine import OverlayExaminer
from capstore.tools.prove.overlay_model import Model
from capstore.tools.prove.overlay_session import PHASES, Session
from capstore.tools.prove.overlay_steps import DURABLE, KEEPING, to_model, to_session
from capstore.tools.prove.subject import DamageSubject, Subject, Tree
from capstore.tools.prove.workload import Step, Workload, steps


class OverlaySubject(Subject[Session, Model]):
    """Trees of an overlay, whose changes are in a CAPOSWF1 volume."""

    name = "overlay"
    title = "The overlay"
    durable = DURABLE
    keeping = KEEPING
    after = (
        steps("create w; append w 700 9001; commit; rename w a; sync"),
        steps("append a 5000 9001; checkpoint; remove a; rename d w; sync"),
        steps("rename m w; commit; mkdir m; sync"),
        steps("reset; append k 10 9001; sync"),
    )
    more = steps("create w; append a 300 9; sync")
    damage = DamageSubject(
        steps(
            "rename d w; write a 200 600 21; sync; remove k; checkpoint; create w/x; append w/x"
            " 3000 22; sync; remove x; commit; append w/f 700 23; sync; mkdir d; rename w/e d/e;"
            " sync"
        ),
        room=0,
    )
    scenarios = overlay_scenarios.SCENARIOS
    loads: ClassVar[Sequence[Load]] = ()
    unsure = frozenset(("reset",))
    # What is done is in a frame that is written later.
    lingering = frozenset(PHASES)

    def begin(self, workload: Workload) -> tuple[bytes, Model]:
        image, model = overlay_start.start(workload.room)
        model = model.copy()
        model.flat = any(step.op == "flat" for part in workload.parts for step in part)
        return image, model

    def opened(self, device: BlockDevice, life: int = 0, *, writable: bool = True) -> Session:
        return overlay_start.opened(device, life, writable=writable)

    def seen(self, engine: Session) -> Tree:
        return engine.seen()

    def to_engine(self, engine: Session, step: Step) -> None:
        to_session(engine, step)

    def to_model(self, model: Model, step: Step) -> Sequence[Model]:
        return to_model(model, step)

    def reborn(self, model: Model) -> Model:
        copy = model.copy()
        copy.held.clear()
        return copy

    def phase(self, engine: Session, step: Step) -> str:
        phase = engine.phase()
        if step.op in DURABLE:
            engine.done.clear()
        return {"checkpoint": "checkpoint", "clean": "cleaning"}.get(step.op, phase)

    def ace(self, length: int) -> Sequence[Workload]:
        return overlay_ace.length_1() if length == 1 else overlay_ace.length_2()

    def chance(self, seed: int, operations: int) -> Workload:
        return chance_workload(seed, operations)

    def scenario(self, name: str) -> Workload:
        return overlay_scenarios.scenario(name)

    def examiner(self) -> OverlayExaminer:
        return OverlayExaminer()

    def canaries(self) -> Sequence[Canary]:
        return CANARIES


SUBJECT: Final = OverlaySubject()
