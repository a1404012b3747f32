"""Who watches what of a served tree, and how changes are told apart.

Every change of a tree passes a guard (`capstore.service.guard`), for a backer is the service's own;
so the guards tell the tree's `Hub`, whatever the backer is.  What others change behind its back, in
a host directory say, nobody is told.

Invariants:

* Nobody is told of a change before it took effect, and changes of one name are told in the order
  in which they did: while a volume is watched, changes of one name run one after the other.
* What a change did to a name is what looking it up before and behind says.  Where that cannot be
  looked up, or a change failed so that nobody knows, those who watch are told to list again.
* A change that began before a watch did has ended when the watch is there (`Hub.begin`): who lists
  then, and follows what is told from then on, has the directory as it is.
* A `Place` is the name that a file was opened by for writing.  It follows the renaming of that
  name, and is nameless when the name goes to another node or to none.  An opening that runs beside
  a move of the same name, unwatched, gets none: what is written through it is told to nobody.
* Where nobody watches, and no file is open for writing, a change costs a comparison and a count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

from capstore.backers.node import DirectoryNode, Entry, FileNode, NodeKind
from capstore.schema.errors import (
    Corrupt,
    InternalError,
    NotFound,
    StorageError,
    StorageIOError,
)
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.quota import KeyLocks, uninterrupted

__all__ = ["Hub", "Listener", "Place", "Spot"]

T = TypeVar("T")
# A name in the directory with this id.
Key = tuple[int, str]

# Behind these nobody knows whether it was done.
_UNCERTAIN: Final = (StorageIOError, Corrupt, InternalError)


class Listener(Protocol):
    """One who watches a directory.  Nothing here waits or raises."""

    def note(self, change: Change) -> None:
        """An entry of the directory has changed.  An overflow says by its name which one may
        have, and nothing else is known."""

    def removed(self) -> None:
        """The directory itself is gone."""


class Spot(NamedTuple):
    """A name that a change is about, in `node`, whose id is `directory`."""

    node: DirectoryNode
    directory: int
    name: str

    @property
    def key(self) -> Key:
        """What stands for it where nodes do not."""
        return self.directory, self.name


class Place:
    """The name by which a file is open for writing; None when that is not its name any more."""

    __slots__ = ("__weakref__", "key", "node_id")

    def __init__(self, key: Key) -> None:
        self.key: Key | None = key
        # 0 until somebody had to know.
        self.node_id = 0


class Opening:
    """A file is being opened for writing by a name; the context in which that is done."""

    __slots__ = ("_hub", "_key", "is_disturbed")

    def __init__(self, hub: Hub, key: Key) -> None:
        self._hub = hub
        self._key = key
        # Whether the name may have been another file's, or be one's by now.
        self.is_disturbed = False

    def __enter__(self) -> Self:
        hub = self._hub
        self.is_disturbed = hub.is_moving(self._key)
        hub.openings.setdefault(self._key, []).append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        those = self._hub.openings[self._key]
        those.remove(self)
        if not those:
            del self._hub.openings[self._key]

    def place(self) -> Place | None:
        """Where the file is that was opened; all who opened it by this name share it."""
        return None if self.is_disturbed else self._hub.place(self._key)


class _Moving:
    """Some names are being taken from their nodes."""

    __slots__ = ("_counts", "_keys")

    def __init__(self, counts: dict[Key | str, int], keys: Sequence[Key | str]) -> None:
        self._counts = counts
        self._keys = keys

    def __enter__(self) -> None:
        counts = self._counts
        for key in self._keys:
            counts[key] = counts.get(key, 0) + 1

    def __exit__(self, *exc: object) -> None:
        counts = self._counts
        for key in self._keys:
            count = counts[key] - 1
            if count:
                counts[key] = count
            else:
                del counts[key]


class Epoch:
    """The changes that began since somebody began to watch; the context of each of them."""

    __slots__ = ("_before", "_count", "_idle")

    def __init__(self, before: Epoch | None = None) -> None:
        self._before = before
        self._count = 0
        self._idle: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if not self._count and self._idle is not None:
            self._idle.set()

    async def ended(self) -> None:
        """Returns when all of them have ended, and those of the epochs before; to be asked for when
        no more can begin."""
        epoch: Epoch | None = self
        while epoch is not None:
            if epoch._count:
                epoch._idle = epoch._idle or asyncio.Event()
                await epoch._idle.wait()
            epoch = epoch._before
        self._before = None


class Hub:
    """Where the changes of one tree are told: a volume's, or a dry run's."""

    __slots__ = ("_locks", "_moving", "_places", "epoch", "openings", "watches")

    def __init__(self) -> None:
        # Who watches, by the id of the directory.
        self.watches: dict[int, dict[Listener, None]] = {}
        self.epoch = Epoch()
        self.openings: dict[Key, list[Opening]] = {}
        self._places: WeakValueDictionary[Key, Place] = WeakValueDictionary()
        # Names that are being taken from their nodes: with their directory, or whatever it is.
        self._moving: dict[Key | str, int] = {}
        self._locks = KeyLocks()

    def __repr__(self) -> str:
        watches = sum(map(len, self.watches.values()))
        return f"<Hub: {watches} watches, {len(self._places)} places>"

    # Watching ------------------------------------------------------------------------------------

    async def begin(self, directory: int, listener: Listener) -> None:
        """`listener` watches the directory with this id, until `end`, also if this fails.

        When it returns all is told that is not to be seen in the directory yet; what was told until
        then may be, and is to be forgotten.
        """
        self.watches.setdefault(directory, {})[listener] = None
        # First those end of which some are not told, and are in no order with those that are; then
        # those that ran beside them.
        for _ in range(2):
            epoch, self.epoch = self.epoch, Epoch(self.epoch)
            await epoch.ended()

    def end(self, directory: int, listener: Listener) -> None:
        """It does so no more; again does nothing."""
        those = self.watches.get(directory, {})
        those.pop(listener, None)
        if not those:
            self.watches.pop(directory, None)

    def tell(self, directory: int, change: Change) -> None:
        """Tells those who watch the directory with this id."""
        for listener in tuple(self.watches.get(directory, ())):
            listener.note(change)

    # Content -------------------------------------------------------------------------------------

    async def writing(
        self, place: Place | None, file: FileNode, change: Callable[[], Awaitable[T]]
    ) -> T:
        """Does `change`, of the content or the attributes of a file that is open at `place`."""
        try:
            result = await change()
        except StorageError as error:
            if isinstance(error, _UNCERTAIN):
                await self._written(place, file)
            raise
        except asyncio.CancelledError:
            # It may have happened.
            if place is not None and place.key is not None:
                self._tell_written(place)
            raise
        if self.watches:
            await self._written(place, file)
        return result

    async def _written(self, place: Place | None, file: FileNode) -> None:
        if place is None or place.key is None or place.key[0] not in self.watches:
            return
        try:
            if not place.node_id:
                place.node_id = (await file.stat()).node_id
        except StorageError:
            pass
        finally:
            self._tell_written(place)

    def _tell_written(self, place: Place) -> None:
        if place.key is not None:
            directory, name = place.key
            self.tell(directory, Change(ChangeKind.MODIFIED, name, place.node_id))

    # Places --------------------------------------------------------------------------------------

    def place(self, key: Key) -> Place:
        """The place that all share who have the file open by this name."""
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(key)
        return place

    def is_moving(self, key: Key) -> bool:
        """Whether the name may be being taken from its node."""
        return key in self._moving or key[1] in self._moving

    @property
    def is_busy(self) -> bool:
        """Whether it matters which names are taken from their nodes."""
        return bool(self.watches or self._places or self.openings)

    def moving(self, keys: Sequence[Key | str]) -> _Moving:
        """The context of what takes these names from their nodes."""
        return _Moving(self._moving, keys)

    def _unname(self, key: Key) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            place.key = None

    def _rename(self, key: Key, new_key: Key) -> None:
        place = self._places.pop(key, None)
        if place is not None:
            place.key = new_key
            self._places[new_key] = place

    def _exchange(self, key: Key, other: Key) -> None:
        places = self._places.pop(key, None), self._places.pop(other, None)
        for place, new_key in zip(places, (other, key), strict=True):
            if place is not None:
                place.key = new_key
                self._places[new_key] = place

    # Names ---------------------------------------------------------------------------------------

    async def make(
        self,
        spot: Spot,
        change: Callable[[], Awaitable[T]],
        *,
        tells: bool = True,
        touches: bool = False,
    ) -> T:
        """Does `change`, which may make a name and takes none from its node.

        `tells` is false of what changes nothing, and has to know what the name stands for all the
        same; `touches` is true of what changes the node that is there.
        """
        with self.epoch:
            if not self.watches:
                return await change()
            is_told = tells and spot.directory in self.watches
            async with self._names([spot]):
                if not is_told:
                    return await change()
                return await uninterrupted(self._told([spot], change, touches=touches))

    async def open(
        self,
        spot: Spot,
        change: Callable[[], Awaitable[T]],
        *,
        tells: bool = True,
        touches: bool = False,
    ) -> tuple[T, Place | None]:
        """As `make`, for what opens a file for writing; and where that file is."""
        if not self.watches:
            with self.epoch, Opening(self, spot.key) as opening:
                return await change(), opening.place()

        async def opened() -> tuple[T, Place | None]:
            with Opening(self, spot.key) as opening:
                return await change(), opening.place()

        return await self.make(spot, opened, tells=tells, touches=touches)

    async def move(
        self,
        spots: Sequence[Spot],
        change: Callable[[], Awaitable[T]],
        *,
        exchanges: bool = False,
    ) -> T:
        """Does `change`, which removes a name, or moves one to a second spot."""
        with self.epoch:
            keys = [spot.key for spot in spots]
            if not self.watches and not any(key in self._places for key in keys):
                return await self._moved(spots, change)

            async def told() -> T:
                return await self._told(spots, change, moves=True, exchanges=exchanges)

            async with self._names(spots):
                return await uninterrupted(self._moved(spots, told))

    async def _moved(self, spots: Sequence[Spot], change: Callable[[], Awaitable[T]]) -> T:
        for spot in spots:
            for opening in self.openings.get(spot.key, ()):
                opening.is_disturbed = True
        with self.moving([spot.key for spot in spots]):
            return await change()

    def _names(self, spots: Iterable[Spot]) -> AbstractAsyncContextManager[None]:
        keys = [spot.directory.to_bytes(8, "big") + spot.name.encode() for spot in spots]
        return self._locks.one(keys[0]) if len(keys) == 1 else self._locks.held(keys)

    async def _told(
        self,
        spots: Sequence[Spot],
        change: Callable[[], Awaitable[T]],
        *,
        touches: bool = False,
        moves: bool = False,
        exchanges: bool = False,
    ) -> T:
        """Does `change`, and tells what it did."""
        before = [await _seen(spot) for spot in spots]
        try:
            result = await change()
        except StorageError as error:
            if isinstance(error, _UNCERTAIN):
                self._lost_sight(spots)
            raise
        except BaseException:
            self._lost_sight(spots)
            raise
        after = [await _seen(spot) for spot in spots]
        looks = list(zip(spots, before, after, strict=True))
        self._lost_sight(spot for spot, *seen in looks if _UNKNOWN in seen)
        known = [look for look in looks if _UNKNOWN not in look]
        if moves and not _is_same(before[0], after[0]):
            self._follow(spots, exchanges=exchanges)
        self._tell_all(known, touches=touches)
        if len(known) == len(looks):
            self._end_removed(known)
        return result

    def _lost_sight(self, spots: Iterable[Spot]) -> None:
        """Nobody knows what the names stand for."""
        for spot in spots:
            self._unname(spot.key)
            self.tell(spot.directory, Change(ChangeKind.OVERFLOW, spot.name))

    def _follow(self, spots: Sequence[Spot], *, exchanges: bool) -> None:
        """The places of what was moved, or removed."""
        source = spots[0].key
        if len(spots) == 1:
            self._unname(source)
        elif exchanges:
            self._exchange(source, spots[1].key)
        elif source != spots[1].key:
            self._unname(spots[1].key)
            self._rename(source, spots[1].key)

    def _tell_all(self, looks: Sequence[tuple[Spot, _Look, _Look]], *, touches: bool) -> None:
        for spot, was, now in looks:
            if was is not None and not _is_same(was, now):
                self.tell(spot.directory, _change(ChangeKind.REMOVED, was))
        for spot, was, now in looks:
            if now is not None and not _is_same(was, now):
                self.tell(spot.directory, _change(ChangeKind.CREATED, now))
            elif now is not None and touches:
                self.tell(spot.directory, _change(ChangeKind.MODIFIED, now))

    def _end_removed(self, looks: Sequence[tuple[Spot, _Look, _Look]]) -> None:
        """Tells those who watch a directory that is at none of these names any more."""
        gone: set[int] = set()
        there: set[int] = set()
        for _, was, now in looks:
            if was is not None and not _is_same(was, now):
                gone |= _directory(was)
            if now is not None:
                there |= _directory(now)
        for directory in gone - there:
            for listener in tuple(self.watches.get(directory, ())):
                listener.removed()


# What a name was seen to stand for.
_Look = Entry | None
# Stands for what could not be looked up; no entry has an empty name.
_UNKNOWN: Final = Entry("", None)  # type: ignore[arg-type]


async def _seen(spot: Spot) -> _Look:
    try:
        return await spot.node.lookup(spot.name)
    except NotFound:
        return None
    except StorageError:
        return _UNKNOWN


def _is_same(one: _Look, other: _Look) -> bool:
    """Whether a name stands for the same node, and is written the same."""
    if one is None or other is None or one is _UNKNOWN or other is _UNKNOWN:
        return one is other
    return one.name == other.name and one.stat.node_id == other.stat.node_id


def _change(kind: ChangeKind, entry: Entry) -> Change:
    return Change(kind, entry.name, entry.stat.node_id)


def _directory(entry: Entry) -> set[int]:
    """Its id, if it is one."""
    return {entry.stat.node_id} if entry.stat.kind is NodeKind.DIRECTORY else set()
