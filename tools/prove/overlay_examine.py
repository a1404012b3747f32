"""What must hold of an overlay whose upper layer a crash left.

Beside what must hold of the volume: what the overlay shows is what there was to see at one moment;
the upper layer says nothing that the lower ones do not bear out (`verify_layers`), but for marks
that mean nothing where directories were copied up to move without a redirect; everything can be
removed, also what lower layers have; and a reset leaves the lower layers alone to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from capstore.images import wf1, wf1_marks, wf1_ops
from capstore.images.faults_image import SectorImage
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_verify import verify_content
from capstore.schema.errors import NoSpace
from capstore.tools.prove.examine import LIFE, Fault, Found, Looked, Outcome, Verdict
from capstore.tools.prove.overlay_lower import layers, model
from capstore.tools.prove.overlay_session import Session, seen
from capstore.tools.prove.overlay_steps import to_model, to_nodes, to_overlay
from capstore.tools.prove.recording import Clock, Moment, entropy
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.tracing import ImageDevice
from capstore.tools.prove.wf1_examine import Wf1Examiner, is_accounted_for
from capstore.tools.prove.workload import Step, steps

# A new file, a copy, a covered name, and a directory that moves with all that is in it.
_WORK: Final = steps(
    "create new; append new 900 9100; append a 300 9101; remove x; rename d p/d; sync"
)


class OverlayExaminer(Wf1Examiner):
    """Examines upper layers."""

    # Whether there may be marks that mean nothing.
    _is_flat = False

    def judged(
        self, image: SectorImage, moments: Sequence[Moment], first: int, last: int
    ) -> Verdict:
        self._is_flat = moments[0].model.flat
        return super().judged(image, moments, first, last)

    def _check(
        self,
        device: ImageDevice,
        found: Found[Recovered],
        looked: Looked,
        when: str,
        *,
        repairable: bool,
    ) -> None:
        if self._is_flat and repairable:
            findings = [finding for finding in looked.findings if not finding.repairable]
            looked = replace(looked, findings=findings)
        super()._check(device, found, looked, when, repairable=repairable)

    def look(self, device: ImageDevice, recovered: Recovered) -> Looked:
        session = _session(device, recovered, 0, writable=False)
        tree = session.seen()
        findings = [*verify_content(device, recovered), *session.findings()]
        return Looked(tree, is_accounted_for(session.engine), findings)

    def work(self, device: ImageDevice, recovered: Recovered) -> Tree:
        session = _session(device, recovered, LIFE + 1)
        session.volume.apart = False
        tree = session.run(_emptied(session))
        session.run(_worked(session))
        return tree

    @property
    def made(self) -> Tree:
        made = model()
        for step in _WORK:
            to_model(made, step)
        return made.tree()


def _session(
    device: ImageDevice, recovered: Recovered, life: int, *, writable: bool = True
) -> Session:
    engine = Engine(
        device, recovered, clock=Clock(), entropy=entropy(f"life {life}"), writable=writable
    )
    return Session(engine, layers(), writable=writable)


async def _emptied(session: Session) -> Tree:
    """Removes everything; the tree there was."""
    root = (await session.overlay()).root
    tree = await seen(root.volume)
    # Covering what lower layers have takes room.
    with suppress(NoSpace):
        # The deepest first.
        for path in sorted(tree, key=lambda path: (-path.count("/"), path)):
            await to_nodes(root, Step("remove", (path,)))
        if (await root.list()).entries:
            raise Fault(Outcome.UNUSABLE, "something is left when everything was removed")
    return tree


async def _worked(session: Session) -> None:
    """Takes the upper layer back, and does something new."""
    await session.reset()
    state = session.engine.state
    if state.counts.nodes != 1 or any(session.engine.space.live):
        raise Fault(Outcome.UNUSABLE, "something is left behind a reset")
    if wf1_marks.mark_of(wf1_ops.node_at(state, wf1.ROOT)) != wf1_marks.Mark():
        raise Fault(Outcome.UNUSABLE, "a mark is left behind a reset")
    for step in _WORK:
        await to_overlay(session, step)
