"""Landlock (landlock(7)): the kernel keeps a thread from all files but those that were named.

Invariants:

* What the kernel's version knows is restricted, all of it, but for what a rule allows; what it does
  not know yet stays as it was, and `missing` names it.
* It is for the calling thread and those that it starts from then on, and for ever.  What is open
  stays open.

By system calls of our own: three of them, whose numbers and structures are the same everywhere.
The packages there are on PyPI are unfinished, or bring a library that has to be installed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYS_CREATE_RULESET: Final = 444
_SYS_ADD_RULE: Final = 445
_SYS_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

# linux/landlock.h
_ATTRIBUTES: Final = struct.Struct("=3Q")
_PATH_BENEATH: Final = struct.Struct("=Qi")
_NET_BIND_AND_CONNECT_TCP: Final = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 3
_NET_ABI: Final = 4
_SCOPE_ABI: Final = 6


class Access(IntFlag):
    """What may be done with files, as linux/landlock.h has it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


# The versions of the interface that brought what the first one did not know.
_KNOWN_SINCE: Final = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
# Without it, nothing can be moved from one directory to another at all.
ABI_MIN: Final = 2

READ: Final = Access.READ_FILE | Access.READ_DIR
WRITE: Final = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SYM
    | Access.REFER
)
_OF_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)

_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def abi() -> int:
    """The version of the interface that the kernel has; 0 where it has none, or it is off."""
    try:
        return _call(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def missing(version: int) -> list[str]:
    """What this version of the interface does not restrict, in words."""
    if version < ABI_MIN:
        return ["files"]
    found = [] if version >= _KNOWN_SINCE[Access.TRUNCATE] else ["cutting files off"]
    if version < _NET_ABI:
        found.append("TCP")
    if version < _SCOPE_ABI:
        found.append("signals and abstract sockets")
    return found


def restrict(rules: Iterable[tuple[Path, Access]], version: int) -> None:
    """Restricts this thread to what `rules` allow, below the paths in them.

    `version` is what `abi` says, `ABI_MIN` at least; no_new_privs must be set.  Raises OSError,
    for a path that is not there, too.
    """
    known = Access(sum(each for each in Access if _KNOWN_SINCE.get(each, 1) <= version))
    with _ruleset(known, version) as ruleset:
        for path, access in rules:
            _allow(ruleset, path, access & known)
        _call(_SYS_RESTRICT_SELF, ruleset, 0)


@contextmanager
def _ruleset(known: Access, version: int) -> Iterator[int]:
    """A ruleset that allows nothing yet."""
    net = _NET_BIND_AND_CONNECT_TCP if version >= _NET_ABI else 0
    scope = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPE_ABI else 0
    attributes = _ATTRIBUTES.pack(known, net, scope)
    # Older kernels know the front of the structure, and refuse more than they know.
    size = 24 if scope else 16 if net else 8
    ruleset = _call(_SYS_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        yield ruleset
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: Access) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        rule = _PATH_BENEATH.pack(access, descriptor)
        _call(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
