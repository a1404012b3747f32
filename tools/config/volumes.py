"""The volumes of a configuration: what each is made of, and whether that makes sense.

Invariants:

* A volume is opened once, however many others it is a part of.  One that may be written is in one
  place: a part of one other, or served; any number may stand upon one that cannot be.
* No volume is a part of itself, at any distance.
* The layers of an overlay share no place on this machine (`capstore.backers.overlap`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final

from capstore.backers.mounts_table import MOUNTS_MAX, parse_mounts
from capstore.backers.node_ids import VOLUME_NUMBER_MAX
from capstore.backers.overlap import check_disjoint
from capstore.backers.overlay_spec import parse_overlay
from capstore.backers.spec_text import Spec
from capstore.schema.errors import InvalidArgument, StorageError
from capstore.service.uri import split_path
from capstore.tools.config.document import Document, Table, hint, kind_of
from capstore.tools.config.lines import Path
from capstore.tools.config.specs import COMPOSED, check_spec, is_store, may_write

__all__ = ["DEPTH_MAX", "Leaf", "Mounts", "Named", "Overlay", "Part", "Volumes", "within"]

# Of volumes made of volumes.
DEPTH_MAX: Final = 16

_TOO_DEEP: Final = f"more than {DEPTH_MAX} volumes within one another"
_LOWER: Final = {"readonly": False, "writable-files": True}


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a specification describes, `text` as it was written.

    `at` is here as everywhere the key that it stands under.
    """

    at: Path
    text: str
    spec: Spec

    @property
    def is_store(self) -> bool:
        """Whether it is a store of objects, and no tree."""
        return is_store(self.spec)


@dataclass(frozen=True, slots=True)
class Named:
    """Another volume of the file."""

    at: Path
    name: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """Layers, from the top to the bottom."""

    at: Path
    layers: tuple[Part, ...]
    writable_files: bool


@dataclass(frozen=True, slots=True)
class Mounts:
    """Trees by the path where they are."""

    at: Path
    trees: Mapping[str, Part]


Part = Leaf | Named | Overlay | Mounts


