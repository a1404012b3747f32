"""A seccomp filter (seccomp(2)): the system calls that a service needs, and no others.

Invariants:

* What is not in the list is EPERM, so that a new kernel's calls are not allowed by being new; those
  behind the last number that is known here are ENOSYS, for which libraries have another way.
* A program is never executed and no process started: execve is not in the list, and clone makes
  threads only.  clone3, whose arguments a filter cannot see, is ENOSYS: libc then uses clone.
* No socket is made, connected or bound; those that listen go on to accept.
* Calls by another architecture's numbers end the process.

The filter is made here, as classic BPF: libseccomp's bindings need a library that the system has to
have, for what is a list of numbers and a loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from capstore.backers import hostspell

__all__ = ["NUMBERS", "Machine", "apply", "machine", "program"]

# linux/seccomp.h, linux/bpf_common.h
_SET_MODE_FILTER: Final = 1
_GET_ACTION_AVAIL: Final = 2
_FLAG_TSYNC: Final = 1
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ALLOW: Final = 0x7FFF0000
_LOAD: Final = 0x20
_AND: Final = 0x54
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("=HBBI")
# struct seccomp_data: the number, the architecture, and where the arguments are.
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16

# The numbers of calls on x86_64 and on aarch64; -1 for what the architecture does not have.
NUMBERS: Final[dict[str, tuple[int, int]]] = {
    # Files that are open.
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fadvise64": (221, 223),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "syncfs": (306, 267),
    "sync_file_range": (277, 84),
    "flock": (73, 32),
    "fcntl": (72, 25),
    "dup": (32, 23),
    "dup2": (33, -1),
    "dup3": (292, 24),
    "close_range": (436, 436),
    "fchmod": (91, 52),
    "getdents64": (217, 61),
    # Names; which ones is for Landlock.
    "open": (2, -1),
    "openat": (257, 56),
    "openat2": (437, 437),
    "stat": (4, -1),
    "lstat": (6, -1),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "access": (21, -1),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, -1),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "rmdir": (84, -1),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "link": (86, -1),
    "linkat": (265, 37),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
    "truncate": (76, 45),
    "chmod": (90, -1),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utimensat": (280, 88),
    "umask": (95, 166),
    # Connections that are there, and those that come.
    "accept": (43, 202),
    "accept4": (288, 242),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "setsockopt": (54, 208),
    # Waiting.
    "poll": (7, -1),
    "ppoll": (271, 73),
    "select": (23, -1),
    "pselect6": (270, 72),
    "epoll_wait": (232, -1),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "epoll_ctl": (233, 21),
    "epoll_create1": (291, 20),
    "eventfd2": (290, 19),
    "pipe2": (293, 59),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "restart_syscall": (219, 128),
    # Threads, memory, signals to oneself.
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "futex_wake": (454, 454),
    "futex_wait": (455, 455),
    "futex_requeue": (456, 456),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "msync": (26, 227),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # What the process is, and what time it is.
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "times": (100, 153),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "time": (201, -1),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    # In part only, see `_PARTLY`.
    "clone": (56, 220),
    "ioctl": (16, 29),
    "prctl": (157, 167),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    # ENOSYS, see above.
    "clone3": (435, 435),
}
_LAST_KNOWN: Final = 467
_NOT_THERE: Final = frozenset({"clone3"})

_CLONE_THREAD: Final = 0x10000
_CLONE_NAMESPACES: Final = 0x7E020000
_ALL: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Partly:
    """Allowed if the low half of an argument, with `mask`, is one of `values`."""

    argument: int
    values: Sequence[int]
    mask: int = _ALL


def _partly() -> dict[str, _Partly]:
    return {
        "clone": _Partly(0, [_CLONE_THREAD], _CLONE_THREAD | _CLONE_NAMESPACES),
        # TCGETS and TIOCGWINSZ look at a terminal; FIONREAD, FIONBIO, FIONCLEX and FIOCLEX; and
        # whether case counts in a directory.
        "ioctl": _Partly(1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, *hostspell.IOCTLS]),
        # PR_SET_NAME, PR_GET_NAME and PR_SET_VMA: names of threads and of memory.
        "prctl": _Partly(0, [15, 16, 0x53564D41]),
        # Signals to this process: abort() and raise().
        "tgkill": _Partly(0, [os.getpid()]),
        "prlimit64": _Partly(0, [0, os.getpid()]),
    }


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture: the column in `NUMBERS`, what the kernel calls it, the number of seccomp."""

    column: int
    architecture: int
    seccomp: int
    # Where numbers of a second set begin, that mean other things.
    other_numbers: int | None = None


