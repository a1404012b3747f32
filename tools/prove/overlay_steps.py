"""The steps of workloads on overlays, done by the model and by the overlay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from capstore.backers.node import Attributes, DirectoryNode, FileNode, OpenFlags, RenameMode
from capstore.tools.prove.overlay_model import Directory, File, Link, Model, truncate, write
from capstore.tools.prove.overlay_session import Session
from capstore.tools.prove.workload import Step, content

# Steps that change nothing there is to see.  From then on `together` has changes share frames, and
# `flat` has directories that move be without a redirect; `arm` has something be done in the middle
# of the next copy.
KEEPING: Final = frozenset(
    ("sync", "commit", "checkpoint", "clean", "release", "together", "flat", "arm")
)
# Those behind which everything before them is durable.
DURABLE: Final = frozenset(("sync", "checkpoint", "reset"))
# What can be armed.
ARMS: Final = ("checkpoint", "clean", "sync")

# On the model ------------------------------------------------------------------------------------


def _write(model: Model, step: Step) -> None:
    offset, size, number = step.numbers
    write(model.file(step.paths[0]), offset, content(number, size))


def _append(model: Model, step: Step) -> None:
    size, number = step.numbers
    file = model.file(step.paths[0])
    write(file, len(file.data), content(number, size))


def _chmod(model: Model, step: Step) -> None:
    model.file(step.paths[0]).executable = bool(step.numbers[0])


def _times(model: Model, step: Step) -> None:
    model.item(step.paths[0]).modified = step.numbers[0]


def _touch(model: Model, step: Step) -> None:
    """Opening with create: what is there stays as it is."""
    if model.has(step.paths[0]):
        model.file(step.paths[0])
    else:
        model.make(step.paths[0], File())


def _poke(model: Model, step: Step) -> Sequence[Model]:
    """Writes into each file that is held; what there was in between."""
    offset, size, number = step.numbers
    between = []
    for file in model.held:
        between.append(model.copy())
        write(file, offset, content(number, size))
    return between[1:]


_MODEL: Final[dict[str, Callable[[Model, Step], object]]] = {
    "create": lambda m, s: m.make(s.paths[0], File()),
    "touch": _touch,
    "mkdir": lambda m, s: m.make(s.paths[0], Directory()),
    "symlink": lambda m, s: m.make(s.paths[0], Link(target=s.paths[1])),
    "link": lambda m, s: m.link(*s.paths),
    "remove": lambda m, s: m.remove(s.paths[0]),
    "rename": lambda m, s: m.rename(*s.paths, replace=True),
    "move": lambda m, s: m.rename(*s.paths, replace=False),
    "exchange": lambda m, s: m.exchange(*s.paths),
    "write": _write,
    "append": _append,
    "truncate": lambda m, s: truncate(m.file(s.paths[0]), s.numbers[0]),
    "empty": lambda m, s: truncate(m.file(s.paths[0]), 0),
    "chmod": _chmod,
    "times": _times,
    "hold": lambda m, s: m.held.append(m.file(s.paths[0])),
    "release": lambda m, _: m.held.clear(),
    "reset": lambda m, _: m.reset(),
}


def to_model(model: Model, step: Step) -> Sequence[Model]:
    """Does the step on a model; what there was in between.  Raises `Refused`."""
    if step.op == "poke":
        return _poke(model, step)
    done = _MODEL.get(step.op)
    if done is not None:
        done(model, step)
    return ()


# On a tree of nodes ------------------------------------------------------------------------------


async def place(root: DirectoryNode, path: str) -> tuple[DirectoryNode, str]:
    """The directory that a path is in, and its name there.  Raises `NotFound`, `NotDirectory`."""
    *above, name = path.split("/")
    for step in above:
        root = await root.sub(step)
    return root, name


async def _opened(root: DirectoryNode, path: str, flags: OpenFlags) -> FileNode:
    directory, name = await place(root, path)
    return await directory.open(name, flags)


def _through(
    change: Callable[[FileNode, Step], Awaitable[object]], more: OpenFlags = OpenFlags.READ
) -> Callable[[DirectoryNode, Step], Awaitable[None]]:
    """A step that opens a file, changes it and lets go of it."""

    async def done(root: DirectoryNode, step: Step) -> None:
        file = await _opened(root, step.paths[0], OpenFlags.WRITE | more)
        try:
            await change(file, step)
        finally:
            await file.close()

    return done


def _written(file: FileNode, step: Step) -> Awaitable[None]:
    offset, size, number = step.numbers
    return file.write(offset, content(number, size))


async def _nothing(file: FileNode, step: Step) -> None:
    """Opening was all."""


async def _create(root: DirectoryNode, step: Step) -> None:
    directory, name = await place(root, step.paths[0])
    await (await directory.create(name)).close()


async def _mkdir(root: DirectoryNode, step: Step) -> None:
    directory, name = await place(root, step.paths[0])
    await directory.mkdir(name)


async def _symlink(root: DirectoryNode, step: Step) -> None:
    directory, name = await place(root, step.paths[0])
    await directory.symlink(name, step.paths[1])


async def _link(root: DirectoryNode, step: Step) -> None:
    directory, name = await place(root, step.paths[0])
    await directory.link(name, *await place(root, step.paths[1]))


async def _remove(root: DirectoryNode, step: Step) -> None:
    directory, name = await place(root, step.paths[0])
    await directory.remove(name)


def _renamed(mode: RenameMode) -> Callable[[DirectoryNode, Step], Awaitable[None]]:
    async def done(root: DirectoryNode, step: Step) -> None:
        directory, name = await place(root, step.paths[0])
        await directory.rename(name, *await place(root, step.paths[1]), mode)

    return done


async def _set_attributes(root: DirectoryNode, path: str, change: Attributes) -> None:
    directory, name = await place(root, path)
    await directory.set_attributes(change, name)


_NODES: Final[dict[str, Callable[[DirectoryNode, Step], Awaitable[None]]]] = {
    "create": _create,
    "touch": _through(_nothing, OpenFlags.CREATE),
    "mkdir": _mkdir,
    "symlink": _symlink,
    "link": _link,
    "remove": _remove,
    "rename": _renamed(RenameMode.REPLACE),
    "move": _renamed(RenameMode.NO_REPLACE),
    "exchange": _renamed(RenameMode.EXCHANGE),
    "write": _through(_written),
    "append": _through(lambda f, s: f.append(content(s.numbers[1], s.numbers[0]))),
    "truncate": _through(lambda f, s: f.truncate(s.numbers[0])),
    "empty": _through(_nothing, OpenFlags.TRUNCATE),
    "chmod": lambda r, s: _set_attributes(r, s.paths[0], Attributes(executable=bool(s.numbers[0]))),
    "times": lambda r, s: _set_attributes(r, s.paths[0], Attributes(modified=s.numbers[0])),
}


async def to_nodes(root: DirectoryNode, step: Step) -> None:
    """Does a step that is one of a tree; raises as its nodes do."""
    await _NODES[step.op](root, step)


# On an overlay -----------------------------------------------------------------------------------


async def _hold(session: Session, step: Step) -> None:
    root = (await session.overlay()).root
    session.held.append(await _opened(root, step.paths[0], OpenFlags.WRITE))


async def _poke_held(session: Session, step: Step) -> None:
    for file in session.held:
        await _written(file, step)


async def _release(session: Session, _: Step) -> None:
    while session.held:
        await session.held.pop().close()


async def _sync(session: Session, _: Step) -> None:
    await (await session.overlay()).sync()


def _in_engine(op: str) -> Callable[[Session, Step], Awaitable[None]]:
    async def done(session: Session, _: Step) -> None:
        getattr(session.engine, op)()

    return done


async def _together(session: Session, _: Step) -> None:
    session.volume.apart = False


async def _flat(session: Session, _: Step) -> None:
    session.volume.redirects = False


async def _arm(session: Session, step: Step) -> None:
    what = Step(step.paths[0])
    (await session.upper()).armed.append(lambda: _SESSION[what.op](session, what))


_SESSION: Final[dict[str, Callable[[Session, Step], Awaitable[None]]]] = {
    "hold": _hold,
    "poke": _poke_held,
    "release": _release,
    "sync": _sync,
    "commit": _in_engine("commit"),
    "checkpoint": _in_engine("checkpoint"),
    "clean": _in_engine("clean"),
    "together": _together,
    "flat": _flat,
    "arm": _arm,
    "reset": lambda session, _: session.reset(),
}


async def to_overlay(session: Session, step: Step) -> None:
    """Does the step; raises as the overlay does."""
    done = _SESSION.get(step.op)
    if done is None:
        await to_nodes((await session.overlay()).root, step)
    else:
        await done(session, step)


def to_session(session: Session, step: Step) -> None:
    """Does the step, and all that it leads to; raises as the overlay does."""
    session.run(to_overlay(session, step))
