"""``fs.open_fs("capnp://...")``: capability URIs as PyFilesystem2's filesystem URLs.

Invariants:

* The URI is taken from the URL as it was given, not put together from the parts that PyFilesystem2
  splits it into, which have lost their percent-encoding.
* What cannot be opened raises ``OpenerError``; no message of this module holds the URI, which is a
  secret.
* A filesystem has the authority of its URI.  ``writeable=True`` asks that it be enough to write;
  without it, as PyFilesystem2 has it, nothing is asked and nothing is given up.
"""

from __future__ import annotations

from fs.errors import FSError
from fs.opener.base import Opener
from fs.opener.errors import NotWriteable, OpenerError
from fs.opener.parse import ParseResult

from capstore.schema.errors import StorageError, TransportError
from capstore.service.pyfs import CapstoreFS
from capstore.service.uri import CapabilityURI


class CapstoreOpener(Opener):
    """Opens ``capnp://insecure@/SOCKET/TOKEN`` and ``capnp://sha-256:KEY@HOST:PORT/TOKEN``, with or
    without a path as ``/-/a/b``."""

    protocols = ["capnp"]  # noqa: RUF012 - the base class declares it so

    def open_fs(
        self, fs_url: str, parse_result: ParseResult, writeable: bool, create: bool, cwd: str
    ) -> CapstoreFS:
        """Opens the directory that `fs_url` stands for; with `create` its path is made.

        `cwd` means nothing here.  Raises ``NotWriteable`` if `writeable` is wanted of a read-only
        capability, ``OpenerError`` for whatever else is wrong.
        """
        if parse_result.params:
            raise OpenerError("a capability URI has no parameters")
        # What follows the "!" is a path for the caller of `open`; in a URI it is percent-encoded.
        text = fs_url.partition("!")[0]
        try:
            uri = CapabilityURI.parse(text)
            filesystem = CapstoreFS(uri, create=create)
        except (StorageError, TransportError, FSError) as error:
            raise OpenerError(f"cannot open the capability URI: {error}") from error
        if writeable and filesystem.getmeta().get("read_only"):
            filesystem.close()
            raise NotWriteable("the capability is read-only")
        return filesystem