class Volumes:
    """The volumes by name, as the table ``volumes`` has them."""

    def __init__(self, table: Table) -> None:
        """Reads and checks them; what is wrong is noted in the document."""
        self._document = table.document
        self.parts: dict[str, Part] = {}
        self.names = table.keys
        for name in self.names:
            part = _Reader(self._document).definition(table.at(name), table.value(name))
            if part is not None:
                self.parts[name] = part
        self._uses: dict[str, list[Path]] = {}
        for part in self.parts.values():
            self._check_names(part)
        # Behind these nothing below would come to an end.
        self.sound = self._without_cycles()
        if self.sound:
            self._check_layers()

    @property
    def tops(self) -> list[str]:
        """Those that are no parts of others, in order."""
        return [name for name in self.names if name not in self._uses]

    def use(self, name: str, at: Path) -> bool:
        """Notes that the volume is used at `at`; False, and a problem, if there is none."""
        if name not in self.names:
            meant = hint(name, self.names)
            self._document.problem(at, f'no volume is called "{name}": {meant}')
            return False
        self._uses.setdefault(name, []).append(at)
        return True

    def resolved(self, part: Part) -> Part:
        """What a name stands for, in the end; other parts as they are."""
        while isinstance(part, Named):
            part = self.parts[part.name]
        return part

    def leaves(self, part: Part) -> Iterator[Leaf]:
        """All specifications that a part is made of."""
        if isinstance(part, Leaf):
            yield part
        for below in self._below(part):
            yield from self.leaves(below)

    def writes(self, part: Part) -> bool:
        """Whether a part may be one that can be changed."""
        if isinstance(part, Leaf):
            return may_write(part.spec)
        if isinstance(part, Overlay) and not part.writable_files:
            return self.writes(part.layers[0])
        return any(map(self.writes, self._below(part)))

    def check_uses(self) -> None:
        """Complains of volumes that may be written and are in two places."""
        for name, places in self._uses.items():
            part = self.parts.get(name)
            if len(places) < 2 or part is None or not self.writes(part):
                continue
            first = self._document.line(places[0])
            for place in places[1:]:
                self._document.problem(
                    place,
                    f'"{name}" can be written, so it has one place, and that is on line {first}',
                )

    def _below(self, part: Part) -> list[Part]:
        if isinstance(part, Named):
            return [self.parts[part.name]] if part.name in self.parts else []
        return within(part)

    # Checks --------------------------------------------------------------------------------------

    def _check_names(self, part: Part) -> None:
        if isinstance(part, Named) and self.use(part.name, part.at):
            named = self.parts.get(part.name)
            if isinstance(named, Leaf) and named.is_store:
                self._document.problem(part.at, f'"{part.name}" is a store of objects, and no tree')
        for below in within(part):
            self._check_names(below)

    def _without_cycles(self) -> bool:
        """Whether no volume is a part of itself, and none is too deep; else it complains."""
        graph = {name: list(_names_in(part)) for name, part in self.parts.items()}
        before = len(self._document.problems)
        while True:
            try:
                order = list(TopologicalSorter(graph).static_order())
                break
            except CycleError as error:
                # It lists each behind what is a part of it, and the first one again at the end.
                circle: list[str] = error.args[1][:0:-1]
                first = circle.index(min(circle, key=self._line_of))
                shown = [*circle[first:], *circle[: first + 1]]
                problem = f"is a part of itself: {' -> '.join(shown)}"
                self._document.problem(self.parts[shown[0]].at, problem)
                for name in circle:
                    graph[name] = []
        depths: dict[str, int] = {}
        for name in order:
            if name in self.parts:
                depths[name] = _depth(self.parts[name], depths)
                if depths[name] > DEPTH_MAX:
                    depths[name] = 0
                    self._document.problem(self.parts[name].at, _TOO_DEEP)
        return len(self._document.problems) == before

    def _line_of(self, name: str) -> int:
        return self._document.line(self.parts[name].at)

    def _check_layers(self) -> None:
        for part in self.parts.values():
            for overlay in _overlays_in(part):
                self._check_overlay(overlay)

    def _check_overlay(self, overlay: Overlay) -> None:
        """Complains of layers that share a place; what is within one layer may."""
        layers = [list(self.leaves(layer)) for layer in overlay.layers]
        for above, below in itertools.combinations(layers, 2):
            for one, other in itertools.product(above, below):
                try:
                    check_disjoint([one.spec, other.spec])
                except InvalidArgument as error:
                    self._document.problem(overlay.at, f"layers overlap: {error.message}")


def within(part: Part) -> list[Part]:
    """The parts that are written within a part."""
    if isinstance(part, Overlay):
        return list(part.layers)
    return list(part.trees.values()) if isinstance(part, Mounts) else []


def _names_in(part: Part) -> Iterator[str]:
    if isinstance(part, Named):
        yield part.name
    for below in within(part):
        yield from _names_in(below)


def _overlays_in(part: Part) -> Iterator[Overlay]:
    if isinstance(part, Overlay):
        yield part
    for below in within(part):
        yield from _overlays_in(below)


def _depth(part: Part, depths: Mapping[str, int]) -> int:
    if isinstance(part, Named):
        return depths.get(part.name, 0)
    return 1 + max((_depth(below, depths) for below in within(part)), default=0)


