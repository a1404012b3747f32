"""What workloads on overlays begin with: an upper layer that has something of every kind."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_open import format_wf1
from capstore.tools.prove import wf1_start
from capstore.tools.prove.overlay_lower import layers, model
from capstore.tools.prove.overlay_model import Model
from capstore.tools.prove.overlay_session import Session
from capstore.tools.prove.overlay_steps import to_model, to_session
from capstore.tools.prove.recording import Clock, Disagreement, entropy
from capstore.tools.prove.workload import steps

# A copied file; covered names of a file and of a directory; a new file and directory; a lower
# directory that was renamed; a copied directory with a new name and a covered one; a directory in
# the place of a lower one; one copied name of a node that has two.  What comes behind the
# checkpoint is in no table.
START: Final = (
    "write c 100 300 21; remove v; remove t/f; remove t; create n; append n 500 22; mkdir o;"
    " create o/f; append o/f 100 23; rename q r; create m/u; remove m/f; remove h; mkdir h;"
    " create h/f; write j 0 10 24; checkpoint; append n 50 25; remove r/f; sync"
)


def opened(device: BlockDevice, life: int = 0, *, writable: bool = True) -> Session:
    """The overlay on a device, with a clock and an entropy that are the same each time."""
    engine = wf1_start.opened(device, life, writable=writable)
    return Session(engine, layers(), writable=writable)


@lru_cache(maxsize=8)
def start(spare_segments: int) -> tuple[bytes, Model]:
    """An image to begin with, and what is in it; `spare_segments` of 0 are a region that grows."""
    device, shown = MemoryDevice(), model()
    size = wf1.SEGMENTS_AT + (wf1.SEGMENTS_MIN + spare_segments) * wf1.SEGMENT_BYTES_MIN
    format_wf1(
        device,
        size=size if spare_segments else None,
        segment_bytes=wf1.SEGMENT_BYTES_MIN,
        clock=Clock(),
        entropy=entropy("format overlay"),
    )
    session = opened(device)
    for step in steps(START):
        to_model(shown, step)
        to_session(session, step)
    if session.seen() != shown.tree():
        raise Disagreement("the starting tree is not what it should be")
    return device.read(0, device.size()), shown
