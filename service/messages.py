"""Between the dataclasses of the node protocol and the structs of ``capstore.capnp``.

Invariants: the one place, for service and client alike, where either is turned into the other.
Reading never trusts the peer: what is malformed becomes `InvalidArgument`, `InvalidName`, or, for
what a service sent, `Corrupt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import capnp

from capstore.backers.node import (
    Attributes,
    Entry,
    NodeKind,
    Page,
    Provenance,
    Stat,
    Usage,
)
from capstore.schema import wire
from capstore.schema.errors import (
    Code,
    Corrupt,
    InvalidArgument,
    InvalidName,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import HIDDEN_PATTERNS_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.decisions import POLICIES
from capstore.service.hidden import check_pattern, shown
from capstore.service.policy import Policy

T = TypeVar("T")

_KINDS = tuple(NodeKind)
_PROVENANCES = tuple(Provenance)
_CODES = tuple(Code)
_CHANGES = tuple(ChangeKind)
_KIND_ORDINALS = {kind: ordinal for ordinal, kind in enumerate(_KINDS)}
_CHANGE_ORDINALS = {kind: ordinal for ordinal, kind in enumerate(_CHANGES)}
_PROVENANCE_ORDINALS = {origin: ordinal for ordinal, origin in enumerate(_PROVENANCES)}

_NS_MIN, _NS_MAX = -(2**63), 2**63 - 1


def read_text(struct: Any, field: str, *, what: type[StorageError] = InvalidArgument) -> str:
    """A Text field; raises `what` where it is no UTF-8."""
    try:
        text: str = struct._get(field)
    except (UnicodeDecodeError, capnp.KjException):
        raise what("not valid UTF-8") from None
    return text


def read_name(struct: Any, field: str = "name") -> str:
    """A Text field that is to be a name (and is yet to be checked as one)."""
    return read_text(struct, field, what=InvalidName)


def write_error(builder: Any, error: StorageError) -> None:
    """Fills an ``Error``."""
    builder.code = error.code.value
    builder.message = error.message


def read_error(reader: Any) -> StorageError:
    """The exception that an ``Error`` stands for; an unknown code is `InternalError`."""
    raw = reader.code.raw
    code = _CODES[raw] if raw < len(_CODES) else Code.INTERNAL
    try:
        return StorageError.of(code, reader.message)
    except (UnicodeDecodeError, capnp.KjException):
        return StorageError.of(code)


def write_stat(builder: Any, stat: Stat) -> None:
    """Fills a ``Stat``; fields at their default are left alone."""
    if stat.kind is not NodeKind.FILE:
        builder.kind = _KIND_ORDINALS[stat.kind]
    if stat.executable:
        builder.executable = True
    if stat.provenance is not Provenance.UNKNOWN:
        builder.provenance = _PROVENANCE_ORDINALS[stat.provenance]
        builder.created = max(_NS_MIN, min(stat.created, _NS_MAX))
        builder.modified = max(_NS_MIN, min(stat.modified, _NS_MAX))
    builder.linkCount = min(stat.link_count, 2**32 - 1)
    builder.size = stat.size
    builder.nodeId = stat.node_id
    builder.version = stat.version


def read_stat(reader: Any) -> Stat:
    """Raises `Corrupt` for a kind or provenance that this client does not know."""
    get = reader._get  # a third of the cost of an attribute, and listings read millions
    kind, provenance = get("kind").raw, get("provenance").raw
    if kind >= len(_KINDS) or provenance >= len(_PROVENANCES):
        raise Corrupt("the service speaks of a kind of node that this client does not know")
    return Stat(
        kind=_KINDS[kind],
        size=get("size"),
        node_id=get("nodeId"),
        version=get("version"),
        created=get("created"),
        modified=get("modified"),
        provenance=_PROVENANCES[provenance],
        executable=get("executable"),
        link_count=get("linkCount"),
    )


def write_entry(builder: Any, entry: Entry) -> None:
    """Fills an ``Entry``."""
    builder.name = entry.name
    write_stat(builder.init("stat"), entry.stat)
    if entry.target is not None:
        builder.target = entry.target


def read_entry(reader: Any) -> Entry:
    """Raises `Corrupt`, also for a name that is none: what a client makes of it is a path."""
    stat = read_stat(reader._get("stat"))
    try:
        name = check_name(read_text(reader, "name", what=Corrupt))
    except InvalidName:
        raise Corrupt("the service lists a name that is none") from None
    return Entry(
        name=name,
        stat=stat,
        target=read_text(reader, "target", what=Corrupt) if stat.kind is NodeKind.SYMLINK else None,
    )


def write_page(results: Any, page: Page) -> None:
    """Fills the results of ``Directory.list``; the cursor is the last name of the page."""
    builders = results.init("entries", len(page.entries))
    for index, entry in enumerate(page.entries):
        write_entry(builders[index], entry)
    if page.more:
        results.cursor = page.entries[-1].name.encode()


def read_page(response: Any, after: str) -> Page:
    """The page that was listed behind `after`.

    Raises `Corrupt` for one that would let a walk over the pages go astray or on for ever.
    """
    entries = [read_entry(entry) for entry in response.entries]
    more = bool(response._has("cursor"))
    names = [after, *(entry.name for entry in entries)]
    if any(before >= behind for before, behind in pairwise(names)) or (more and not entries):
        raise Corrupt("the service lists names out of order")
    return Page(entries, more)


def write_changes(builder: Any, changes: Sequence[Change]) -> None:
    """Fills the parameters of ``Watcher.changed``."""
    builders = builder.init("changes", len(changes))
    for index, (kind, name, node_id) in enumerate(changes):
        told = builders[index]
        told.kind, told.name, told.nodeId = _CHANGE_ORDINALS[kind], name, node_id


def read_changes(params: Any) -> list[Change]:
    """The changes that a service tells; a kind that this client does not know is an overflow.

    Raises `Corrupt`.
    """
    try:
        return [_read_change(told) for told in params.changes]
    except capnp.KjException:
        raise Corrupt("the service tells changes that are malformed") from None


def _read_change(told: Any) -> Change:
    kind = told.kind.raw
    if kind >= len(_CHANGES) or _CHANGES[kind] is ChangeKind.OVERFLOW:
        return Change(ChangeKind.OVERFLOW)
    name = read_text(told, "name", what=Corrupt)
    try:
        check_name(name)
    except InvalidName:
        raise Corrupt("the service tells of a name that is none") from None
    return Change(_CHANGES[kind], name, told.nodeId)


def read_cursor(reader: Any) -> str:
    """The name after which a listing goes on; raises `InvalidArgument`."""
    try:
        name: str = reader.cursor.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("not a cursor of this directory") from None
    return name


def write_attributes(builder: Any, change: Attributes) -> None:
    """Fills an ``Attributes``."""
    if change.executable is not None:
        builder.setExecutable, builder.executable = True, change.executable
    if change.modified is not None:
        builder.setModified, builder.modified = True, change.modified
    if change.created is not None:
        builder.setCreated, builder.created = True, change.created


def read_attributes(reader: Any) -> Attributes:
    """What an ``Attributes`` asks for."""
    return Attributes(
        executable=reader.executable if reader.setExecutable else None,
        modified=reader.modified if reader.setModified else None,
        created=reader.created if reader.setCreated else None,
    )


def write_usage(builder: Any, usage: Usage) -> None:
    """Fills a ``Usage``."""
    builder.totalBytes = usage.total_bytes
    builder.usedBytes = usage.used_bytes
    builder.freeBytes = usage.free_bytes
    builder.totalNodes = usage.total_nodes
    builder.usedNodes = usage.used_nodes
    builder.label = usage.label


def read_usage(reader: Any) -> Usage:
    """Raises `Corrupt`."""
    return Usage(
        total_bytes=reader.totalBytes,
        used_bytes=reader.usedBytes,
        free_bytes=reader.freeBytes,
        total_nodes=reader.totalNodes,
        used_nodes=reader.usedNodes,
        label=read_text(reader, "label", what=Corrupt),
    )


def write_policy(builder: Any, policy: Policy, *, revocable: bool = False) -> None:
    """Fills a ``Policy``."""
    builder.readOnly = policy.read_only
    builder.expiresAt = policy.expires_at
    builder.appendOnly = policy.append_only
    builder.maxBytes = policy.max_bytes
    builder.maxNodes = policy.max_nodes
    builder.maxFileBytes = policy.max_file_bytes
    builder.callsPerSecond = policy.calls_per_second
    builder.bytesPerSecond = policy.bytes_per_second
    if policy.hidden_names:
        names = builder.init("hiddenNames", len(policy.hidden_names))
        for index, pattern in enumerate(policy.hidden_names):
            names[index] = shown(pattern)
    builder.dryRun = policy.dry_run
    builder.traced = policy.traced
    builder.revocable = revocable
    builder.fieldsKnown = _POLICY_FIELDS


_ENFORCED = frozenset({*POLICIES, "fieldsKnown"})
_POLICY_FIELDS = len(wire.Policy.schema.fieldnames)


def read_policy(reader: Any) -> tuple[Policy, bool]:
    """The policy, and whether a revoker is wanted.

    Raises `Unsupported` for a restriction that is asked for and not enforced here, and
    `InvalidArgument`.
    """
    if reader.fieldsKnown > _POLICY_FIELDS:
        raise Unsupported("the policy may say more than this service understands")
    for field in reader.schema.fieldnames:
        if field not in _ENFORCED and _is_set(reader, field):
            raise Unsupported(f"the policy {field} is not served here")
    if len(reader.hiddenNames) > HIDDEN_PATTERNS_MAX:
        raise TooLarge(f"a capability hides at most {HIDDEN_PATTERNS_MAX} patterns")
    policy = policy_of(reader, what=InvalidArgument)
    for pattern in policy.hidden_names:
        check_pattern(pattern)
    return policy.check(), reader.revocable


def policy_of(reader: Any, *, what: type[StorageError] = Corrupt) -> Policy:
    """A ``Policy`` as it stands there.  Raises `what` for what is no text."""
    try:
        hidden_names = tuple(reader.hiddenNames)
    except (UnicodeDecodeError, capnp.KjException):
        raise what("not valid UTF-8") from None
    return Policy(
        read_only=reader.readOnly,
        expires_at=reader.expiresAt,
        append_only=reader.appendOnly,
        max_bytes=reader.maxBytes,
        max_nodes=reader.maxNodes,
        max_file_bytes=reader.maxFileBytes,
        calls_per_second=reader.callsPerSecond,
        bytes_per_second=reader.bytesPerSecond,
        hidden_names=hidden_names,
        dry_run=reader.dryRun,
        traced=reader.traced,
    )


def _is_set(reader: Any, field: str) -> bool:
    value = getattr(reader, field)
    return bool(len(value) if hasattr(value, "__len__") else value)


def enum_of(kinds: type[T], reader: Any) -> T:
    """The member of the Python enum `kinds` for a wire enum; raises `InvalidArgument`."""
    members = tuple(kinds)  # type: ignore[arg-type, var-annotated]
    if reader.raw >= len(members):
        raise InvalidArgument("an enumerant that this service does not know")
    member: T = members[reader.raw]
    return member