class _Reader:
    """Reads what a volume is made of."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def definition(self, at: Path, value: object) -> Part | None:
        """What a name stands for; None, and a problem, where that makes no sense."""
        if isinstance(value, str):
            return self._specified(at, value, 1)
        return self._composed(at, value, 1)

    def _part(self, at: Path, value: object, depth: int) -> Part | None:
        """A part: a specification, the name of a volume, or what one is made of."""
        if not isinstance(value, str):
            return self._composed(at, value, depth)
        if ":" not in value:
            return Named(at, value)
        return self._tree(at, value, depth)

    def _tree(self, at: Path, text: str, depth: int) -> Part | None:
        """What a specification describes where a tree is wanted."""
        part = self._specified(at, text, depth)
        if isinstance(part, Leaf) and part.is_store:
            self._document.problem(at, f'"{text}" is a store of objects, and no tree')
        return part

    def _specified(self, at: Path, text: str, depth: int) -> Part | None:
        scheme, _, argument = text.partition(":")
        try:
            if scheme not in COMPOSED:
                return Leaf(at, text, check_spec(text))
            if depth > DEPTH_MAX:
                raise InvalidArgument(_TOO_DEEP)
            if scheme == "mounts":
                items = parse_mounts(argument).items()
                trees = {prefix: self._tree(at, spec, depth + 1) for prefix, spec in items}
                return Mounts(at, {prefix: tree for prefix, tree in trees.items() if tree})
            spec = parse_overlay(argument)
            layers = [self._tree(at, each, depth + 1) for each in (spec.upper, *spec.lowers)]
            found = tuple(layer for layer in layers if layer is not None)
            return Overlay(at, found, spec.writable_files) if found else None
        except InvalidArgument as error:
            self._document.problem(at, error.message)
            return None

    def _composed(self, at: Path, value: object, depth: int) -> Part | None:
        if not isinstance(value, dict):
            wanted = "a specification, or a table with overlay or mounts"
            self._document.problem(at, f"must be {wanted}, is {kind_of(value)}")
            return None
        if depth > DEPTH_MAX:
            self._document.problem(at, _TOO_DEEP)
            return None
        table = Table(self._document, at, value)
        if ("overlay" in table) == ("mounts" in table):
            self._document.problem(at, "has either overlay or mounts")
            return None
        part = self._overlay(table, depth) if "overlay" in table else self._mounts(table, depth)
        table.finish()
        return part

    def _overlay(self, table: Table, depth: int) -> Part | None:
        values = table.get("overlay", list, [])
        layers = [
            self._part((*table.at("overlay"), number), value, depth + 1)
            for number, value in enumerate(values)
        ]
        if isinstance(table.value("overlay"), list) and not 2 <= len(values) <= VOLUME_NUMBER_MAX:
            table.problem("overlay", f"has an upper layer and 1 to {VOLUME_NUMBER_MAX - 1} lower")
        lower = table.get("lower", str, "readonly")
        if lower not in _LOWER:
            table.problem("lower", f'must be "readonly" or "writable-files", is "{lower}"')
        found = tuple(layer for layer in layers if layer is not None)
        self._refuse_twice(found)
        return Overlay(table.path, found, _LOWER.get(lower, False)) if found else None

    def _refuse_twice(self, parts: Iterable[Part]) -> None:
        seen = set()
        for part in parts:
            if isinstance(part, Named):
                if part.name in seen:
                    self._document.problem(part.at, f'"{part.name}" is a part of it already')
                seen.add(part.name)

    def _mounts(self, table: Table, depth: int) -> Part | None:
        below = table.table("mounts")
        trees: dict[str, Part] = {}
        for prefix in below.keys:
            self._check_prefix(below, prefix)
            part = self._part(below.at(prefix), below.value(prefix), depth + 1)
            if part is not None:
                trees[prefix] = part
        if isinstance(table.value("mounts"), dict):
            if "/" not in below:
                table.problem("mounts", 'has nothing at "/"')
            if len(below.keys) > MOUNTS_MAX:
                table.problem("mounts", f"has more than {MOUNTS_MAX} volumes")
        self._refuse_twice(trees.values())
        return Mounts(table.path, trees) if trees else None

    def _check_prefix(self, table: Table, prefix: str) -> None:
        """Complains of what is no absolute path in its one spelling."""
        try:
            names = split_path(prefix)
        except StorageError as error:
            table.problem(prefix, f"is no path: {error.message}")
            return
        spelt = "/" + "/".join(names)
        if prefix != spelt:
            table.problem(prefix, f'is not as a path is written here: "{spelt}"')
