"""The state directory of a service: its lock, its secrets, its saved references.

Invariants:

* One service at a time holds a state directory; a second one gets `Busy`.
* The directory is made with mode 0700 and each secret in it with 0600; a directory that is open to
  others, or a secret that others may read, is not used.
* A secret is made once, complete or not at all; the service key is replaced as a whole.
* The owner key is there only beside a table of references, from the first start on.  So a table
  that was lost is noticed: without it, what was revoked of owner tokens would be valid again.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from capstore.images.durable import HeldFile, replace_file, sync_directory
from capstore.schema.errors import (
    Busy,
    Corrupt,
    Denied,
    InvalidArgument,
    from_os_error,
)
from capstore.service.references import ReferenceTable
from capstore.service.tls import ServiceKey, ServiceKeys

_OWNER_KEY_BYTES = 32
_SECRET_BYTES_MAX = 64 * 1024


class StateDirectory:
    """An open, locked state directory.

    `owner_key` is the secret that owner tokens and the seal of the references come from;
    `references` is the table of saved references.
    """

    def __init__(self, path: Path, lock: int, folder: int) -> None:
        self.path = path
        # The directory is held, so that no path is looked up once it is open.
        self._held: tuple[int, ...] = (lock, folder)
        self.owner_key = self._secret("owner.key", self._first_key)
        if len(self.owner_key) != _OWNER_KEY_BYTES:
            raise Corrupt("owner.key in the state directory is damaged")
        if not (path / "references.json").exists():
            raise Corrupt("references.json is missing from the state directory, owner.key is not")
        self.references = ReferenceTable.load(HeldFile(folder, "references.json"), self.owner_key)

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
            with ExitStack() as held:
                lock = _locked(path / "lock")
                held.callback(os.close, lock)
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, folder)
                _remove_leftovers(path)
                state = StateDirectory(path, lock, folder)
                held.pop_all()
                return state
        except OSError as error:
            raise from_os_error(error, "the state directory") from error

    def _first_key(self) -> bytes:
        """An owner key, with the empty table that it seals on the disk before it."""
        path, key = self.path / "references.json", secrets.token_bytes(_OWNER_KEY_BYTES)
        if path.exists() and not ReferenceTable.is_first(path):
            raise Corrupt("owner.key is missing from the state directory, references.json is not")
        ReferenceTable(path, key).write_first()
        return key

    def service_keys(self) -> ServiceKeys:
        """The key that TLS clients pin, made on first use, and old ones.  Blocks on the disk.

        Raises `Corrupt`, `Denied` and OSError.
        """
        return ServiceKeys.from_pem(self._secret("service.pem", ServiceKey.generate_pem))

    def rotate_service_key(self, keep_until: int = 0) -> ServiceKeys:
        """Makes a new service key; URIs that pin the one before work until `keep_until`, in ns
        since 1970.  For a service that is to start.  Blocks on the disk.

        Raises as `service_keys` and `ServiceKeys.rotated`.
        """
        keys = self.service_keys().rotated(keep_until, time.time_ns())
        replace_file(self.path / "service.pem", keys.to_pem())
        return keys

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
        held, self._held = self._held, ()
        for descriptor in held:
            os.close(descriptor)


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
