"""The state directory of a service: its lock, its secrets, its saved references.

Invariants:

* One service at a time holds a state directory; a second one gets `Busy`.
* The directory is made with mode 0700 and each secret in it with 0600; a directory that is open to
  others, or a secret that others may read, is not used.
* A secret is made once, complete or not at all.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from capstore.images.durable import replace_file, sync_directory
from capstore.schema.errors import (
    Busy,
    Corrupt,
    Denied,
    InvalidArgument,
    StorageError,
    from_os_error,
)
from capstore.service.references import ReferenceTable
from capstore.service.tls import ServiceKey

_OWNER_KEY_BYTES = 32
_SECRET_BYTES_MAX = 64 * 1024


class StateDirectory:
    """An open, locked state directory.

    `owner_key` is the secret that owner tokens and the seal of the references come from;
    `references` is the table of saved references.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock
        if (path / "references.json").exists() and not (path / "owner.key").exists():
            raise Corrupt("owner.key is missing from the state directory, references.json is not")
        self.owner_key = self._secret("owner.key", lambda: secrets.token_bytes(_OWNER_KEY_BYTES))
        if len(self.owner_key) != _OWNER_KEY_BYTES:
            raise Corrupt("owner.key in the state directory is damaged")
        self.references = ReferenceTable.load(path / "references.json", self.owner_key)

    @staticmethod
    def open(path: Path) -> StateDirectory:
        """Opens `path`, making it where there is none.  Blocks on the disk.

        Raises `Busy` when another service holds it, `Denied` for secrets that others may read,
        `Corrupt` for damaged ones, and what stands for an OSError.
        """
        try:
            if not path.exists():
                path.mkdir(mode=0o700)
                sync_directory(path.parent)
            _require_private(path)
            lock = _locked(path / "lock")
        except OSError as error:
            raise from_os_error(error, "the state directory") from error
        try:
            _remove_leftovers(path)
            return StateDirectory(path, lock)
        except StorageError:
            os.close(lock)
            raise
        except OSError as error:
            os.close(lock)
            raise from_os_error(error, "the state directory") from error

    def service_key(self) -> ServiceKey:
        """The key that TLS clients pin, made on first use.  Blocks on the disk."""
        return ServiceKey.from_pem(self._secret("service.pem", ServiceKey.generate_pem))

    def _secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self.path / name
        try:
            return _read_secret(path)
        except FileNotFoundError:
            secret = make()
            replace_file(path, secret)
            return secret

    def close(self) -> None:
        """Lets the next service have it; closing again does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _require_private(path: Path) -> None:
    """Raises unless `path` is a directory that nobody else can change or look into."""
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidArgument("the state is kept in a directory, and this is none")
    if found.st_uid != os.geteuid():
        raise Denied("the state directory belongs to another user")
    if found.st_mode & 0o077:
        raise Denied("the state directory is open to others: chmod 700 it")


def _read_secret(path: Path) -> bytes:
    """Raises FileNotFoundError, and `Denied` for what others may read or what is no file."""
    # O_NONBLOCK: a FIFO in the place of a secret must not be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise Denied(f"{path.name} in the state directory is no file of this user")
        if found.st_mode & 0o077:
            raise Denied(f"{path.name} in the state directory can be read by others: chmod 600 it")
        return file.read(_SECRET_BYTES_MAX)


def _remove_leftovers(path: Path) -> None:
    """Removes what a service that was killed was about to put in the place of its files."""
    for name in ("references.json", "owner.key", "service.pem"):
        for leftover in path.glob(f".{name}.*.new"):
            leftover.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy("another service holds this state directory; give this one its own") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
