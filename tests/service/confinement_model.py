"""Authority in some lines of Python: what a capability may do and show, whatever its past.

A `Right` is one link of attenuation, saving or opening; what holds for a capability is what any
link of its chain says, found by walking up, so nothing here can have been forgotten on the way.
The tree is that of `tests.contract.model`.  Effects are exact; of the codes of a refusal the model
gives all that may be the reason.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from capstore.backers.node import OpenFlags
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from tests.contract.model import Directory, File, Node, Symlink, within

__all__ = ["Growth", "Held", "Right", "World", "is_flags", "size_of"]


@dataclass(eq=False)
class Right:
    """One link of a chain of authority."""

    policy: Policy = field(default_factory=Policy)
    parent: Right | None = None
    revoked: bool = False
    # Of a quota: by how much the tree grew through it, in bytes and names.
    grown: Growth = field(default_factory=lambda: Growth(0, 0))
    # Of a dry run: every node that was ever in reach of it, and every byte it may show.
    reached: set[Node] = field(default_factory=set)
    shown: set[int] = field(default_factory=set)

    def chain(self) -> Iterator[Right]:
        link: Right | None = self
        while link is not None:
            yield link
            link = link.parent

    def below(self, policy: Policy | None = None) -> Right:
        return Right(policy or Policy(), self)

    def stands_under(self, other: Right) -> bool:
        return any(link is other for link in self.chain())

    def refusals(self, effect: Effect, now: int) -> set[Code]:
        """Why a call of this effect has none; nothing if it may have it."""
        codes = set()
        for link in self.chain():
            policy = link.policy
            if link.revoked:
                codes.add(Code.REVOKED)
            if policy.expires_at and now >= policy.expires_at:
                codes.add(Code.EXPIRED)
            if policy.read_only and effect is not Effect.OBSERVE:
                codes.add(Code.READ_ONLY)
            if policy.append_only and effect is Effect.CHANGE:
                codes.add(Code.DENIED)
        return codes

    def is_over(self, now: int) -> bool:
        return bool(self.refusals(Effect.OBSERVE, now))

    def hides(self, name: str) -> bool:
        return any(
            fnmatch.fnmatchcase(name, glob)
            for link in self.chain()
            for glob in link.policy.hidden_names
        )

    def may_have(self, size: int) -> bool:
        """Whether a file may grow to `size` bytes."""
        bounds = [link.policy.max_file_bytes for link in self.chain()]
        return all(not bound or size <= bound for bound in bounds)

    @property
    def quotas(self) -> list[Right]:
        return [link for link in self.chain() if link.policy.max_bytes or link.policy.max_nodes]

    @property
    def dry(self) -> Right | None:
        """The outermost dry run that it stands in."""
        runs = [link for link in self.chain() if link.policy.dry_run]
        return runs[-1] if runs else None


@dataclass(frozen=True)
class Growth:
    size: int
    names: int

    def __add__(self, other: Growth) -> Growth:
        return Growth(self.size + other.size, self.names + other.names)

    def __sub__(self, other: Growth) -> Growth:
        return Growth(self.size - other.size, self.names - other.names)


@dataclass(eq=False)
class Held:
    """A capability that some client has: the real one, and what it is."""

    real: Any
    node: Node
    right: Right
    frozen: bool = False  # of a snapshot
    closed: bool = False

    @property
    def is_directory(self) -> bool:
        return isinstance(self.node, Directory)


class World:
    """The tree, and the time."""

    def __init__(self) -> None:
        self.root = Directory()
        self.now = 1_000
        self.executable: set[Node] = set()

    def visible(self, directory: Directory, right: Right) -> dict[str, Node]:
        """The entries that a capability shows, in their order."""
        return {
            name: directory.entries[name]
            for name in sorted(directory.entries)
            if not right.hides(name)
        }

    def is_linked(self, node: Node) -> bool:
        return within(node, self.root)

    def size(self) -> Growth:
        """Of all that has a name."""
        names, nodes = 0, set()
        todo: list[Directory] = [self.root]
        while todo:
            for node in todo.pop().entries.values():
                names += 1
                nodes.add(node)
                if isinstance(node, Directory):
                    todo.append(node)
        return Growth(sum(map(size_of, nodes)), names)

    def reach(self, run: Right, base: Node) -> None:
        """Notes what a dry run may show now."""
        todo = [base, *run.reached]
        seen: set[Node] = set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                if isinstance(node, Directory):
                    todo.extend(self.visible(node, run).values())
                elif isinstance(node, File):
                    run.shown.update(node.data)
        run.reached |= seen


def size_of(node: Node) -> int:
    """As quotas count it."""
    if isinstance(node, File):
        return len(node.data)
    return len(node.target) if isinstance(node, Symlink) else 0


def is_flags(flags: int) -> bool:
    """Whether these flags make sense together."""
    write, create = flags & OpenFlags.WRITE, flags & OpenFlags.CREATE
    if flags & (OpenFlags.CREATE | OpenFlags.TRUNCATE) and not write:
        return False
    return bool(create or not flags & OpenFlags.EXCLUSIVE)
