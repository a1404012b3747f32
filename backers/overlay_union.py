"""How layers are one tree for those who look: names through stacks of directories, top first.

Invariants:

* Nothing here changes anything, and nothing is remembered but pages of layers that do not change.
* A stack has one directory of each layer that has one in that place, from the top to where the
  first opaque one ends it.  It is empty for a directory that is gone.
* Lower layers do not change their names, so what they say is true whenever they say it; only the
  upper one is asked each time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from capstore.backers.layer import Found, FoundPage, Layer, Mark
from capstore.backers.node import DirectoryNode, Entry, FileNode, Node, NodeKind, OpenFlags, Stat
from capstore.backers.node_ids import combined_id
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX

# The number of the upper layer; lower ones count from 1 at the bottom.
UPPER: Final = 0
_WORD: Final = (1 << 64) - 1


class Piece(NamedTuple):
    """A layer's part of a directory."""

    number: int
    layer: Layer
    node: DirectoryNode


Stack = tuple[Piece, ...]


class Seen(NamedTuple):
    """What a name stands for: the entry as users see it, and where it is.

    `holder` is the layer, with its number, that the node lives in under its origin, where that is
    another one than has the name.
    """

    entry: Entry
    found: Found
    piece: Piece
    holder: tuple[int, Layer] | None = None

    @property
    def kind(self) -> NodeKind:
        """What it is."""
        return self.entry.stat.kind

    @property
    def node_id(self) -> int:
        """The node's id in the overlay."""
        return self.entry.stat.node_id

    @property
    def is_upper(self) -> bool:
        """Whether the upper layer has the name itself."""
        return self.piece.number == UPPER

    @property
    def is_linked(self) -> bool:
        """Whether the name is a lower layer's, while the node lives in the upper one."""
        return self.holder is not None and self.holder[0] == UPPER

    @property
    def number(self) -> int:
        """The number of the layer that the node lives in."""
        return self.piece.number if self.holder is None else self.holder[0]

    @property
    def has_lower_names(self) -> bool:
        """Whether it is a lower layer's, under other names, too."""
        return not (self.is_upper or self.is_linked) and self.entry.stat.link_count > 1


def shown(stat: Stat, number: int, origin: int = 0) -> Stat:
    """A layer's stat as the overlay shows it.

    Versions of the upper layer are odd and others even: a copy's is never that of its original.
    """
    node_id = origin or combined_id(stat.node_id, number)
    version = (stat.version << 1 | (number == UPPER)) & _WORD
    # Each entry of each listing comes by, and `_replace` takes four times as long.
    return tuple.__new__(Stat, (stat[0], stat[1], node_id, version, *stat[4:]))


Remembered = dict[str, Seen | None]
_REMEMBERED_MAX: Final = 4096


