"""What capstore's errors are to PyFilesystem2.

Invariants: the one place where a `StorageError` or `TransportError` becomes an ``fs.errors``
exception.  The original is its ``__cause__``, so a caller that wants to know more asks that for its
``code``.  As everywhere in PyFilesystem2, the path is the one that the caller gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fs import errors

from capstore.schema.errors import Code, StorageError, TransportError


class IllegalDestination(errors.PathError):
    """A directory cannot be moved into itself; PyFilesystem2 2.4 has no error for that."""

    default_message = "'{path}' is inside of what would be moved there"


_RESOURCE_ERRORS: dict[Code, type[errors.ResourceError]] = {
    Code.NOT_FOUND: errors.ResourceNotFound,
    Code.ALREADY_EXISTS: errors.FileExists,
    # A file in the middle of a path: there is nothing of that name.
    Code.NOT_DIRECTORY: errors.ResourceNotFound,
    Code.IS_DIRECTORY: errors.FileExpected,
    Code.NOT_EMPTY: errors.DirectoryNotEmpty,
    Code.NOT_SYMLINK: errors.ResourceInvalid,
    Code.READ_ONLY: errors.ResourceReadOnly,
    Code.INVALID_ARGUMENT: errors.ResourceInvalid,
    Code.BUSY: errors.ResourceLocked,
}

# The same codes where the operation is one on directories.
_DIRECTORY_ERRORS: dict[Code, type[errors.ResourceError]] = {
    Code.ALREADY_EXISTS: errors.DirectoryExists,
    Code.NOT_DIRECTORY: errors.DirectoryExpected,
}

_OPERATION_ERRORS: dict[Code, type[errors.OperationFailed]] = {
    Code.DENIED: errors.PermissionDenied,
    Code.REVOKED: errors.PermissionDenied,
    Code.EXPIRED: errors.PermissionDenied,
    Code.QUOTA_EXCEEDED: errors.InsufficientStorage,
    Code.NO_SPACE: errors.InsufficientStorage,
    Code.TOO_LARGE: errors.InsufficientStorage,
    # The volume or the service was closed under us, which is how a service ends.
    Code.CLOSED: errors.RemoteConnectionError,
    Code.UNSUPPORTED: errors.Unsupported,
}


@contextmanager
def mapped(
    path: str,
    *,
    directory: bool = False,
    exists: type[errors.ResourceError] | None = None,
) -> Iterator[None]:
    """Raises what fails inside as ``fs.errors``, about `path`.

    `directory` says that the operation is one on directories, `exists` what it means that
    something is there already.
    """
    try:
        yield
    except StorageError as error:
        if exists is not None and error.code is Code.ALREADY_EXISTS:
            raise exists(path, exc=error) from error
        raise _of_storage(error, path, directory=directory) from error
    except TransportError as error:
        raise _failed(errors.RemoteConnectionError, path, error) from error
    except TimeoutError as error:
        raise _failed(errors.OperationTimeout, path, error) from error


def _of_storage(error: StorageError, path: str, *, directory: bool) -> errors.FSError:
    if error.code is Code.INVALID_NAME:
        return errors.InvalidPath(path, exc=error)
    kind = _DIRECTORY_ERRORS.get(error.code) if directory else None
    kind = kind or _RESOURCE_ERRORS.get(error.code)
    if kind is not None:
        return kind(path, exc=error)
    return _failed(_OPERATION_ERRORS.get(error.code, errors.OperationFailed), path, error)


def _failed(
    kind: type[errors.OperationFailed], path: str, error: Exception
) -> errors.OperationFailed:
    """PyFilesystem2 formats its messages, so braces that are data are given as fields."""
    if not str(error):
        return kind(path=path, exc=error)
    what = kind.default_message.partition(",")[0]
    return kind(path=path, exc=error, msg=what + ": {details}")
