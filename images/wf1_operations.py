"""The operations of a CAPOSWF1 volume on names and attributes, for whoever does what they change.

Invariants: each is decided purely (`wf1_ops`) and done by `operate`, as a whole or not at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from capstore.images import wf1, wf1_ops
from capstore.images.wf1_marks import Mark
from capstore.images.wf1_state import Change, Node, State


class Operations(ABC):
    """The operations on `state`, at times that `clock` gives in ns since 1970."""

    state: State
    clock: Callable[[], int]

    @property
    @abstractmethod
    def held(self) -> Collection[int]:
        """The nodes that somebody holds."""

    @abstractmethod
    def operate(self, decide: Callable[[State], Change], *, shrinks: bool = False) -> None:
        """Does what `decide` says of the state, as a whole or not at all; what `shrinks` the volume
        may use the last room there is.  Raises what it raises, and `NoSpace`."""

    def make(self, directory: int, name: str, node: Node, *, hides: bool = True) -> int:
        """Makes `node` (of `wf1_ops.new_node`) as `name`; its id.

        A directory in the place of a whiteout is opaque if it `hides` what is below."""
        number = self.state.next_node
        self.operate(
            lambda state: wf1_ops.make(state, self.clock(), directory, name, node, hides=hides)
        )
        return number

    def create(self, directory: int, name: str, *, executable: bool = False) -> int:
        """Makes an empty file; its id.  Raises `AlreadyExists`, `NotFound`, `NoSpace`."""
        node = wf1_ops.new_node(wf1.FILE, self.clock(), executable=executable)
        return self.make(directory, name, node)

    def mkdir(self, directory: int, name: str, *, opaque: bool | None = None) -> int:
        """Makes an empty directory; its id.  Unless somebody says whether it is `opaque`, it is so
        in the place of a whiteout."""
        node = wf1_ops.new_node(wf1.DIRECTORY, self.clock())
        flags = wf1.OPAQUE if opaque else 0
        return self.make(directory, name, node._replace(flags=flags), hides=opaque is None)

    def symlink(self, directory: int, name: str, target: str) -> int:
        """Makes a symbolic link; its id.  Raises `InvalidArgument` for what is no target."""
        checked = wf1_ops.check_target(target)
        node = wf1_ops.new_node(wf1.SYMLINK, self.clock(), target=checked)
        return self.make(directory, name, node)

    def cover(self, directory: int, name: str) -> None:
        """Puts a whiteout where nothing is.  Raises `AlreadyExists`."""
        self.make(directory, name, wf1_ops.new_node(wf1.WHITEOUT, self.clock()))

    def link(self, directory: int, name: str, target: int, new_name: str) -> None:
        """Gives `name` a second name."""
        self.operate(
            lambda state: wf1_ops.link(state, self.clock(), directory, name, target, new_name)
        )

    def remove(
        self,
        directory: int,
        name: str,
        *,
        directories: bool = True,
        others: bool = True,
        cover: bool = False,
    ) -> None:
        """Removes a name of the kinds that are allowed; leaves a whiteout there to `cover` it."""

        def change(state: State) -> Change:
            node = wf1_ops.child_of(state, directory, name)
            return wf1_ops.remove(
                state,
                self.clock(),
                directory,
                name,
                directories=directories,
                others=others,
                held=node.id in self.held,
                cover=cover,
            )

        # A whiteout needs no more room than what goes there.
        self.operate(change, shrinks=not cover or self._is_last_name(directory, name))

    def _is_last_name(self, directory: int, name: str) -> bool:
        node = self.state.node(self.state.child(directory, name))
        return node is not None and node.links == 1

    def rename(
        self,
        source: int,
        name: str,
        target: int,
        new_name: str,
        *,
        replace: bool = True,
        cover: bool = False,
        mark: Mark | None = None,
    ) -> None:
        """Moves a name, onto another one with `replace`; leaves a whiteout there to `cover` it.

        A directory that moves gets `mark`."""
        self.operate(
            lambda state: wf1_ops.rename(
                state,
                self.clock(),
                source,
                name,
                target,
                new_name,
                replace=replace,
                held=self.held,
                cover=cover,
                mark=mark,
            )
        )

    def exchange(
        self,
        source: int,
        name: str,
        target: int,
        new_name: str,
        *,
        mark: Mark | None = None,
        new_mark: Mark | None = None,
    ) -> None:
        """Has two names change their nodes; directories get `mark` and `new_mark`."""
        self.operate(
            lambda state: wf1_ops.exchange(
                state,
                self.clock(),
                source,
                name,
                target,
                new_name,
                mark=mark,
                new_mark=new_mark,
            )
        )

    def set_attributes(
        self,
        number: int,
        *,
        executable: bool | None = None,
        modified: int | None = None,
        created: int | None = None,
    ) -> None:
        """Changes attributes; times in ns since 1970."""
        self.operate(
            lambda state: wf1_ops.set_attributes(
                state, number, executable=executable, modified=modified, created=created
            )
        )
