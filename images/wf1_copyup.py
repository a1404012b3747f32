"""Copying up into a CAPOSWF1 volume: what an overlay does there that no user has done.

Invariants:

* It is silent: the directory in which a name comes keeps its times and its version.
* An operation is one change, so a crash leaves all or nothing of it.  A file that is copied is
  without a name, and so gone behind a crash, until `CopyUp.name` gives it one together with its
  mark.
* What gets a name is in the log, or in the tables that the log rests on, with all of its content: a
  checkpoint leaves out nodes without a name, so a file that was without one then is written to the
  log again before it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from capstore.images import wf1
from capstore.images.records import WF1_EXTENT
from capstore.images.wf1_content import Extent, all_extents
from capstore.images.wf1_marks import Mark, alike, marked, with_names
from capstore.images.wf1_ops import check_target, directory_at, new_node, node_at
from capstore.images.wf1_state import GONE, Change, NameChange, Node, NodeChange, State
from capstore.schema.errors import AlreadyExists, InvalidArgument, NotFound
from capstore.schema.names import check_name
from capstore.schema.nodes import Stat

if TYPE_CHECKING:
    from capstore.images.wf1_engine import Engine

# A change has so many extents at most: a frame of any volume holds them.
_EXTENTS_MAX: Final = 1000


# What changes -------------------------------------------------------------------------------------


def _check_free(state: State, directory: int, name: str) -> None:
    """Raises unless `name` is free for a copy: where a whiteout is there is nothing to copy."""
    check_name(name)
    directory_at(state, directory)
    if state.child(directory, name) != GONE:
        raise AlreadyExists("the name is taken")


def unnamed(state: State, now: int) -> Change:
    """A new empty file without a name, for somebody who holds it."""
    node = new_node(wf1.FILE, now)
    return Change(
        (NodeChange(node._replace(id=state.next_node, links=0, version=state.changes + 1)),)
    )


def named(state: State, number: int, directory: int, name: str, like: Stat, mark: Mark) -> Change:
    """The unnamed file `number` with a name, the times of `like`, and a mark."""
    node = node_at(state, number)
    if node.links:
        raise InvalidArgument("the file has a name")
    _check_free(state, directory, name)
    after = with_names(marked(alike(node, like), mark), 1)._replace(parent=directory)
    return Change((NodeChange(after),), (NameChange(directory, name, number),))


def placed(state: State, directory: int, name: str, node: Node, like: Stat, mark: Mark) -> Change:
    """A new node (of `wf1_ops.new_node`) with the times of `like`, and a mark."""
    _check_free(state, directory, name)
    made = node._replace(id=state.next_node, version=state.changes + 1, parent=directory)
    return Change(
        (NodeChange(marked(alike(made, like), mark)),), (NameChange(directory, name, made.id),)
    )


def adopted(state: State, number: int, directory: int, name: str) -> Change:
    """One more name for a node that lower layers show, under one name less of theirs."""
    node = node_at(state, number)
    if not node.below:
        raise NotFound("no lower name stands for the node any more")
    _check_free(state, directory, name)
    after = with_names(node._replace(below=node.below - 1), node.names + 1)
    return Change((NodeChange(after),), (NameChange(directory, name, number),))


def remarked(state: State, number: int, mark: Mark) -> Change:
    """The directory `number` with another mark."""
    return Change((NodeChange(marked(directory_at(state, number), mark)),))


# What is done -------------------------------------------------------------------------------------


class CopyUp:
    """Copies up into the volume of `engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unnamed(self) -> int:
        """Makes a file without a name; its id.  Whoever has it holds it before anything else is
        done, and it is gone when it is released, unless it was given a name."""
        number = self._engine.state.next_node
        self._engine.operate(lambda state: unnamed(state, self._engine.clock()))
        return number

    def name(self, number: int, directory: int, name: str, like: Stat, mark: Mark) -> None:
        """Gives the unnamed file `number` a name where nothing is, and what `like` has of times and
        executable bit.

        Raises `AlreadyExists`, `NotFound`, `NoSpace`, and `InvalidArgument` for a mark that no file
        has."""

        def decide(state: State) -> Change:
            return named(state, number, directory, name, like, mark)

        self._engine.operate(decide, before=lambda: self._log_again(number, decide))

    def _log_again(self, number: int, decide: Callable[[State], Change]) -> None:
        """Writes the content of a file to the log that a checkpoint left out."""
        engine = self._engine
        decide(engine.state)
        if number not in engine.upkeep.left_out:
            return
        engine.check_may_wait()
        count = sum(1 for _ in self._extents(number))
        engine.upkeep.make_room(engine.upkeep.spare(count * WF1_EXTENT.size))
        # To make room they may have been moved.
        node, rest = node_at(engine.state, number), self._extents(number)
        while some := list(islice(rest, _EXTENTS_MAX)):
            engine.perform(Change((NodeChange(node, some),)))
        engine.upkeep.left_out.discard(number)

    def _extents(self, number: int) -> Iterator[Extent]:
        state = self._engine.state
        return all_extents(state.content(node_at(state, number)))

    def directory(self, directory: int, name: str, like: Stat, mark: Mark) -> int:
        """Makes an empty directory where nothing is; its id.

        Raises as `name`, and `TooLarge` for a redirect that is too long."""
        return self._place(directory, name, new_node(wf1.DIRECTORY, 0), like, mark)

    def symlink(self, directory: int, name: str, target: str, like: Stat, mark: Mark) -> int:
        """Makes a symbolic link where nothing is; its id.  Raises as `name`, and `InvalidArgument`
        for what is no target."""
        node = new_node(wf1.SYMLINK, 0, target=check_target(target))
        return self._place(directory, name, node, like, mark)

    def _place(self, directory: int, name: str, node: Node, like: Stat, mark: Mark) -> int:
        number = self._engine.state.next_node
        self._engine.operate(lambda state: placed(state, directory, name, node, like, mark))
        return number

    def adopt(self, number: int, directory: int, name: str) -> None:
        """Gives a node that lower layers show one of their names, where nothing is.

        Raises `NotFound` when they show it no more, `AlreadyExists`."""
        self._engine.operate(lambda state: adopted(state, number, directory, name))

    def set_mark(self, number: int, mark: Mark) -> None:
        """Gives a directory another mark."""
        self._engine.operate(lambda state: remarked(state, number, mark))
