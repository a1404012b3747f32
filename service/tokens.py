"""What is made of the owner key: tokens that come back with every start, and seals of cursors.

Invariants: a token is 256 bits, as 43 characters of base64url.  One that is derived has a message
of its own (docs/spec/state.md); one that is saved is random, and kept nowhere but by its holder.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from capstore.schema.errors import InvalidArgument
from capstore.service.references import Reference, digest_of

_TOKEN_BYTES = 32
_CURSOR_SEAL_BYTES = 16


class Tokens:
    """Tokens and seals of one service."""

    def __init__(self, owner_key: bytes) -> None:
        self._owner_key = owner_key

    @staticmethod
    def fresh() -> str:
        """A random one."""
        return _text(secrets.token_bytes(_TOKEN_BYTES))

    def owner(self, volume: str, epoch: int) -> str:
        """That of the whole of `volume` in this epoch."""
        return self._derived(f"capstore owner token 1\0{epoch}\0{volume}")

    def standing(self, reference: Reference) -> str:
        """That of a standing share."""
        rotations = f"\0{reference.rotations}" if reference.rotations else ""
        return self._derived(
            f"capstore share token 1\0{reference.id}\0{reference.volume}\0{reference.label}"
            f"{rotations}"
        )

    def stands(self, reference: Reference) -> bool:
        """Whether it is a standing share: its digest is that of the token it would have."""
        return hmac.compare_digest(reference.digest, digest_of(self.standing(reference)))

    def _derived(self, message: str) -> str:
        return _text(hmac.new(self._owner_key, message.encode(), hashlib.sha256).digest())

    def cursor(self, listing: Sequence[bytes], last: bytes) -> bytes:
        """A cursor behind `last` of the listing that `listing` tells from all others."""
        return self._cursor_seal(listing, last) + last

    def behind(self, listing: Sequence[bytes], cursor: bytes) -> bytes:
        """Where `cursor` stands.  Raises `InvalidArgument` for one of another listing."""
        seal, last = cursor[:_CURSOR_SEAL_BYTES], cursor[_CURSOR_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._cursor_seal(listing, last)):
            raise InvalidArgument("not a cursor of this listing")
        return last

    def _cursor_seal(self, listing: Sequence[bytes], last: bytes) -> bytes:
        parts = b"".join(len(part).to_bytes(4, "little") + part for part in (*listing, last))
        message = b"capstore cursor\0" + parts
        return hmac.new(self._owner_key, message, hashlib.sha256).digest()[:_CURSOR_SEAL_BYTES]


def _text(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()
