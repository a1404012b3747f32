"""Node ids of trees that are put together out of several volumes.

Invariants:

* What a node is called depends on its volume's id for it and on the volume's number alone, so it
  is the same after a restart.
* Ids below 2**55 of different volumes, and those that come of larger ones, never meet; two larger
  ones meet as seldom as 63 bits of a hash do.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["VOLUME_NUMBER_MAX", "combined_id"]

VOLUME_NUMBER_MAX: Final = 255
_NUMBER_BITS: Final = 8
_ID_BYTES: Final = 8
# Ids up to here leave the highest bit free, which is set in hashes.
_PLAIN_MAX: Final = (1 << 8 * _ID_BYTES - 1 - _NUMBER_BITS) - 1
_HASHED: Final = 1 << 8 * _ID_BYTES - 1


def combined_id(node_id: int, number: int) -> int:
    """The id, in 64 bits, of the node `node_id` of the volume `number` (0 to 255).

    Eight bits longer than `node_id`, or a hash of both where there is no room for them.
    """
    if node_id <= _PLAIN_MAX:
        return node_id << _NUMBER_BITS | number
    raw = node_id.to_bytes(_ID_BYTES, "big") + bytes([number])
    digest = hashlib.blake2b(raw, digest_size=_ID_BYTES).digest()
    return int.from_bytes(digest, "big") | _HASHED
