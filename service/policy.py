"""What an attenuation takes away.

Invariants: policies combine whatever their order and number (`Policy.under`): each field on its
own, by or, union or the least.  Nothing that one forbids is allowed by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from capstore.schema.errors import InvalidArgument
from capstore.service.hidden import check_all, check_kept

__all__ = ["Policy", "least"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What an attenuation takes away; 0 and nothing take nothing.

    `expires_at` is ns since 1970.  `max_bytes` and `max_nodes` bound by how much a tree or store
    grows, `max_file_bytes` how long a file or object gets, `calls_per_second` and
    `bytes_per_second` how fast it is used.  `append_only`: what is there stays as it is.
    `hidden_names` are globs for names that are not there.  `dry_run`: every call is answered as if
    it were done, and nothing is.  `traced`: the audit records every call.  Whether a `Revoker` is
    handed out is no matter of the policy: every grant can be revoked by whoever holds that power.
    """

    read_only: bool = False
    expires_at: int = 0
    max_bytes: int = 0
    max_nodes: int = 0
    calls_per_second: int = 0
    bytes_per_second: int = 0
    append_only: bool = False
    max_file_bytes: int = 0
    hidden_names: tuple[str, ...] = ()
    dry_run: bool = False
    traced: bool = False

    def under(self, outer: Policy) -> Policy:
        """This policy and `outer` at once."""
        return Policy(
            read_only=self.read_only or outer.read_only,
            expires_at=least(self.expires_at, outer.expires_at),
            max_bytes=least(self.max_bytes, outer.max_bytes),
            max_nodes=least(self.max_nodes, outer.max_nodes),
            calls_per_second=least(self.calls_per_second, outer.calls_per_second),
            bytes_per_second=least(self.bytes_per_second, outer.bytes_per_second),
            append_only=self.append_only or outer.append_only,
            max_file_bytes=least(self.max_file_bytes, outer.max_file_bytes),
            hidden_names=_union(outer.hidden_names, self.hidden_names),
            dry_run=self.dry_run or outer.dry_run,
            traced=self.traced or outer.traced,
        )

    def check(self) -> Policy:
        """This policy if it makes sense.  Raises `InvalidArgument`, `TooLarge`."""
        if self.expires_at < 0:
            raise InvalidArgument("a policy cannot expire before 1970")
        if any(getattr(self, name) < 0 for name in _BOUNDS):
            raise InvalidArgument("a bound is not negative")
        for pattern in self.hidden_names:
            check_kept(pattern)
        check_all(self.hidden_names)
        return self

    @property
    def counts(self) -> bool:
        """Whether it bounds an amount or a rate: what is used up is then part of the authority."""
        return bool(
            self.max_bytes or self.max_nodes or self.calls_per_second or self.bytes_per_second
        )

    def to_json(self) -> dict[str, Any]:
        """As a file holds it: what differs from the default."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != _DEFAULTS[name]
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Policy:
        """Raises TypeError for anything else than `to_json` gives."""
        values = dict(data)
        values["hidden_names"] = tuple(str(each) for each in values.get("hidden_names", ()))
        return Policy(**values)


_BOUNDS = ("max_bytes", "max_nodes", "calls_per_second", "bytes_per_second", "max_file_bytes")
_DEFAULTS = {field.name: field.default for field in fields(Policy)}


def least(one: int, other: int) -> int:
    """The lesser of two bounds, of which 0 is none."""
    return min(one, other) if one and other else one or other


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    if not one or not other:
        return one or other
    return tuple(dict.fromkeys(one + other))
