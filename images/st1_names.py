"""Names over a CAPOSST1 store: a second space of keys, in the same log and table.

Invariants: the key of a binding is its path, joined with "/", which no name has in it; its value is
a sealed record of the hash, or the reference, that the name stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capstore.images import st1
from capstore.images.records import ST1_BINDING
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_entry import Entry
from capstore.schema import layout
from capstore.schema.errors import Corrupt, InvalidArgument, NotFound
from capstore.schema.limits import KEY_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.schema.objects import ANY, Binding, Condition

_HASH = int(layout.st1Hash)
_REFERENCE = int(layout.st1Reference)
_WORD_BYTES = 8
_HASH_BYTES = 32
_REFERENCE_MAX = (1 << 64) - 1

# The names on the way to a namespace, none for that over the whole store.
Path = Sequence[str]


def resolve(engine: St1Engine, path: Path, name: str) -> Binding:
    """What a name stands for.  Raises `NotFound`, `InvalidName`, `Corrupt`."""
    stored = _stored(path, name)
    entry = engine.find(stored)
    if entry is None:
        raise NotFound("there is no such name")
    return _binding(engine, name, stored, entry)


def bind(engine: St1Engine, path: Path, binding: Binding, condition: Condition = ANY) -> int:
    """Has a name stand for something; the version.

    Raises `Conflict`, `NotFound` for a hash that the store does not hold, `InvalidName`,
    `InvalidArgument`, `NoSpace`."""
    stored, value = _stored(path, binding.name), _value(binding)
    if binding.hash is not None:
        entry = engine.find(st1.OBJECTS + binding.hash)
        if entry is None or not entry.is_hashed:
            raise NotFound("there is no object with this hash")
    version = engine.put_stored(stored, value, condition)
    if binding.hash is not None and engine.marking is not None:
        engine.marking.add(binding.hash)
    return version


def unbind(engine: St1Engine, path: Path, name: str, condition: Condition = ANY) -> None:
    """Removes a name.  Raises `NotFound`, `Conflict`, `InvalidName`."""
    engine.remove(_stored(path, name), condition)


def list_names(
    engine: St1Engine, path: Path, after: str = "", limit: int = PAGE_ENTRIES_MAX
) -> tuple[Sequence[Binding], bool]:
    """Up to `limit` bindings of a namespace whose names come after `after`, in the order of their
    bytes; and whether more follow.  Raises `Corrupt`."""
    limit = max(1, min(limit, PAGE_ENTRIES_MAX))
    found: list[Binding] = []
    for stored, entry, name in _names(engine, _prefix(path), after.encode()):
        if len(found) == limit:
            return found, True
        found.append(_binding(engine, name, stored, entry))
    return found, False


def _names(engine: St1Engine, prefix: bytes, after: bytes) -> Iterator[tuple[bytes, Entry, str]]:
    behind = prefix + after if after else b""
    while True:
        for stored, entry in engine.entries(st1.NAMES, prefix, behind):
            name, slash, _ = stored[1 + len(prefix) :].partition(b"/")
            if slash:
                # A namespace below: what is in it is passed over at once.
                behind = prefix + name + b"/" + b"\xff"
                break
            yield stored, entry, _text(name)
        else:
            return


def bound_hashes(engine: St1Engine) -> Iterator[bytes | None]:
    """The hashes that names stand for, in all namespaces; None for what is no hash.

    Operations may come in between.  Raises `Corrupt`."""
    behind = b""
    while True:
        some = []
        for stored, entry in engine.entries(st1.NAMES, b"", behind):
            # At once: what an entry leads to may be moved, and gone, by what comes in between.
            some.append((stored, _binding(engine, "", stored, entry).hash))
            if len(some) == PAGE_ENTRIES_MAX:
                break
        for _, digest in some:
            yield digest
        if len(some) < PAGE_ENTRIES_MAX:
            return
        behind = some[-1][0][1:]


def _prefix(path: Path) -> bytes:
    return b"".join(check_name(name).encode() + b"/" for name in path)


def _stored(path: Path, name: str) -> bytes:
    key = _prefix(path) + check_name(name).encode()
    if len(key) > KEY_BYTES_MAX:
        raise InvalidArgument(f"the names on the way to it have more than {KEY_BYTES_MAX} bytes")
    return st1.NAMES + key


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Corrupt("a name is no text") from None


def _value(binding: Binding) -> bytes:
    """The record of a binding.  Raises `InvalidArgument`."""
    if (binding.hash is None) == (binding.reference is None):
        raise InvalidArgument("a name stands for a hash, or for a reference")
    if binding.hash is None:
        reference = binding.reference or 0
        if not 0 <= reference <= _REFERENCE_MAX:
            raise InvalidArgument("that is no id of a reference")
        return ST1_BINDING.pack(reference=reference, kind=_REFERENCE)
    if len(binding.hash) != _HASH_BYTES:
        raise InvalidArgument(f"a hash has {_HASH_BYTES} bytes")
    words = [
        int.from_bytes(binding.hash[at : at + _WORD_BYTES], "big")
        for at in range(0, _HASH_BYTES, _WORD_BYTES)
    ]
    return ST1_BINDING.pack(
        hash0=words[0], hash1=words[1], hash2=words[2], hash3=words[3], kind=_HASH
    )


def _binding(engine: St1Engine, name: str, stored: bytes, entry: Entry) -> Binding:
    record = ST1_BINDING.unpack(engine.value_of(stored, entry), "a binding")
    if record.kind == _REFERENCE:
        return Binding(name, entry.version, reference=record.reference)
    if record.kind != _HASH:
        raise Corrupt("a binding is of no kind that is known")
    words = (record.hash0, record.hash1, record.hash2, record.hash3)
    digest = b"".join(word.to_bytes(_WORD_BYTES, "big") for word in words)
    return Binding(name, entry.version, hash=digest)
