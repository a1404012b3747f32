"""The lower layers of all overlays of the proof: a base and a patch on it, which stay as they are.

Invariants: they are the same in every process, ids and times included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from capstore.backers.layer import Layer
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.overlay import OverlayVolume
from capstore.tools.prove.overlay_loop import run
from capstore.tools.prove.overlay_model import Directory, File, Item, Link, Model
from capstore.tools.prove.overlay_session import seen
from capstore.tools.prove.overlay_steps import to_nodes
from capstore.tools.prove.recording import Clock
from capstore.tools.prove.subject import Tree
from capstore.tools.prove.workload import steps

# Sizes below and above what is written at once, and one file with holes (the first 64 KiB and the
# last 3,000 bytes are there); several names of one node, in two directories; directories in
# directories.
BASE: Final = (
    "mkdir d; create d/f; append d/f 500 1; mkdir d/e; create d/e/f; append d/e/f 300 2;"
    " create a; append a 1000 3; create b; append b 70000 4; create x; append x 600 5; chmod x 1;"
    " create z; write z 0 65536 6; write z 200000 3000 7;"
    " create k; append k 700 8; link k l; link k d/k; symlink s d/f; link s d/s;"
    " create j; append j 800 9; link j i;"
    " mkdir m; create m/f; append m/f 400 10; create m/g; mkdir m/n; create m/n/f;"
    " mkdir p; create p/f; append p/f 20 11; mkdir q; create q/f; append q/f 90 12; mkdir q/n;"
    " mkdir t; create t/f; create c; append c 5000 13; create v; create y; mkdir h;"
    " mkdir g"
)
# Merged directories, an opaque one, and names that are covered.
PATCH: Final = (
    "create d/g; append d/g 200 14; remove y; remove p/f; remove p; mkdir p; create p/g;"
    " append p/g 30 15; write m/g 0 40 16"
)
# Behind these no clock of an upper layer begins.
_BASE_TIME, _PATCH_TIME = 1_000, 5_000


class _From(Clock):
    """Nanoseconds from `first` on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._now = first


async def _volumes() -> tuple[MemoryVolume, MemoryVolume]:
    base = await MemoryVolume.open(clock=_From(_BASE_TIME))
    for step in steps(BASE):
        await to_nodes(base.root, step)
    patch = await MemoryVolume.open(clock=_From(_PATCH_TIME))
    patched = await OverlayVolume.over(await open_upper(patch), [open_layer(base)])
    for step in steps(PATCH):
        await to_nodes(patched.root, step)
    return patch, base


@cache
def _lower() -> tuple[MemoryVolume, MemoryVolume]:
    return run(_volumes(), Clock())


def layers() -> Sequence[Layer]:
    """The lower layers, from the top to the bottom."""
    return [open_layer(volume) for volume in _lower()]


async def _shown(lowers: Sequence[Layer]) -> Tree:
    return await seen(await OverlayVolume.over(None, lowers))


@cache
def _shown_model() -> Model:
    return model_of(run(_shown(layers()), Clock()))


def model() -> Model:
    """What they show."""
    return _shown_model().copy()


def model_of(tree: Tree) -> Model:
    """The model that shows this."""
    root, items = Directory(), dict[str, Item]()
    for path, leaf in sorted(tree.items()):
        first = str(leaf[-1]) if leaf[0] != "d" else path
        if first not in items:
            items[first] = _item(*leaf)
        above, _, name = path.rpartition("/")
        at = items[above] if above else root
        assert isinstance(at, Directory)  # noqa: S101 - it comes before what is in it
        at.entries[name] = items[path] = items[first]
    return Model(root, root).copy()


def _item(
    kind: object,
    modified: object,
    node_id: object,
    held: object = "",
    executable: object = False,
    *_: object,
) -> Item:
    assert isinstance(modified, int)  # noqa: S101 - a leaf's words are of many kinds
    assert isinstance(node_id, int)  # noqa: S101
    if isinstance(held, bytes):
        return File(modified, node_id, held, bool(executable))
    if kind == "d":
        return Directory(modified, node_id)
    return Link(modified, node_id, str(held))
