"""Where nodes are, and what tells them apart: PyFilesystem2 knows paths only.

Invariants:

* A `Place` is a name in a place.  There is one for each directory that is held and each file that
  is open, and for what they are in; renaming through the volume moves it, with all below, and
  removing ends it.  What other programs do to the filesystem is not seen: a place then stands for
  whatever has its path.
* The id of a node is a keyed hash of its name and of the id of what it is in, but of one that was
  renamed, which keeps its id, and of one whose name another node had, which gets a fresh one.
  So ids are stable and unique while a volume is open, without a table of all nodes.  They differ
  from one opening to the next.
* The version of a node changes with each change made through the volume, and with each other
  change that shows in its time or size.
* Exceptions from those rules are kept up to `PYFS_PLACES_MAX`.  Then they are dropped: all versions
  change once, and so do all ids but those of nodes that are held.  No two nodes ever share an id.
* Everything is used by one thread at a time.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from capstore.backers.node import Entry, NodeKind, Provenance, Stat
from capstore.backers.pyfs_info import Look, stored_name
from capstore.schema.errors import NotFound
from capstore.schema.limits import PYFS_PLACES_MAX

if TYPE_CHECKING:
    from capstore.backers.pyfs_content import Content

_KEY_BYTES: Final = 16


class Place:
    """Where a node is; `last` is what was known of it when it was last looked at."""

    __slots__ = ("__weakref__", "children", "content", "gone", "id", "last", "name", "parent")

    def __init__(self, parent: Place | None, name: str, node_id: int) -> None:
        self.parent = parent
        self.name = name
        self.id = node_id
        self.gone = False
        self.last: Stat | None = None
        # What is shared by all who have the file open.
        self.content: Content | None = None
        self.children: WeakValueDictionary[str, Place] = WeakValueDictionary()

    @property
    def path(self) -> str:
        """The path in the filesystem; raises `NotFound` when the name is gone."""
        names: list[str] = []
        at = self
        while at.parent is not None:
            if at.gone:
                raise NotFound("the node was removed")
            names.append(stored_name(at.name))
            at = at.parent
        return "/" + "/".join(reversed(names))

    def path_of(self, name: str) -> str:
        """The path of `name` in this directory; raises `NotFound` when it was removed."""
        path = self.path
        return f"{path.rstrip('/')}/{stored_name(name)}"


class Places:
    """The places of a volume, the ids of its nodes and their versions."""

    def __init__(self, provenance: Provenance, *, read_only: bool) -> None:
        self._provenance = provenance
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._made = 0
        # The id of what is, or would be, called so, where it is not the hash.
        self._ids: dict[tuple[int, str], int] = {}
        # Versions of an earlier opening must not come back, unless nothing can have changed.
        self.changes = 0 if read_only else secrets.randbits(48)
        self._versions: dict[int, int] = {}
        self._since = self.changes
        self.root = Place(None, "", self._fresh())

    def _fresh(self) -> int:
        self._made += 1
        return self._hash(b"made", self._made.to_bytes(8, "big"))

    def _hash(self, purpose: bytes, data: bytes) -> int:
        digest = blake2b(data, digest_size=8, key=self._key, person=purpose)
        return int.from_bytes(digest.digest(), "big")

    def id_of(self, directory: Place, name: str) -> int:
        """The id of what is called `name` in `directory`."""
        held = directory.children.get(name)
        if held is not None:
            return held.id
        kept = self._ids.get((directory.id, name))
        if kept is not None:
            return kept
        return self._hash(b"name", directory.id.to_bytes(8, "big") + name.encode())

    def at(self, directory: Place, name: str) -> Place:
        """The place `name` in `directory`."""
        place = directory.children.get(name)
        if place is None:
            place = Place(directory, name, self.id_of(directory, name))
            directory.children[name] = place
        return place

    # What is told

    def stat(self, node_id: int, look: Look) -> Stat:
        """What is told of the node `node_id`, which looks so."""
        return Stat(
            kind=look.kind,
            size=look.size,
            node_id=node_id,
            version=self._version(node_id, look),
            created=look.created or 0,
            modified=look.modified or 0,
            provenance=Provenance.UNKNOWN if look.modified is None else self._provenance,
            executable=look.executable,
            link_count=look.links,
        )

    def entry(self, directory: Place, name: str, look: Look) -> Entry:
        """What is told of the entry `name` of `directory`, which looks so."""
        return Entry(name, self.stat(self.id_of(directory, name), look), look.target)

    def _version(self, node_id: int, look: Look) -> int:
        counter = self._versions.get(node_id, self._since)
        word = b"%d %d %d %d" % (node_id, look.changed, look.size, counter)
        return int.from_bytes(blake2b(word, digest_size=8).digest(), "big")

    # What changes

    def changed(self, node_id: int) -> None:
        """Notes a change of the content, the entries or the attributes of a node."""
        self.changes += 1
        self._versions[node_id] = self.changes
        if len(self._versions) > PYFS_PLACES_MAX:
            self._versions.clear()
            self._since = self.changes

    def added(self, directory: Place) -> None:
        """Notes a new entry."""
        self.changed(directory.id)

    def removed(self, directory: Place, name: str, last: Stat | None = None) -> None:
        """Notes that an entry is gone, whose node was last known as `last`."""
        self._end(directory, name, last)
        self._rename_id(directory, name, self._fresh())
        self.changed(directory.id)

    def _end(self, directory: Place, name: str, last: Stat | None) -> None:
        place = directory.children.pop(name, None)
        if place is not None:
            place.gone = True
            place.last = last or place.last

    def moved(
        self, source: Place, name: str, target: Place, new_name: str, replaced: Stat | None
    ) -> None:
        """Notes that an entry has a new name; what was last known of one that had it."""
        node_id = self.id_of(source, name)
        self._end(target, new_name, replaced)
        place = source.children.pop(name, None)
        if place is not None:
            place.parent, place.name = target, new_name
            target.children[new_name] = place
        self._rename_id(target, new_name, node_id)
        self._rename_id(source, name, self._fresh())
        self.changed(source.id)
        self.changed(target.id)

    def _rename_id(self, directory: Place, name: str, node_id: int) -> None:
        self._ids[directory.id, name] = node_id
        if len(self._ids) > PYFS_PLACES_MAX:
            self._ids.clear()
            self._key = secrets.token_bytes(_KEY_BYTES)


def last_of(place: Place) -> Stat:
    """What was last known of a node whose name is gone; raises `NotFound` where nothing was."""
    if place.last is None:
        raise NotFound("the node is gone")
    size = place.last.size if place.last.kind is NodeKind.FILE else 0
    return place.last._replace(link_count=0, size=size)
