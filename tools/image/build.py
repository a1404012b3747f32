"""``capstore image build``: an image of a tree.

Invariants:

* The same tree gives the same bytes, whatever it is read from, when it was made and by whom.
* The image is made beside its place and appears there when it is whole and durable.
* Nothing that the building makes becomes part of what is built.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from capstore.backers.spec import Spec
from capstore.backers.workers import in_worker
from capstore.images.builder import Facts, TreeBuilder
from capstore.tools.image.epoch import facts_of, source_date_epoch
from capstore.tools.image.output import Output, making
from capstore.tools.image.pushing import Pusher
from capstore.tools.image.source import Tree, opened_tree
from capstore.tools.progress import Meter, metered

FORMATS: Final = ("ro1", "tar", "cpio", "fat", "wf1")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: of the tree `source`, at `place`, in `format`.

    None for `source` is an empty tree, for wf1 only.  `size` in bytes (fat and wf1) and `fat_type`
    (fat) can be None, which leaves them to the content.
    """

    place: Path
    format: str
    source: str | None
    label: str = ""
    size: int | None = None
    fat_type: int | None = None
    force: bool = False


async def build(plan: Plan, *, quiet: bool) -> None:
    """Builds the image.

    Raises what opening and reading the tree raises, what the builder raises (`Unsupported`,
    `TooLarge`, `NoSpace`), `AlreadyExists`, and OSError.
    """
    epoch = source_date_epoch()
    with making(plan.place, force=plan.force) as output:
        if plan.source is None:
            await _with_builder(plan, output, epoch, _empty)
        else:
            async with opened_tree(plan.source) as tree, metered("build", quiet=quiet) as meter:
                await _fill(plan, plan.source, output, tree, meter, epoch)
        await in_worker(output.commit)


async def _empty(builder: TreeBuilder) -> None:
    await in_worker(partial(builder.directory, (), Facts()))


async def _fill(
    plan: Plan, source: str, output: Output, tree: Tree, meter: Meter, epoch: int | None
) -> None:
    skip = _own_paths(source, output)
    if plan.format == "fat":
        from capstore.tools.image.fatplan import check_tree

        # Before much is copied for nothing: what FAT cannot hold shows in the listing.
        await check_tree(tree, skip)
    keep = partial(facts_of, epoch=epoch, needs_time=plan.format not in ("ro1", "wf1"))

    async def push(builder: TreeBuilder) -> None:
        await Pusher(builder, keep, meter).push(tree, skip=skip)

    await _with_builder(plan, output, epoch, push)


async def _with_builder(
    plan: Plan,
    output: Output,
    epoch: int | None,
    push: Callable[[TreeBuilder], Awaitable[None]],
) -> None:
    with ExitStack() as stack:
        builder = await in_worker(lambda: _builder(plan, output, stack, epoch))
        try:
            await push(builder)
            await in_worker(builder.finish)
        except BaseException:
            await in_worker(builder.abort)
            raise


def _own_paths(source: str, output: Output) -> frozenset[tuple[str, ...]]:
    """Where the image, and what it is made in, lie in the tree if that is a local directory."""
    if source.startswith("dir:") and not os.path.lexists(source):
        source = Spec.parse(source).argument
    root, folder = Path(source).resolve(), output.place.parent.resolve()
    if not root.is_dir() or not folder.is_relative_to(root):
        return frozenset()
    above = folder.relative_to(root).parts
    return frozenset({(*above, output.place.name), (*above, output.scratch.name)})


# Builders ----------------------------------------------------------------------------------------


def _builder(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    """The builder of the format; what it writes to is closed with `stack`."""
    return _BUILDERS[plan.format](plan, output, stack, epoch)


def _ro1(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.images.devices import FileDevice
    from capstore.images.ro1_build import Ro1Builder

    device = FileDevice.open(output.path, create=True)
    stack.callback(device.close)
    return Ro1Builder(device, label=plan.label, built=epoch or 0)


def _tar(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.images.tar_build import TarBuilder

    return TarBuilder(stack.enter_context(output.path.open("wb")))


def _cpio(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.images.cpio_build import CpioBuilder

    return CpioBuilder(stack.enter_context(output.path.open("wb")))


def _fat(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.tools.image.fatbuild import FatBuilder

    return FatBuilder(
        output.path,
        output.scratch / "stage",
        label=plan.label,
        size=plan.size,
        fat_type=plan.fat_type,
    )


def _wf1(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.images.devices import FileDevice
    from capstore.images.wf1_build import Wf1Builder

    device = FileDevice.open(output.path, create=True)
    stack.callback(device.close)
    return Wf1Builder(device, size=plan.size, built=epoch or 0)


_BUILDERS: Final[dict[str, Callable[[Plan, Output, ExitStack, int | None], TreeBuilder]]] = {
    "ro1": _ro1,
    "tar": _tar,
    "cpio": _cpio,
    "fat": _fat,
    "wf1": _wf1,
}
