"""Between the dataclasses of the store protocol and the structs of ``capstore.capnp``.

Invariants: as in `capstore.service.messages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import capnp

from capstore.backers.store import (
    ANY,
    Binding,
    BindingPage,
    Change,
    Condition,
    Delete,
    ObjectPage,
    ObjectStat,
    Put,
)
from capstore.schema.errors import Corrupt, InvalidArgument, InvalidName, StorageError
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Provenance
from capstore.service.messages import read_text

_PROVENANCES = tuple(Provenance)
_PROVENANCE_ORDINALS = {origin: ordinal for ordinal, origin in enumerate(_PROVENANCES)}
_NS_MIN, _NS_MAX = -(2**63), 2**63 - 1


def which_of(reader: Any, *, what: type[StorageError] = InvalidArgument) -> str:
    """The member of a union that is set; raises `what` for one that is not known here."""
    try:
        return str(reader.which())
    except (capnp.KjException, ValueError):
        raise what("a choice that is not known here") from None


# Conditions and changes ----------------------------------------------------------------------


def condition_fields(condition: Condition) -> dict[str, int | None]:
    """The fields of a ``Condition``.  Raises `InvalidArgument` for a version that none has."""
    if condition.absent:
        return {"absent": None}
    if condition.version is None:
        return {"none": None}
    if not 0 <= condition.version < 2**64:
        raise InvalidArgument("a version is not negative and has 64 bits")
    return {"version": condition.version}


def condition_of(params: Any) -> Condition:
    """What the parameters of a call demand.  Raises `InvalidArgument`."""
    return read_condition(params.condition) if params._has("condition") else ANY


def read_condition(reader: Any) -> Condition:
    """Raises `InvalidArgument`."""
    which = which_of(reader)
    if which == "none":
        return ANY
    return Condition(absent=True) if which == "absent" else Condition(version=reader.version)


def write_change(builder: Any, change: Change) -> None:
    """Fills a ``BatchItem``."""
    builder.key = change.key
    if change.condition is not ANY:
        builder.condition = condition_fields(change.condition)
    if isinstance(change, Put):
        data = change.data
        builder.put = memoryview(data) if isinstance(data, bytearray) else data
    else:
        builder.delete = None


def read_change(reader: Any) -> Change:
    """Raises `InvalidArgument`."""
    condition = read_condition(reader.condition)
    if which_of(reader) == "put":
        return Put(reader.key, reader.put, condition)
    return Delete(reader.key, condition)


# Objects -------------------------------------------------------------------------------------


def write_origin(builder: Any, stat: ObjectStat) -> None:
    """Fills ``created`` and ``provenance``, of whatever has them."""
    if stat.provenance is not Provenance.UNKNOWN:
        builder.provenance = _PROVENANCE_ORDINALS[stat.provenance]
        builder.created = max(_NS_MIN, min(stat.created, _NS_MAX))


def read_known(reader: Any, key: bytes, size: int) -> ObjectStat:
    """What is known of the object `key` of `size` bytes.  Raises `Corrupt`."""
    get = reader._get
    raw = get("provenance").raw
    if raw >= len(_PROVENANCES):
        raise Corrupt("the service speaks of an origin that this client does not know")
    return ObjectStat(key, size, get("version"), get("created"), _PROVENANCES[raw])


def write_object(builder: Any, stat: ObjectStat) -> None:
    """Fills an ``ObjectStat``."""
    builder.key = stat.key
    builder.size = stat.size
    builder.version = stat.version
    write_origin(builder, stat)


def read_object(reader: Any) -> ObjectStat:
    """Raises `Corrupt`, also for a key that is none."""
    key = reader._get("key")
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise Corrupt("the service speaks of a key that is none")
    return read_known(reader, key, reader._get("size"))


def write_objects(results: Any, objects: Sequence[ObjectStat]) -> None:
    """Fills the results of ``Store.list``, but for the cursor."""
    builders = results.init("objects", len(objects))
    for index, stat in enumerate(objects):
        write_object(builders[index], stat)


def read_objects(response: Any, prefix: bytes, after: bytes) -> ObjectPage:
    """The page that was listed behind `after`.

    Raises `Corrupt` for one that would let a walk over the pages go astray or on for ever.
    """
    objects = [read_object(reader) for reader in response.objects]
    more = bool(response._has("cursor"))
    keys = [after, *(stat.key for stat in objects)]
    if not _in_order(keys) or (more and not objects):
        raise Corrupt("the service lists keys out of order")
    if not all(key.startswith(prefix) for key in keys[1:]):
        raise Corrupt("the service lists keys that were not asked for")
    return ObjectPage(objects, more)


def _in_order(words: Iterable[bytes]) -> bool:
    return all(before < behind for before, behind in pairwise(words))


# Names ---------------------------------------------------------------------------------------


def binding_fields(binding: Binding) -> dict[str, bytes | int]:
    """What a ``Binding`` stands for, as its field.

    Raises `InvalidArgument` for one of nothing, or of two things.
    """
    if (binding.hash is None) == (binding.reference is None):
        raise InvalidArgument("a name stands for a hash or for a reference")
    if binding.hash is not None:
        return {"hash": binding.hash}
    reference = binding.reference or 0
    if not 0 <= reference < 2**64:
        raise InvalidArgument("the id of a reference is not negative and has 64 bits")
    return {"reference": reference}


def write_binding(builder: Any, binding: Binding) -> None:
    """Fills a ``Binding``."""
    builder.name = binding.name
    builder.version = binding.version
    for field, value in binding_fields(binding).items():
        setattr(builder, field, value)


def read_binding(reader: Any) -> Binding:
    """What a service says of a name.  Raises `Corrupt`."""
    try:
        name = check_name(read_text(reader, "name", what=Corrupt))
    except InvalidName:
        raise Corrupt("the service lists a name that is none") from None
    return bound(reader, name, reader.version, what=Corrupt)


def bound(reader: Any, name: str, version: int, *, what: type[StorageError]) -> Binding:
    """The binding of `name` to what `reader` says.  Raises `what`."""
    if which_of(reader, what=what) == "hash":
        return Binding(name, version, hash=reader.hash)
    return Binding(name, version, reference=reader.reference)


def write_bindings(results: Any, bindings: Sequence[Binding]) -> None:
    """Fills the results of ``Namespace.list``, but for the cursor."""
    builders = results.init("bindings", len(bindings))
    for index, binding in enumerate(bindings):
        write_binding(builders[index], binding)


def read_bindings(response: Any, after: str) -> BindingPage:
    """The page that was listed behind `after`.  Raises as `read_objects`."""
    bindings = [read_binding(reader) for reader in response.bindings]
    more = bool(response._has("cursor"))
    names = [after.encode(), *(binding.name.encode() for binding in bindings)]
    if not _in_order(names) or (more and not bindings):
        raise Corrupt("the service lists names out of order")
    return BindingPage(bindings, more)
