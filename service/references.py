"""Saved references: the durable table behind tokens.

Invariants:

* The table knows a token by its SHA-256 digest only.  A token has 256 random bits, so the digest
  needs no salt, and looking it up in a dict tells nothing of the token by its timing.
* Every change is on disk before the call that made it returns: the file is replaced atomically,
  and changes that come together share one replacement.
* The file carries an HMAC under the service's owner key; one that was changed by anything else is
  refused with `Corrupt`.
* The parents of a reference are in the table as long as it is: removing one removes all below.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from capstore.backers.workers import in_worker
from capstore.images.durable import replace_file
from capstore.schema.errors import Corrupt, StorageIOError, TooLarge
from capstore.schema.limits import REFERENCES_MAX
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
    namespaces there may be a name for this reference.
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

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        return asdict(self) | {"handle": base64.b64encode(self.handle).decode()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Reference:
        """Raises KeyError, TypeError or ValueError for anything else than `to_json` gives."""
        fields = dict(data)
        fields["handle"] = base64.b64decode(fields["handle"], validate=True)
        fields["policy"] = Policy(**fields["policy"])
        used_bytes, used_nodes = fields.get("used", (0, 0))
        fields["used"] = (int(used_bytes), int(used_nodes))
        fields["bound"] = tuple(str(name) for name in fields.get("bound", ()))
        return Reference(**fields)


class ReferenceTable:
    """The references of one service; see the module's invariants."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._by_id: dict[int, Reference] = {}
        self._by_digest: dict[str, int] = {}
        self._next_id = 1
        self.epochs: dict[str, int] = {}
        self._changes = 0
        self._saved_changes = 0
        self._saving = asyncio.Lock()

    @staticmethod
    def load(path: Path, key: bytes) -> ReferenceTable:
        """The table in the file `path`, an empty one if there is none.  Blocks on the disk.

        Raises `Corrupt` for a file that is damaged, forged, or of another format or version.
        """
        table = ReferenceTable(path, key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return table
        try:
            document = json.loads(raw)
            body = document["body"]
            if not hmac.compare_digest(document["hmac"], table._seal(body)):
                raise Corrupt("the references file was changed by something else than capstore")
            if (body["format"], body["version"]) != (_FORMAT, _VERSION):
                raise Corrupt("the references file is of another version of capstore")
            table._fill(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt("the references file is damaged") from error
        return table

    def _fill(self, body: dict[str, Any]) -> None:
        for data in body["references"]:
            self._insert(Reference.from_json(data))
        self._next_id = int(body["next_id"])
        self.epochs = {str(name): int(epoch) for name, epoch in body["epochs"].items()}

    def _insert(self, reference: Reference) -> None:
        self._by_id[reference.id] = reference
        self._by_digest[reference.digest] = reference.id

    def _seal(self, body: dict[str, Any]) -> str:
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        return hmac.new(self._key, b"capstore references\0" + canonical, hashlib.sha256).hexdigest()

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

    def below(self, reference_id: int) -> list[Reference]:
        """Everything saved below the reference, in the order of ids."""
        found = {reference_id}
        # A child is always younger than its parent, so one pass in the order of ids finds all.
        result = []
        for each in sorted(self._by_id):
            reference = self._by_id[each]
            if reference.parent in found:
                found.add(each)
                result.append(reference)
        return result

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

    async def add(self, reference: Reference) -> Reference:
        """Adds `reference` under a new id; durable on return.

        Raises `TooLarge`, `StorageIOError`.
        """
        if len(self._by_id) >= REFERENCES_MAX and reference.parent:
            raise TooLarge(f"the service keeps at most {REFERENCES_MAX} references")
        reference = replace(reference, id=self._next_id)
        self._next_id += 1
        self._insert(reference)
        try:
            await self._changed()
        except BaseException:
            # Its token will never be handed out.
            self._drop(reference.id)
            raise
        return reference

    async def remove(self, ids: Iterable[int]) -> None:
        """Removes references; every removal so far is durable on return.

        Raises `StorageIOError`: then they are gone from memory, and come back with a restart unless
        a later `commit` succeeds.
        """
        for reference_id in ids:
            self._drop(reference_id)
        await self.commit()

    def drop_expired(self, now: int) -> None:
        """Removes references whose time is over, with all below; durable with the next change."""
        expired = [
            each.id for each in self if each.policy.expires_at and now >= each.policy.expires_at
        ]
        for reference_id in expired:
            for below in self.below(reference_id):
                self._drop(below.id)
            self._drop(reference_id)

    def _drop(self, reference_id: int) -> None:
        reference = self._by_id.pop(reference_id, None)
        if reference is not None:
            self._by_digest.pop(reference.digest, None)
            self._changes += 1

    async def _changed(self) -> None:
        self._changes += 1
        await self.commit()

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
        body = {
            "format": _FORMAT,
            "version": _VERSION,
            "next_id": next_id,
            "epochs": epochs,
            "references": [reference.to_json() for reference in references],
        }
        document = json.dumps({"body": body, "hmac": self._seal(body)}).encode() + b"\n"
        replace_file(self._path, document)

    def __iter__(self) -> Iterator[Reference]:
        return iter([self._by_id[reference_id] for reference_id in sorted(self._by_id)])
