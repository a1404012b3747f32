"""Capability URIs: an address, a key to pin, and a token, in one secret line.

Invariants:

* Two forms, as the OCaml implementation of Cap'n Proto RPC writes them:
  ``capnp://sha-256:FINGERPRINT@HOST:PORT/TOKEN`` (TLS; the fingerprint is base64url of the SHA-256
  of the server's public key) and ``capnp://insecure@/PATH/TO/SOCKET/TOKEN`` (a unix socket).
  ``/-/a/b`` behind either is a path below what the token stands for.
* A URI is a secret.  `str` gives it whole, for where it is meant to go; `repr`, and so every log
  and traceback, shows no more than the first 6 characters of the token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from capstore.schema.errors import InvalidArgument
from capstore.schema.names import check_name

_TOKEN = r"[A-Za-z0-9_-]{43}"  # noqa: S105 - the shape of a token, not one
_URI = re.compile(
    rf"capnp://(?:insecure|sha-256:(?P<fingerprint>[A-Za-z0-9_-]{{43}}))@"
    rf"(?P<address>[^\s]*?)/(?P<token>{_TOKEN})(?:/-(?P<path>(?:/.*)?))?/?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, repr=False)
class CapabilityURI:
    """A parsed URI.

    Either `socket` is the path of a unix socket, or `host`, `port` and `fingerprint` (of the
    server's public key, base64url) are set.  `path` are names below what `token` stands for.
    """

    token: str
    socket: str | None = None
    host: str | None = None
    port: int = 0
    fingerprint: str | None = None
    path: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> CapabilityURI:
        """Raises `InvalidArgument` (without the text, which may be a secret) for any other form."""
        match = _URI.fullmatch(text.strip())
        if match is None:
            raise InvalidArgument(
                "not a capability URI: capnp://insecure@/SOCKET/TOKEN or "
                "capnp://sha-256:FINGERPRINT@HOST:PORT/TOKEN"
            )
        address, token = unquote(match["address"]), match["token"]
        path = split_path(unquote(match["path"] or ""))
        if match["fingerprint"] is None:
            if not address.startswith("/"):
                raise InvalidArgument(
                    "an insecure URI is for a unix socket, named by its full path"
                )
            return CapabilityURI(token, socket=address, path=path)
        host, port = _host_and_port(address)
        return CapabilityURI(
            token, host=host, port=port, fingerprint=match["fingerprint"], path=path
        )

    def with_token(self, token: str) -> CapabilityURI:
        """The same service, another token, no path."""
        return replace(self, token=token, path=())

    def below(self, path: tuple[str, ...]) -> CapabilityURI:
        """The same capability with `path` added."""
        return replace(self, path=self.path + path)

    def _format(self, token: str) -> str:
        if self.socket is not None:
            base = f"capnp://insecure@{quote(self.socket)}/{token}"
        else:
            host = f"[{self.host}]" if self.host and ":" in self.host else self.host
            base = f"capnp://sha-256:{self.fingerprint}@{host}:{self.port}/{token}"
        return base + ("/-/" + "/".join(quote(name) for name in self.path) if self.path else "")

    def __str__(self) -> str:
        return self._format(self.token)

    def __repr__(self) -> str:
        return f"<CapabilityURI {self._format(self.token[:6] + '...')}>"


def _host_and_port(address: str) -> tuple[str, int]:
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:/@\[\]]+)):(?P<port>\d{1,5})", address
    )
    if match is None or not 0 < int(match["port"]) < 65536:
        raise InvalidArgument("the address in the URI is not HOST:PORT")
    return match["v6"] or match["host"], int(match["port"])


def split_path(path: str) -> tuple[str, ...]:
    """The names of a path as a person types it: empty segments and ``.`` are dropped.

    Raises `InvalidName` for anything else that is no name, ``..`` included: nothing leads upwards.
    """
    return tuple(check_name(name) for name in path.split("/") if name not in ("", "."))