_MACHINES: Final = {
    "x86_64": Machine(0, 0xC000003E, 317, other_numbers=0x40000000),
    "aarch64": Machine(1, 0xC00000B7, 277),
}


def machine() -> Machine | None:
    """This one; None if there is no filter for it, or the kernel knows none."""
    found = _MACHINES.get(platform.machine())
    if found is None or struct.calcsize("P") != 8:
        return None
    action = ctypes.c_uint32(_ERRNO)
    if _libc.syscall(ctypes.c_long(found.seccomp), _GET_ACTION_AVAIL, 0, ctypes.byref(action)):
        return None
    return found


def program(on: Machine) -> bytes:
    """The filter as the kernel takes it."""
    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_JUMP_EQUAL, on.architecture, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
    ]
    if on.other_numbers is not None:
        code += _answer_if(_JUMP_AT_LEAST, on.other_numbers, _ERRNO | errno.EPERM)
    partly = _partly()
    for name in _NOT_THERE:
        code += _answer_if(_JUMP_EQUAL, NUMBERS[name][on.column], _ERRNO | errno.ENOSYS)
    for name, part in partly.items():
        code += _answer_in_part(NUMBERS[name][on.column], part)
    whole = {numbers[on.column] for name, numbers in NUMBERS.items()} - {-1}
    whole -= {NUMBERS[name][on.column] for name in (*partly, *_NOT_THERE)}
    for first, last in _runs(sorted(whole)):
        code += [
            _step(_JUMP_GREATER, last, 2, 0),
            _step(_JUMP_AT_LEAST, first, 0, 1),
            _step(_RETURN, _ALLOW),
        ]
    code += _answer_if(_JUMP_GREATER, _LAST_KNOWN, _ERRNO | errno.ENOSYS)
    code.append(_step(_RETURN, _ERRNO | errno.EPERM))
    return b"".join(code)


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, then, otherwise, value)


def _answer_if(jump: int, value: int, answer: int) -> list[bytes]:
    return [_step(jump, value, 0, 1), _step(_RETURN, answer)]


def _answer_in_part(number: int, part: _Partly) -> list[bytes]:
    """The answer to this call; behind it, the number is loaded as before."""
    look = [_step(_LOAD, _ARGUMENTS_AT + 8 * part.argument), _step(_AND, part.mask)]
    for value in part.values:
        look += _answer_if(_JUMP_EQUAL, value & part.mask, _ALLOW)
    look.append(_step(_RETURN, _ERRNO | errno.EPERM))
    return [_step(_JUMP_EQUAL, number, 0, len(look)), *look]


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of numbers that follow each other."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


# Applying ----------------------------------------------------------------------------------------

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def apply(on: Machine) -> None:
    """Filters the calls of all threads of this process, for ever.

    no_new_privs must be set.  Raises OSError.
    """
    code = program(on)
    handed = _Program(len(code) // _INSTRUCTION.size, code)
    result = _libc.syscall(
        ctypes.c_long(on.seccomp), _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(handed)
    )
    if result:
        # A positive one is a thread that has another filter.
        code_of_error = ctypes.get_errno() if result < 0 else errno.ESRCH
        raise OSError(code_of_error, os.strerror(code_of_error))