class Union:
    """Layers from the top to the bottom, with their numbers."""

    def __init__(self, upper: Layer | None, lowers: Sequence[Layer], *, fixed: bool = True) -> None:
        """With `fixed`, nothing at all changes in the lower layers."""
        self.upper = upper
        self._layers: list[tuple[int, Layer]] = [] if upper is None else [(UPPER, upper)]
        self._layers += zip(range(len(lowers), 0, -1), lowers, strict=True)
        self._by_number = dict(self._layers)
        self._hides_names = upper is not None and type(upper).holds is not Layer.holds
        self._fixed = fixed

    def hides(self, name: str) -> bool:
        """Whether the upper layer cannot have such a name, so that there is none."""
        return self.upper is not None and not self.upper.holds(name)

    async def root(self) -> Stack:
        """The root's stack."""
        return await self._roots(self._layers)

    async def _roots(self, layers: Sequence[tuple[int, Layer]]) -> Stack:
        pieces: list[Piece] = []
        for number, layer in layers:
            root = layer.root
            pieces.append(Piece(number, layer, root))
            _, mark = await layer.about(root)
            if mark.opaque:
                break
        return tuple(pieces)

    # Names ---------------------------------------------------------------------------------------

    async def look(
        self, stack: Sequence[Piece], name: str, remembered: Remembered | None = None
    ) -> Seen | None:
        """What `name`, a valid one, stands for; None for nothing.

        `remembered` is what lower layers have said about names of this stack.
        """
        if self.hides(name):
            return None
        if stack and stack[0].number == UPPER:
            piece = stack[0]
            found = await piece.layer.find(piece.node, name)
            if found is not None:
                entry = found.entry
                if entry is None:
                    return None
                stat = shown(entry.stat, UPPER, found.mark.origin)
                return Seen(Entry(name, stat, entry.target), found, piece)
            stack = stack[1:]
        if remembered is None or not self._fixed:
            seen = await self._look_below(stack, name)
        elif name in remembered:
            seen = remembered[name]
        else:
            seen = await self._look_below(stack, name)
            if len(remembered) >= _REMEMBERED_MAX:
                remembered.clear()
            remembered[name] = seen
        return await self._linked(seen) if seen is not None else None

    async def _look_below(self, stack: Sequence[Piece], name: str) -> Seen | None:
        """What the lower layers say that `name` stands for."""
        for piece in stack:
            found = await piece.layer.find(piece.node, name)
            if found is not None:
                entry = found.entry
                if entry is None:
                    return None
                stat = shown(entry.stat, piece.number, found.mark.origin)
                return Seen(Entry(name, stat, entry.target), found, piece)
        return None

    async def _linked(self, seen: Seen) -> Seen:
        """What a lower name stands for, if a layer above has taken the node over."""
        stat = seen.entry.stat
        if stat.link_count < 2 or seen.kind is NodeKind.DIRECTORY:
            return seen
        for number, layer in self._layers:
            if number == seen.piece.number:
                break
            linked = await layer.linked(stat.node_id)
            if linked is not None:
                entry = seen.entry._replace(stat=shown(linked, number, stat.node_id))
                return seen._replace(entry=entry, holder=(number, layer))
        return seen

    async def open(self, seen: Seen, flags: OpenFlags) -> FileNode:
        """Opens the file that was seen, in the layer that it lives in.  Raises `NotFound`."""
        if seen.holder is not None:
            return await seen.holder[1].open_linked(seen.node_id, flags)
        piece = seen.piece
        return await piece.layer.open_found(piece.node, seen.entry.name, seen.found, flags)

    async def about(self, number: int, node: Node) -> tuple[Stat, Mark]:
        """The stat and mark of an open node of layer `number`."""
        return await self._by_number[number].about(node)

    async def descend(self, stack: Sequence[Piece], name: str) -> Stack:
        """The stack of the directory `name`; empty if it is none.  Raises what opening raises."""
        pieces: list[Piece] = []
        for piece in stack:
            found = await piece.layer.find(piece.node, name)
            if found is None:
                continue
            if found.entry is None or found.entry.stat.kind is not NodeKind.DIRECTORY:
                break
            pieces.append(piece._replace(node=await piece.node.sub(name)))
            if found.mark.opaque:
                break
            if found.mark.redirect:
                pieces += await self.below(piece.number, found.mark.redirect.split("/"))
                break
        return tuple(pieces)

    async def below(self, number: int, path: Sequence[str]) -> Stack:
        """The directory at `path` in the layers below layer `number`; empty if there is none."""
        at = next(i for i, (other, _) in enumerate(self._layers) if other == number)
        stack = await self._roots(self._layers[at + 1 :])
        for name in path:
            stack = await self.descend(stack, name)
        return stack

    # Listings ------------------------------------------------------------------------------------

    async def page(
        self, stack: Stack, after: str, limit: int, kept: dict[int, Kept]
    ) -> tuple[list[Seen], bool]:
        """Up to `limit` of what users see behind `after`, as much as fits in a page, and whether
        more follows.  `kept` holds what was read ahead for this stack."""
        shown_here, more = await self._page(stack, after, limit, kept)
        return [await self._linked(Seen(*one)) for one in shown_here], more

    async def entries(
        self, stack: Stack, after: str, limit: int, kept: dict[int, Kept]
    ) -> tuple[list[Entry], bool]:
        """As `page`, for who wants the entries only."""
        shown_here, more = await self._page(stack, after, limit, kept)
        entries: list[Entry] = []
        for entry, found, piece in shown_here:
            if entry.stat.link_count > 1 and piece.number != UPPER:
                entries.append((await self._linked(Seen(entry, found, piece))).entry)
            else:
                entries.append(entry)
        return entries, more

    async def _page(
        self, stack: Stack, after: str, limit: int, kept: dict[int, Kept]
    ) -> tuple[list[tuple[Entry, Found, Piece]], bool]:
        """A page, without regard to nodes that a layer above has taken over."""
        page: list[tuple[Entry, Found, Piece]] = []
        room = PAGE_BYTES_MAX
        more = bool(stack)
        while more:
            merged, after, more = await self._merge(stack, after, limit + 1 - len(page), kept)
            above, lowest = merged.above, merged.lowest
            for name, found in merged.found:
                entry = found.entry
                if entry is None or (self._hides_names and self.hides(name)):
                    continue
                target = entry.target
                room -= len(name.encode()) + (len(target.encode()) if target else 0)
                if page and (len(page) == limit or room < 0):
                    return page, True
                piece = above.get(name, lowest) if above else lowest
                stat = shown(entry.stat, piece.number, found.mark.origin)
                # As in `shown`, so again for each entry.
                page.append((tuple.__new__(Entry, (name, stat, target)), found, piece))
        return page, False

    async def _merge(
        self, stack: Stack, after: str, wanted: int, kept: dict[int, Kept]
    ) -> tuple[_Merged, str, bool]:
        """Some names behind `after` and what the topmost piece has there, up to where all pieces
        have been read; with that place, and whether something may be behind it."""
        if wanted <= _SHORT_PAGE:
            pages = await self._short(stack, after, wanted, kept)
        else:
            pages = await self._shares(stack, after, wanted, kept)
        ends = [page.found[-1][0] for page in pages if page.more and page.found]
        # Names come in the order of their bytes, which is that of code points.
        end = min(ends, default=None)
        merged = _merged(stack, [_up_to(page.found, end) for page in pages])
        return merged, end or after, end is not None

    async def _short(
        self, stack: Stack, after: str, wanted: int, kept: dict[int, Kept]
    ) -> list[FoundPage]:
        """A page of each piece that is enough alone, as far as the pages below it go.

        So a short page is made of one round, also where all have the same names.
        """
        pages: list[FoundPage] = []
        size, until = max(wanted, _PIECE_ENTRIES_MIN), ""
        for piece in reversed(stack):
            page = await self._ahead(piece, after, size, kept, until)
            pages.append(page)
            if page.more and page.found:
                last = page.found[-1][0]
                until = min(until, last) if until else last
        return pages[::-1]

    async def _shares(
        self, stack: Stack, after: str, wanted: int, kept: dict[int, Kept]
    ) -> list[FoundPage]:
        """A page of each piece, all of them together about what is wanted."""
        pages: list[FoundPage] = []
        for index, piece in enumerate(stack):
            # What a piece has not got the others may have to make up for.
            size = max(wanted // (len(stack) - index) + 1, _PIECE_ENTRIES_MIN)
            page = await self._ahead(piece, after, min(PAGE_ENTRIES_MAX, size), kept)
            pages.append(page)
            wanted -= len(page.found)
        return pages

    async def _ahead(
        self, piece: Piece, after: str, size: int, kept: dict[int, Kept], until: str = ""
    ) -> FoundPage:
        """A page of a piece behind `after`, from what was read before if that does not change."""
        if piece.number == UPPER or not self._fixed:
            return await piece.layer.page(piece.node, after, size, until)
        known = kept.get(piece.number)
        if known is None or not (found := known.behind(after)):
            page = await piece.layer.page(piece.node, after, PAGE_ENTRIES_MAX)
            known = kept[piece.number] = Kept(after, page)
            found = known.behind(after) or FoundPage((), False)
        return found


class Kept:
    """A page that was read behind `after`, to be given out in parts."""

    __slots__ = ("_after", "_found", "_more", "_names")

    def __init__(self, after: str, page: FoundPage) -> None:
        self._after = after
        self._found = page.found
        self._names = [name for name, _ in page.found]
        self._more = page.more

    def behind(self, after: str) -> FoundPage | None:
        """What it has behind `after`, None where it does not know."""
        if after < self._after:
            return None
        at = bisect_right(self._names, after) if after else 0
        if at == len(self._names) and self._more:
            return None
        return FoundPage(self._found[at:], self._more)


class _Merged(NamedTuple):
    """Names in their order, with what the topmost piece that has them has there: one of `above`, or
    else the `lowest`."""

    found: Sequence[tuple[str, Found]]
    above: Mapping[str, Piece]
    lowest: Piece


def _merged(stack: Stack, parts: Sequence[Sequence[tuple[str, Found]]]) -> _Merged:
    """Parts of the same stretch of names, one of each piece."""
    found, lowest = parts[-1], stack[-1]
    if not any(parts[:-1]):
        return _Merged(found, {}, lowest)
    merged = dict(found)
    above: dict[str, Piece] = {}
    for piece, part in zip(stack[-2::-1], parts[-2::-1], strict=True):
        merged.update(part)
        above.update(dict.fromkeys(map(_name_of, part), piece))
    return _Merged(sorted(merged.items(), key=_name_of), above, lowest)


def _up_to(found: Sequence[tuple[str, Found]], end: str | None) -> Sequence[tuple[str, Found]]:
    """What is not behind `end`, if that is given."""
    if end is None or not found or found[-1][0] <= end:
        return found
    return found[: bisect_right(found, end, key=_name_of)]


# A page of a piece is not worth less.
_PIECE_ENTRIES_MIN: Final = 16
_SHORT_PAGE: Final = 64

_name_of: Callable[[tuple[str, Found]], str] = itemgetter(0)
