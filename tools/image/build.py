"""``capstore image build``: an image of a tree.

Invariants:

* The same tree gives the same bytes, whatever it is read from, when it was made and by whom.
* The image is made beside its place and appears there when it is whole and durable.
* Nothing that the building makes becomes part of what is built.
* An image of two halves is built half by half: the store of objects, then the tree behind it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from capstore.backers.overlay_spec import OCI, parse_overlay
from capstore.backers.spec_text import Spec
from capstore.backers.workers import in_worker
from capstore.images import st1
from capstore.images.builder import Facts, TreeBuilder
from capstore.images.durable import replace_file
from capstore.images.records import BLOCK_BYTES
from capstore.tools.image.epoch import facts_of, source_date_epoch
from capstore.tools.image.output import Output, making
from capstore.tools.image.pushing import Pusher
from capstore.tools.image.source import Tree, opened_tree
from capstore.tools.progress import Meter, metered

# A store of objects in front of a tree.
COMBINED: Final = "st1+wf1"
COMBINED_BYTES: Final = st1.COMBINED_BLOCKS * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: of the tree `source`, at `place`, in `format`.

    None for `source` is an empty tree, or store, for wf1 and st1 only.  `size` in bytes (fat, wf1
    and st1) and `fat_type` (fat) can be None, which leaves them to the content.  Objects (st1) are
    content-addressed if `hashed`, and then what their keys are goes into the file `manifest`, or to
    stdout.  In an image of two halves, `source` is that of the tree, and `objects` of the store.
    """

    place: Path
    format: str
    source: str | None
    label: str = ""
    size: int | None = None
    fat_type: int | None = None
    objects: str | None = None
    hashed: bool = False
    manifest: Path | None = None
    force: bool = False

    def halves(self) -> list[Plan]:
        """What is to be built, one behind the other."""
        if self.format != COMBINED:
            return [self]
        store = replace(self, format="st1", source=self.objects, size=COMBINED_BYTES)
        return [store, replace(self, format="wf1")]


async def build(plan: Plan, *, quiet: bool) -> None:
    """Builds the image.

    Raises what opening and reading the tree raises, what the builder raises (`Unsupported`,
    `TooLarge`, `NoSpace`), `AlreadyExists`, and OSError.
    """
    epoch = source_date_epoch()
    with making(plan.place, force=plan.force) as output:
        for half in plan.halves():
            if half.source is None:
                await _with_builder(half, output, epoch, _empty)
            else:
                async with opened_tree(half.source) as tree, metered("build", quiet=quiet) as meter:
                    await _fill(half, half.source, output, tree, meter, epoch)
        await in_worker(output.commit)
        if plan.hashed:
            await in_worker(lambda: _write_manifest(plan, output))


def _write_manifest(plan: Plan, output: Output) -> None:
    """What was said of the objects, to where it is wanted.  Raises OSError."""
    with _manifest_of(output).open("rb") as lines:
        if plan.manifest is not None:
            replace_file(plan.manifest, partial(shutil.copyfileobj, lines), mode=0o644)
        else:
            shutil.copyfileobj(lines, sys.stdout.buffer)


def _manifest_of(output: Output) -> Path:
    return output.scratch / "manifest"


async def _empty(builder: TreeBuilder) -> None:
    await in_worker(partial(builder.directory, (), Facts()))


async def _fill(
    plan: Plan, source: str, output: Output, tree: Tree, meter: Meter, epoch: int | None
) -> None:
    own = [output.place, output.scratch, *([plan.manifest] if plan.manifest else [])]
    skip = await in_worker(lambda: own_paths(source, own))
    if plan.format == "fat":
        from capstore.tools.image.fatplan import check_tree

        # Before much is copied for nothing: what FAT cannot hold shows in the listing.
        await check_tree(tree, skip)
    is_store = plan.format == "st1"
    keep = partial(facts_of, epoch=epoch, needs_time=plan.format not in ("ro1", "wf1"))

    async def push(builder: TreeBuilder) -> None:
        await Pusher(builder, keep, meter, links=not is_store).push(tree, skip=skip)

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
            await in_worker(partial(_finish, plan, builder, output))
        except BaseException:
            await in_worker(builder.abort)
            raise


def _finish(plan: Plan, builder: TreeBuilder, output: Output) -> None:
    builder.finish()
    if plan.format == "st1" and plan.hashed:
        from capstore.tools.image.objects import ObjectBuilder

        if isinstance(builder, ObjectBuilder):
            with _manifest_of(output).open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in builder.named())


def own_paths(source: str, own: Sequence[Path]) -> frozenset[tuple[str, ...]]:
    """Where what is made, the paths `own`, lies in the tree, as far as that is of local
    directories."""
    places = [path.parent.resolve() / path.name for path in own]
    roots = [Path(local).resolve() for local in _local_parts(source)]
    return frozenset(
        place.relative_to(root).parts
        for root in roots
        for place in places
        if root.is_dir() and place.is_relative_to(root)
    )


def _local_parts(source: str) -> list[str]:
    """The paths, of directories or not, that a tree is made of."""
    if os.path.lexists(source):
        return [source]
    scheme, _, argument = source.partition(":")
    if scheme == "overlay":
        layers = parse_overlay(argument)
        return [path for part in (layers.upper, *layers.lowers) for path in _local_parts(part)]
    return [Spec.parse(source).argument] if scheme in ("dir", OCI) else []


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

    # Behind a store, in its file.
    device = FileDevice.open(output.path, create=not output.path.exists())
    stack.callback(device.close)
    return Wf1Builder(device, size=plan.size, built=epoch or 0)


def _st1(plan: Plan, output: Output, stack: ExitStack, epoch: int | None) -> TreeBuilder:
    from capstore.images.devices import FileDevice
    from capstore.tools.image.objects import ObjectBuilder

    device = FileDevice.open(output.path, create=True)
    stack.callback(device.close)
    return ObjectBuilder(device, hashed=plan.hashed, size=plan.size, built=epoch or 0)


_BUILDERS: Final[dict[str, Callable[[Plan, Output, ExitStack, int | None], TreeBuilder]]] = {
    "ro1": _ro1,
    "tar": _tar,
    "cpio": _cpio,
    "fat": _fat,
    "wf1": _wf1,
    "st1": _st1,
}
