"""Saved references: the durable table behind tokens.

Invariants:

* The table knows a token by its SHA-256 digest only.  A token has 256 random bits, so the digest
  needs no salt.  What is compared are digests, found by hash in a dict and then in constant time: a
  token that shares a prefix with a real one has a digest that shares none, so timing tells nothing.
* Every change is on disk before the call that made it returns: the file is replaced atomically,
  and changes that come together share one replacement.
* The file carries an HMAC under the service's owner key and is, to the byte, what this module
  writes; one that was changed by anything else is refused with `Corrupt`.  An old copy that was put
  back is what this module wrote, and is not noticed.
* The parents of a reference are in the table as long as it is: removing one removes all below.
* Below a reference, but a volume's owner, are at most `REFERENCES_BELOW_MAX` others.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from capstore.backers.workers import in_worker
from capstore.images.durable import HeldFile, replace_file
from capstore.schema.errors import (
    Corrupt,
    QuotaExceeded,
    Revoked,
    StorageIOError,
    TooLarge,
)
from capstore.schema.limits import REFERENCES_BELOW_MAX, REFERENCES_MAX
from capstore.service.grants import Policy

log = logging.getLogger("capstore.service")

_FORMAT = "capstore-references"
_VERSION = 1


def digest_of(token: str) -> str:
    """The digest under which the table knows `token`."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Reference:
    """One saved reference.

    `handle` finds the node in its volume (empty: the root); `policy` is all that was taken away
    since `parent` (0 for an owner's); times are ns since 1970, `last_used` 0 for never.  `used` is
    what is used of the policy's quota, in bytes and nodes, and `bound` names the stores in whose
    namespaces there may be a name for this reference.  `rotations` is how often it got another
    token.  An empty `digest` is that of an anchor: of a quota or a rate that is shared by what was
    saved below it; nobody has a token of it.
    """

    id: int
    digest: str
    label: str
    kind: str
    volume: str
    handle: bytes
    policy: Policy
    parent: int
    created: int
    last_used: int = 0
    used: tuple[int, int] = (0, 0)
    bound: tuple[str, ...] = ()
    rotations: int = 0

    @property
    def anchor(self) -> bool:
        """Whether nobody has a token of it."""
        return not self.digest

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        # Not asdict, which copies deeply: there may be tens of thousands to write.
        return {name: getattr(self, name) for name in _FIELDS} | {
            "handle": base64.b64encode(self.handle).decode(),
            "policy": self.policy.to_json(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Reference:
        """Raises KeyError, TypeError or ValueError for anything else than `to_json` gives."""
        values = dict(data)
        values["handle"] = base64.b64decode(values["handle"], validate=True)
        values["policy"] = Policy.from_json(values["policy"])
        used_bytes, used_nodes = values.get("used", (0, 0))
        values["used"] = (int(used_bytes), int(used_nodes))
        values["bound"] = tuple(str(name) for name in values.get("bound", ()))
        return Reference(**values)


_FIELDS = tuple(each.name for each in fields(Reference))


class ReferenceTable:
    """The references of one service; see the module's invariants."""

    def __init__(self, path: Path | HeldFile, key: bytes) -> None:
        self._path = path
        self._key = key
        self._by_id: dict[int, Reference] = {}
        self._by_digest: dict[str, int] = {}
        self._children: dict[int, set[int]] = {}
        self._count_below: dict[int, int] = {}
        self._next_id = 1
        self.epochs: dict[str, int] = {}
        self._changes = 0
        self._saved_changes = 0
        self._saving = asyncio.Lock()

    @staticmethod
    def load(path: Path | HeldFile, key: bytes) -> ReferenceTable:
        """The table in the file `path`, an empty one if there is none.  Blocks on the disk.

        Raises `Corrupt` for a file that is damaged, forged, or of another format or version.
        """
        table = ReferenceTable(path, key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return table
        try:
            body = json.loads(raw)["body"]
            if not hmac.compare_digest(raw, table._sealed(body)):
                raise Corrupt("the references file was changed by something else than capstore")
            if (body["format"], body["version"]) != (_FORMAT, _VERSION):
                raise Corrupt("the references file is of another version of capstore")
            table._fill(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt("the references file is damaged") from error
        return table

    def _fill(self, body: dict[str, Any]) -> None:
        self._next_id = int(body["next_id"])
        for data in body["references"]:
            reference = Reference.from_json(data)
            if reference.id in self._by_id or reference.id >= self._next_id:
                raise ValueError(reference.id)
            self._insert(reference)
        self._saved_changes = self._changes
        self.epochs = {str(name): int(epoch) for name, epoch in body["epochs"].items()}

    def _insert(self, reference: Reference) -> None:
        """Raises KeyError where the parent is not in the table."""
        for above in self._above(reference):
            self._count_below[above.id] = self._count_below.get(above.id, 0) + 1
        self._children.setdefault(reference.parent, set()).add(reference.id)
        self._put(reference)

    def _put(self, reference: Reference) -> None:
        """Puts it in the place of the one of this id, if there is one."""
        before = self._by_id.get(reference.id)
        if before is not None and before.digest != reference.digest:
            self._by_digest.pop(before.digest, None)
        self._by_id[reference.id] = reference
        if not reference.anchor:
            self._by_digest[reference.digest] = reference.id
        self._changes += 1

    def _above(self, reference: Reference) -> Iterator[Reference]:
        """Those that it was saved below, nearest first."""
        while reference.parent:
            reference = self._by_id[reference.parent]
            yield reference

    def _sealed(self, body: dict[str, Any]) -> bytes:
        """The whole content of the file."""
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        seal = hmac.new(self._key, b"capstore references\0" + canonical, hashlib.sha256)
        return json.dumps({"body": body, "hmac": seal.hexdigest()}).encode() + b"\n"

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, reference_id: int) -> bool:
        return reference_id in self._by_id

    @property
    def next_id(self) -> int:
        """The id that the next reference gets; none is ever used again."""
        return self._next_id

    def get(self, reference_id: int) -> Reference | None:
        """The reference of this id."""
        return self._by_id.get(reference_id)

    def find(self, token: str) -> Reference | None:
        """The reference saved under `token`, in constant time as far as the token goes."""
        digest = digest_of(token)
        reference = self._by_id.get(self._by_digest.get(digest, 0))
        if reference is None or not hmac.compare_digest(reference.digest, digest):
            return None
        return reference

    def parent_with_token(self, reference: Reference) -> Reference | None:
        """The nearest one that it was saved from and that somebody may hold; None for an owner's.

        Raises KeyError for one that is not in the table.
        """
        return next((above for above in self._above(reference) if not above.anchor), None)

    def below(self, reference_id: int) -> list[Reference]:
        """Everything saved below the reference, in the order of ids."""
        found: list[int] = []
        todo = [reference_id]
        while todo:
            children = self._children.get(todo.pop(), ())
            found.extend(children)
            todo.extend(children)
        return [self._by_id[each] for each in sorted(found)]

    def touch(self, reference_id: int, now: int) -> None:
        """Notes the use of a reference; durable with the next change or `commit`."""
        reference = self._by_id.get(reference_id)
        if reference is not None:
            self._by_id[reference_id] = replace(reference, last_used=now)
            self._changes += 1

    def note_used(self, reference_id: int, used: tuple[int, int]) -> None:
        """Notes what is used of a quota; durable with the next change or `commit`."""
        reference = self._by_id.get(reference_id)
        if reference is not None and reference.used != used:
            self._by_id[reference_id] = replace(reference, used=used)
            self._changes += 1

    async def bind(self, reference_id: int, volume: str) -> None:
        """Lets names in the store `volume` stand for the reference; durable on return.

        Raises `StorageIOError`.
        """
        reference = self._by_id.get(reference_id)
        if reference is not None and volume not in reference.bound:
            self._by_id[reference_id] = replace(reference, bound=(*reference.bound, volume))
            self._changes += 1
        await self.commit()

    def insert(self, reference: Reference) -> Reference:
        """Adds `reference` under a new id; durable with the next `commit`.

        Raises `TooLarge`, `QuotaExceeded`, and `Revoked` where its parent is not there any more.
        """
        if reference.parent:
            self._check_room(reference)
        reference = replace(reference, id=self._next_id)
        self._next_id += 1
        self._insert(reference)
        return reference

    def _check_room(self, reference: Reference) -> None:
        if reference.parent not in self._by_id:
            raise Revoked("what it was saved from has ended")
        for above in self._above(reference):
            if above.parent and self._count_below.get(above.id, 0) >= REFERENCES_BELOW_MAX:
                raise QuotaExceeded(
                    f"at most {REFERENCES_BELOW_MAX} references are saved below one: end some"
                )
        if len(self._by_id) >= REFERENCES_MAX:
            raise TooLarge(f"the service keeps at most {REFERENCES_MAX} references")

    async def add(self, reference: Reference) -> Reference:
        """Adds `reference` under a new id; durable on return.

        Raises as `insert`, and `StorageIOError`.
        """
        reference = self.insert(reference)
        try:
            await self.commit()
        except BaseException:
            # Its token will never be handed out.
            self.drop(reference.id)
            raise
        return reference

    async def exchange(self, before: Reference, after: Reference) -> None:
        """Puts `after` in the place of `before`, at once; durable on return.

        Raises `StorageIOError`, with `before` in its place again if nothing else has happened to
        it; after a crash either may be there.
        """
        self._put(after)
        try:
            await self.commit()
        except BaseException:
            now = self._by_id.get(after.id)
            if now is not None and (now.digest, now.policy) == (after.digest, after.policy):
                self._put(
                    replace(
                        now,
                        digest=before.digest,
                        policy=before.policy,
                        rotations=before.rotations,
                    )
                )
            raise

    async def remove(self, ids: Iterable[int]) -> None:
        """Removes references; every removal so far is durable on return.

        Raises `StorageIOError`: then they are gone from memory, and come back with a restart unless
        a later `commit` succeeds.
        """
        for reference_id in ids:
            self.drop(reference_id)
        await self.commit()

    def drop_expired(self, now: int) -> list[Reference]:
        """Removes references whose time is over, with all below, and anchors that hold nothing;
        durable with the next change.  Returns what was removed."""
        dropped: list[Reference] = []
        for each in self:
            if each.policy.expires_at and now >= each.policy.expires_at:
                dropped += self.drop(each.id)
        # The innermost are the youngest.
        for each in reversed(list(self)):
            if each.anchor and not self._children.get(each.id):
                dropped += self.drop(each.id)
        return dropped

    def drop(self, reference_id: int) -> list[Reference]:
        """Removes a reference with all below; durable with the next change.

        Returns what was removed, the parents last; nothing where it is not there.
        """
        top = self._by_id.get(reference_id)
        if top is None:
            return []
        dropped = [*reversed(self.below(reference_id)), top]
        for above in self._above(top):
            self._count_below[above.id] -= len(dropped)
        for reference in dropped:
            del self._by_id[reference.id]
            self._by_digest.pop(reference.digest, None)
            self._children.pop(reference.id, None)
            self._count_below.pop(reference.id, None)
        siblings = self._children[top.parent]
        siblings.discard(top.id)
        if not siblings:
            del self._children[top.parent]
        self._changes += 1
        return dropped

    async def commit(self) -> None:
        """Returns when every change made before is on disk.  Raises `StorageIOError`."""
        wanted = self._changes
        async with self._saving:
            if self._saved_changes >= wanted:
                return
            covered, references, epochs = self._changes, list(self), dict(self.epochs)
            next_id = self._next_id
            try:
                await in_worker(lambda: self._write(references, epochs, next_id))
            except OSError as error:
                log.exception("the references could not be saved")
                raise StorageIOError(
                    f"the references could not be saved: {error.strerror}"
                ) from error
            self._saved_changes = covered

    def _write(self, references: list[Reference], epochs: dict[str, int], next_id: int) -> None:
        """Runs in a worker: tens of thousands of references take seconds to write down."""
        replace_file(self._path, self._sealed(self._body(references, epochs, next_id)))

    @staticmethod
    def _body(references: list[Reference], epochs: dict[str, int], next_id: int) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "next_id": next_id,
            "epochs": epochs,
            "references": [reference.to_json() for reference in references],
        }

    @staticmethod
    def is_first(path: Path) -> bool:
        """Whether the file `path` is what `write_first` wrote of an empty table, under whatever
        key.  Raises OSError."""
        table = ReferenceTable(path, b"")
        raw = path.read_bytes()
        seal = rb'"hmac": "[0-9a-f]{64}"'
        return re.sub(seal, b"", raw) == re.sub(seal, b"", table._sealed(table._body([], {}, 1)))

    def write_first(self) -> None:
        """Writes the table as it is, before there is anybody to change it.  Blocks on the disk.

        Raises OSError.
        """
        self._write(list(self), dict(self.epochs), self._next_id)

    def __iter__(self) -> Iterator[Reference]:
        return iter([self._by_id[reference_id] for reference_id in sorted(self._by_id)])
