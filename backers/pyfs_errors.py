"""What PyFilesystem2's exceptions are to capstore.

Invariants: no exception but a `StorageError` leaves a block guarded by `fs_errors`.  Of the foreign
one only its class, and for the host's own errors their number, is used: its text may hold an URL
with a password, a path of the host or the answer of a server.

`capstore.service.pyfs_errors` is the opposite direction.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from types import TracebackType
from typing import Final

from fs import errors
from fs.opener import errors as opening

from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    Corrupt,
    Denied,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    StorageError,
    StorageIOError,
    Unsupported,
    from_os_error,
)

# The first class that an exception is an instance of decides, so subclasses stand first.
_KINDS: Final[tuple[tuple[type[Exception], type[StorageError], str], ...]] = (
    (errors.ResourceNotFound, NotFound, "not found"),
    (errors.DirectoryExists, AlreadyExists, "the name is taken"),
    (errors.FileExists, AlreadyExists, "the name is taken"),
    (errors.DestinationExists, AlreadyExists, "the name is taken"),
    (errors.DirectoryExpected, NotDirectory, "no directory"),
    (errors.FileExpected, IsDirectory, "no file"),
    (errors.ResourceInvalid, Unsupported, "not with a node of this kind"),
    (errors.DirectoryNotEmpty, NotEmpty, "the directory has entries"),
    (errors.ResourceLocked, Busy, "locked"),
    (errors.ResourceReadOnly, ReadOnly, "read-only"),
    (errors.InsufficientStorage, NoSpace, "no space"),
    (errors.PermissionDenied, Denied, "permission denied"),
    (errors.RemoveRootError, Denied, "the root directory stays"),
    (errors.RemoteConnectionError, StorageIOError, "the connection failed"),
    (errors.OperationTimeout, StorageIOError, "timed out"),
    (errors.Unsupported, Unsupported, "the filesystem cannot do that"),
    (errors.NoSysPath, Unsupported, "not on this host"),
    (errors.NoURL, Unsupported, "without an URL"),
    (errors.PathError, InvalidName, "not a name on this filesystem"),
    (errors.IllegalBackReference, InvalidName, "a path that leads out of the filesystem"),
    (errors.UnsupportedHash, Unsupported, "the filesystem cannot do that"),
    (errors.FilesystemClosed, Closed, "the filesystem was closed"),
    (errors.CreateFailed, NotFound, "the filesystem cannot be opened"),
    (opening.ParseError, InvalidArgument, "no filesystem URL"),
    (opening.NotWriteable, ReadOnly, "read-only"),
    (opening.OpenerError, Unsupported, "no filesystem of this kind is installed"),
    (zipfile.BadZipFile, Corrupt, "the archive is damaged"),
    (tarfile.TarError, Corrupt, "the archive is damaged"),
    (zlib.error, Corrupt, "the compressed data is damaged"),
    (lzma.LZMAError, Corrupt, "the compressed data is damaged"),
    (EOFError, Corrupt, "the data ends early"),
    (io.UnsupportedOperation, Unsupported, "the filesystem cannot do that"),
    (NotImplementedError, Unsupported, "the filesystem cannot do that"),
    (MemoryError, NoSpace, "out of memory"),
)

# Classes that wrap others, or say nothing of what happened.
_VAGUE: Final = frozenset(
    {errors.FSError, errors.CreateFailed, errors.OperationFailed, errors.ResourceError}
)
# Exceptions that wrap one another are followed so far.
_WRAPPED_MAX: Final = 8


class fs_errors:  # noqa: N801 - reads as the context manager that it is
    """Turns whatever its block raises into a `StorageError` about the operation `what`."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, Exception) and not isinstance(value, StorageError):
            raise storage_error(value, self._what) from None


def storage_error(error: Exception, what: str) -> StorageError:
    """The `StorageError` that stands for `error`, which the operation `what` raised."""
    cause = _cause(error)
    if isinstance(cause, OSError) and _is_of_the_host(cause):
        return from_os_error(cause, what)
    for foreign, kind, reason in _KINDS:
        if isinstance(cause, foreign):
            return kind(f"{what}: {reason}")
    return StorageIOError(f"{what}: {type(cause).__name__}")


def _cause(error: Exception) -> Exception:
    """What tells most of `error` and of the exceptions that it wraps.

    That is an error of the host where there is one, for PyFilesystem2 coarsens those, else the
    outermost that says more than that something failed.
    """
    chain = [error]
    while len(chain) < _WRAPPED_MAX and isinstance(chain[-1], errors.FSError):
        inner = getattr(chain[-1], "exc", None)
        if not isinstance(inner, Exception):
            break
        chain.append(inner)
    if isinstance(chain[-1], OSError) and _is_of_the_host(chain[-1]):
        return chain[-1]
    return next((told for told in chain if type(told) not in _VAGUE), chain[-1])


def _is_of_the_host(error: OSError) -> bool:
    """Whether its number is one of the host's: libraries (`ssl`) number errors of their own."""
    return type(error).__module__ == "builtins" and (error.errno or 0) > 0
