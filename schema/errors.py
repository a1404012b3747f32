"""The one family of exceptions below, across and above the wire.

Invariants:

* Every expected failure of storage is a `StorageError`; its `code` is one of the closed list in
  ``capstore.capnp``.  Backers map foreign exceptions at their edge, the service turns a
  `StorageError` into an ``Error`` struct in one place, the client turns it back in one place.
* `message` is for people and may be sent to strangers: it never holds a path of the host, a
  traceback or a secret.
* What RPC itself is about (a lost connection) is no `StorageError` but a `TransportError`.
"""

from __future__ import annotations

import enum
import errno
import os
from typing import ClassVar


class Code(enum.Enum):
    """The error codes; values are the enumerants of ``ErrorCode`` in ``capstore.capnp``."""

    INTERNAL = "internal"
    NOT_FOUND = "notFound"
    ALREADY_EXISTS = "alreadyExists"
    NOT_DIRECTORY = "notDirectory"
    IS_DIRECTORY = "isDirectory"
    NOT_EMPTY = "notEmpty"
    NOT_SYMLINK = "notSymlink"
    READ_ONLY = "readOnly"
    DENIED = "denied"
    REVOKED = "revoked"
    EXPIRED = "expired"
    QUOTA_EXCEEDED = "quotaExceeded"
    NO_SPACE = "noSpace"
    TOO_LARGE = "tooLarge"
    INVALID_NAME = "invalidName"
    INVALID_ARGUMENT = "invalidArgument"
    CROSS_VOLUME = "crossVolume"
    CONFLICT = "conflict"
    BUSY = "busy"
    CLOSED = "closed"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    IO = "io"


class StorageError(Exception):
    """A storage operation failed; `code` says how, `message` says it to a person.

    Raise a subclass where the code is fixed, `StorageError.of` where it is data.
    """

    code: ClassVar[Code] = Code.INTERNAL
    _by_code: ClassVar[dict[Code, type[StorageError]]] = {}

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        StorageError._by_code.setdefault(cls.code, cls)

    @staticmethod
    def of(code: Code, message: str = "") -> StorageError:
        """The exception of the family that stands for `code`."""
        return StorageError._by_code[code](message)

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}" if self.message else self.code.value


class InternalError(StorageError):
    """A bug in the service; its log knows more."""

    code = Code.INTERNAL


class NotFound(StorageError):
    """No entry of this name, or the node is gone."""

    code = Code.NOT_FOUND


class AlreadyExists(StorageError):
    """The name is taken."""

    code = Code.ALREADY_EXISTS


class NotDirectory(StorageError):
    """A directory was needed."""

    code = Code.NOT_DIRECTORY


class IsDirectory(StorageError):
    """A file or link was needed, this is a directory."""

    code = Code.IS_DIRECTORY


class NotEmpty(StorageError):
    """The directory has entries."""

    code = Code.NOT_EMPTY


class NotSymlink(StorageError):
    """A symbolic link was needed."""

    code = Code.NOT_SYMLINK


class ReadOnly(StorageError):
    """This capability, or its volume, does not write."""

    code = Code.READ_ONLY


class Denied(StorageError):
    """No such authority."""

    code = Code.DENIED


class Revoked(StorageError):
    """The capability was revoked."""

    code = Code.REVOKED


class Expired(StorageError):
    """The capability's time is over."""

    code = Code.EXPIRED


class QuotaExceeded(StorageError):
    """Over the quota of this capability."""

    code = Code.QUOTA_EXCEEDED


class NoSpace(StorageError):
    """Over the space of the volume; nothing was lost."""

    code = Code.NO_SPACE


class TooLarge(StorageError):
    """Over a limit of the protocol or of the format."""

    code = Code.TOO_LARGE


class InvalidName(StorageError):
    """Not a name, or one that this backer cannot hold."""

    code = Code.INVALID_NAME


class InvalidArgument(StorageError):
    """An argument makes no sense."""

    code = Code.INVALID_ARGUMENT


class CrossVolume(StorageError):
    """Both sides of a rename or link must be of one volume."""

    code = Code.CROSS_VOLUME


class Conflict(StorageError):
    """The version is not the expected one."""

    code = Code.CONFLICT


class Busy(StorageError):
    """Somebody else holds it; try again later."""

    code = Code.BUSY


class Closed(StorageError):
    """The file, the volume or the service was closed."""

    code = Code.CLOSED


class Corrupt(StorageError):
    """A checksum or a structure is wrong."""

    code = Code.CORRUPT


class Unsupported(StorageError):
    """This backer or node cannot do that."""

    code = Code.UNSUPPORTED


class StorageIOError(StorageError):
    """The storage underneath failed."""

    code = Code.IO


class TransportError(Exception):
    """The RPC connection failed; nothing is known of the calls that were under way."""


class Disconnected(TransportError, ConnectionError):
    """The connection is gone, or could not be made."""


_BY_ERRNO: dict[int, type[StorageError]] = {
    errno.ENOENT: NotFound,
    errno.ESTALE: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.ENOTDIR: NotDirectory,
    errno.EISDIR: IsDirectory,
    errno.ENOTEMPTY: NotEmpty,
    errno.EROFS: ReadOnly,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EFBIG: TooLarge,
    errno.EMLINK: TooLarge,
    errno.ENAMETOOLONG: InvalidName,
    errno.EILSEQ: InvalidName,
    errno.EINVAL: InvalidArgument,
    errno.EXDEV: CrossVolume,
    errno.EBUSY: Busy,
    errno.EADDRINUSE: Busy,
    errno.ETXTBSY: Busy,
    errno.EBADF: Closed,
    errno.ENOSYS: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.ELOOP: Unsupported,
    errno.ENXIO: Unsupported,
}


def from_os_error(error: OSError, what: str = "") -> StorageError:
    """The `StorageError` that stands for `error`.

    `what` names the operation in the message; of the error itself only its number is used, for
    its text may hold a path of the host.
    """
    number = error.errno or 0
    kind = _BY_ERRNO.get(number, StorageIOError)
    reason = os.strerror(number) if number else "unknown error"
    return kind(f"{what}: {reason}" if what else reason)
