"""What a process gives up once it has opened all that it needs.

Invariants:

* Nothing given up comes back: each step binds this process and all that it starts.
* It holds for every thread.  Landlock and capabilities are a thread's own, and those it starts
  inherit them, so the caller is the only thread there is; any other is named in `missing`.
* What the kernel cannot do is said, never passed over: `Applied.missing`.

In this order, each needed by the next: privileges (capabilities, no_new_privs), files and TCP
(`capstore.service.landlock`), system calls (`capstore.service.seccomp`).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capstore.schema.errors import from_os_error
from capstore.service import landlock, seccomp

__all__ = ["Applied", "enter"]

_TASKS: Final = Path("/proc/self/task")
# How long a thread that has ended may still be seen.
_ENDING_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.01

# linux/prctl.h, linux/capability.h
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES_MAX: Final = 64

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Applied:
    """What was given up, and what this machine could not take, in words."""

    done: Sequence[str]
    missing: Sequence[str]


def enter(readable: Sequence[Path], writable: Sequence[Path]) -> Applied:
    """Gives up everything but what is open, and what is below these paths.

    To be called in the only thread, which blocks.  Raises `StorageError` for a path that cannot be
    opened and for what the kernel has and refuses all the same; then some of it is in force.
    """
    if sys.platform != "linux":
        return Applied([], ["everything: this is not Linux"])
    missing = [f"{count} threads that are there already"] if (count := _other_threads()) else []
    try:
        version = landlock.abi()
        rules = [
            *((path, landlock.READ) for path in readable),
            *((path, landlock.WRITE) for path in writable),
        ]
        done = _drop_privileges()
        if version >= landlock.ABI_MIN:
            landlock.restrict(rules, version)
            done.append(f"files and TCP by Landlock (version {version})")
        missing += (f"{what}: Landlock {_version(version)}" for what in landlock.missing(version))
        machine = seccomp.machine()
        if machine is None:
            missing.append("system calls: no seccomp filter on this machine")
        else:
            seccomp.apply(machine)
            done.append("system calls by seccomp")
    except OSError as error:
        raise from_os_error(error, "entering the sandbox") from error
    return Applied(done, missing)


def _version(version: int) -> str:
    return f"is too old here (version {version})" if version else "is not in this kernel"


def _other_threads() -> int:
    """How many threads there are besides this one, when those that end have had their time."""
    end = time.monotonic() + _ENDING_SECONDS
    while (count := _threads() - 1) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    return count


def _threads() -> int:
    try:
        return sum(1 for _ in _TASKS.iterdir())
    except FileNotFoundError:
        # Nobody can say: taken for one too many.
        return 2


# Privileges ---------------------------------------------------------------------------------------


def _drop_privileges() -> list[str]:
    """Gives up all capabilities, and what an executed program could bring.  Raises OSError."""
    done = []
    if _has_capabilities():
        for capability in range(_CAPABILITIES_MAX):
            # The last one there is, or not one of those who may: then the set below decides.
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                break
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        _check(_libc.capset(header, bytes(24)))
        done.append("capabilities")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    done.append("new privileges")
    return done


def _has_capabilities() -> bool:
    """Whether this thread holds any, or may take any back."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, held))
    return any(held.raw)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
