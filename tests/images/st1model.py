"""A store beside a dictionary: the same steps for both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random

from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import format_st1, open_st1
from capstore.schema.errors import Conflict, NoSpace, NotFound
from capstore.schema.objects import Change, Condition, Delete, Put

Model = dict[bytes, bytes]

KIB = 1024


class Clock:
    """A clock that goes by itself, a millisecond each time."""

    def __init__(self, now: int = 1_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def entropy(count: int) -> bytes:
    return b"\x5a" * count


def new_store(
    size: int | None = None,
    segment_bytes: int | None = None,
    device: BlockDevice | None = None,
) -> St1Engine:
    device = device or MemoryDevice()
    format_st1(device, size=size, segment_bytes=segment_bytes, clock=Clock(), entropy=entropy)
    return reopened(device)


def reopened(device: BlockDevice, *, writable: bool = True) -> St1Engine:
    return open_st1(device, writable=writable, clock=Clock(), entropy=entropy)


def content_of(engine: St1Engine) -> Model:
    found: Model = {}
    after, more = b"", True
    while more:
        stats, more = engine.list(after=after, limit=7)
        for stat in stats:
            found[stat.key] = engine.get(stat.key)
            assert stat.size == len(found[stat.key])
            assert engine.stat(stat.key) == stat
            after = stat.key
    return found


class Pair:
    """An engine and a model that are taken through the same steps by `random`."""

    def __init__(self, engine: St1Engine, random: Random, *, keys: int = 30) -> None:
        self.engine = engine
        self.model: Model = {}
        self.versions: dict[bytes, int] = {}
        self.last_version = 0
        self._random = random
        self._keys = [b"%03d" % n * (1 + n % 4 * 20) for n in range(keys)]
        self._compacting: Iterator[None] | None = None
        self.refused = 0

    def step(self) -> None:
        """One step; what there is no room for changes nothing."""
        name = self._random.choices(
            ("put", "put_hashed", "delete", "batch", "pieces", "conditional", "compact", "sync"),
            (30, 8, 18, 5, 4, 8, 12, 3),
        )[0]
        try:
            getattr(self, name)()
        except NoSpace:
            self.refused += 1
            self._compacting = None

    def check(self) -> None:
        assert content_of(self.engine) == self.model
        assert self.engine.counts.entries == len(self.model)

    def _value(self) -> bytes:
        lengths = (0, 1, 50, 300, 511, 512, 671, 672, 1000, 4096, 9000)
        return self._random.randbytes(self._random.choice(lengths))

    def _key(self) -> bytes:
        return self._random.choice(self._keys)

    def _note(self, key: bytes, value: bytes, version: int) -> None:
        assert version > self.last_version
        self.last_version = self.versions[key] = version
        self.model[key] = value

    def put(self) -> None:
        key, value = self._key(), self._value()
        stat = self.engine.put(key, value)
        self._note(key, value, stat.version)

    def put_hashed(self) -> None:
        # Few different contents, so that some are put again.
        value = bytes([self._random.randrange(6)]) * self._random.choice((20, 5000))
        stat = self.engine.put(b"", value)
        assert stat.key == hashlib.sha256(value).digest()
        self._note(stat.key, value, stat.version)

    def delete(self) -> None:
        known = self._random.random() < 0.8 and self.model
        key = self._random.choice(sorted(self.model)) if known else self._key()
        try:
            self.engine.delete(key)
        except NotFound:
            assert key not in self.model
        else:
            del self.model[key], self.versions[key]

    def conditional(self) -> None:
        key, value = self._key(), self._value()
        version = self._random.choice((None, self.versions.get(key, 1), 10**9))
        condition = Condition(version=version) if version else Condition(absent=True)
        try:
            stat = self.engine.put(key, value, condition)
        except Conflict:
            held = self.versions.get(key)
            assert held != version if version else held is not None
        else:
            assert self.versions.get(key) == version
            self._note(key, value, stat.version)

    def batch(self) -> None:
        changes: list[Change] = []
        after = dict(self.model)
        for _ in range(self._random.randrange(1, 12)):
            key = self._key()
            if key in after and self._random.random() < 0.3:
                changes.append(Delete(key))
                del after[key]
            else:
                changes.append(Put(key, self._value()))
                after[key] = bytes(changes[-1].data)
        versions = self.engine.batch(changes)
        for change, version in zip(changes, versions, strict=True):
            if isinstance(change, Put):
                self._note(change.key, bytes(change.data), version)
            else:
                assert version == 0
                del self.versions[change.key]
        self.model = after

    def pieces(self) -> None:
        key = self._random.choice((b"", self._key()))
        pieces = [self._value() for _ in range(self._random.randrange(4))]
        writing = self.engine.begin(key)
        try:
            for piece in pieces:
                writing.write(piece)
            if self._random.random() < 0.3:
                return
            stat = writing.commit()
        finally:
            writing.abort()
        self._note(stat.key, b"".join(pieces), stat.version)

    def compact(self) -> None:
        if self._compacting is None:
            self._compacting = self.engine.compact_steps()
        for _ in range(self._random.randrange(1, 4)):
            try:
                next(self._compacting)
            except StopIteration:
                self._compacting = None
                return

    def sync(self) -> None:
        self.engine.sync()

    def reopen(self) -> None:
        self.engine.sync()
        self._compacting = None
        self.engine = reopened(self.engine.device)
