"""The state directory of a service: its lock, its secrets, its saved references.

Invariants:

* One service at a time holds a state directory; a second one gets `Busy`.
* The directory is made with mode 0700 and each secret in it with 0600; a secret that others may
  read is not used.
* A secret is made once, complete or not at all.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from capstore.images.durable import replace_file, sync_directory
from capstore.schema.errors import Busy, Corrupt, Denied, StorageError, from_os_error
from capstore.service.references import ReferenceTable
from capstore.service.tls import ServiceKey

_OWNER_KEY_BYTES = 32


class StateDirectory:
    """An open, locked state directory.

    `owner_key` is the secret that owner tokens and the seal of the references come from;
    `references` is the table of saved references.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock
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
            if not path.is_dir():
                path.mkdir(mode=0o700)
                sync_directory(path.parent)
            lock = _locked(path / "lock")
        except OSError as error:
            raise from_os_error(error, "the state directory") from error
        try:
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
            if path.stat().st_mode & 0o077:
                raise Denied(f"{name} in the state directory can be read by others: chmod 600 it")
            return path.read_bytes()
        except FileNotFoundError:
            secret = make()
            replace_file(path, secret)
            return secret

    def close(self) -> None:
        """Lets the next service have it; closing again does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


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
