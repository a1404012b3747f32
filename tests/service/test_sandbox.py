"""What a process cannot do any more in the sandbox, tried by one that is in it."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from capstore.service import landlock
from capstore.service.seccomp import NUMBERS, Machine, machine, program

# Made of what `linux/seccomp.h` and `linux/audit.h` say, not of the module's own constants.
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86_64 = Machine(0, 0xC000003E, 317, other_numbers=0x40000000)
AARCH64 = Machine(1, 0xC00000B7, 277)
HEADERS = Path("/usr/include")

needs_landlock = pytest.mark.skipif(
    landlock.abi() < landlock.ABI_MIN, reason="this kernel has no Landlock"
)
needs_seccomp = pytest.mark.skipif(machine() is None, reason="this kernel has no seccomp filters")


def verdict(on: Machine, number: int, *arguments: int, architecture: int = 0) -> int:
    """What the filter says of a call: the program, run as the kernel does (seccomp(2))."""
    code = program(on)
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, architecture or on.architecture, 0, *padded)
    held, at = 0, 0
    while True:
        step, then, otherwise, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if step == 0x06:
            return int(value)
        if step == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif step == 0x54:
            held &= value
        else:
            holds = {0x15: held == value, 0x25: held > value, 0x35: held >= value}[step]
            at += then if holds else otherwise


# The filter --------------------------------------------------------------------------------------

PARTLY = {"clone", "ioctl", "prctl", "tgkill", "prlimit64"}


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_the_filter_allows_what_is_listed_and_nothing_else(on: Machine) -> None:
    whole = {NUMBERS[name][on.column] for name in NUMBERS.keys() - PARTLY - {"clone3"}} - {-1}
    for number in set(range(468)) - {NUMBERS[name][on.column] for name in PARTLY}:
        expected = ALLOW if number in whole else ENOSYS if number == 435 else EPERM
        assert verdict(on, number, 0x1234, 0x1234) == expected, number
    # What a later kernel has, a library does without.
    for number in (468, 500, 0x3FFFFFFF):
        assert verdict(on, number) == ENOSYS
    assert verdict(on, 0, architecture=0x40000003) == KILL


def test_the_other_numbers_of_x86_are_not_allowed() -> None:
    for number in (0, 59, 520):
        assert verdict(X86_64, 0x40000000 + number) == EPERM


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_what_is_allowed_in_part(on: Machine) -> None:
    def asked(name: str, *arguments: int) -> bool:
        answer = verdict(on, NUMBERS[name][on.column], *arguments)
        assert answer in (ALLOW, EPERM)
        return answer == ALLOW

    # What glibc starts a thread with, what fork does, and a thread in a new user namespace.
    assert asked("clone", 0x3D0F00)
    assert not asked("clone", 0x1200011)
    assert not asked("clone", 0x3D0F00 | 0x10000000)
    # FIONBIO and TCGETS; TIOCSTI, which types into a terminal, and TIOCLINUX.
    assert asked("ioctl", 3, 0x5421)
    assert asked("ioctl", 3, 0x5401)
    assert not asked("ioctl", 3, 0x5412)
    assert not asked("ioctl", 3, 0x541C)
    # The upper half is not looked at by the kernel either.
    assert not asked("ioctl", 3, 0x5412 | 0x5421 << 32)
    # PR_SET_NAME; PR_SET_DUMPABLE.
    assert asked("prctl", 15)
    assert not asked("prctl", 4)
    assert asked("tgkill", os.getpid(), 1, 6)
    assert not asked("tgkill", os.getppid(), 1, 6)
    assert asked("prlimit64", 0)
    assert not asked("prlimit64", os.getppid())


NEVER = [
    "execve",
    "execveat",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "pidfd_open",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "keyctl",
    "add_key",
    "request_key",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "init_module",
    "finit_module",
    "kexec_load",
    "reboot",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "fork",
    "vfork",
    "kill",
    "setuid",
    "setgid",
    "setresuid",
    "capset",
    "personality",
    "open_by_handle_at",
    "memfd_create",
    "mknodat",
    "mknod",
    "fchownat",
    "seccomp",
]


@functools.cache
def header(column: int) -> dict[str, int]:
    """The numbers as the kernel's own headers have them."""
    if column == 0:
        text = next(HEADERS.glob("*/asm/unistd_64.h")).read_text()
        return {name: int(n) for name, n in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    text = (HEADERS / "asm-generic" / "unistd.h").read_text()
    found = re.findall(r"#define __NR(3264)?_(\w+)\s+(\d+)", text)
    plain = {"fstatat": "newfstatat", "fadvise64": "fadvise64"}
    return {(plain.get(name, name) if wide else name): int(n) for wide, name, n in found}


@pytest.mark.skipif(
    not (HEADERS / "asm-generic" / "unistd.h").exists()
    or not list(HEADERS.glob("*/asm/unistd_64.h")),
    reason="no headers of the kernel for x86_64",
)
@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_numbers_are_those_of_the_kernel(on: Machine) -> None:
    known = header(on.column)
    checked = 0
    for name, numbers in NUMBERS.items():
        number = numbers[on.column]
        if name in known:
            assert number == known[name], name
            checked += 1
        elif number != -1:
            # Newer than the headers: the numbers from here on are the same everywhere.
            assert number == numbers[0] >= 424, name
    assert checked > 100
    for name in NEVER:
        if name in known:
            assert name not in NUMBERS
            assert verdict(on, known[name]) == EPERM, name


# A process in it ---------------------------------------------------------------------------------

_TRY = """
import ctypes, json, os, signal, socket, subprocess, sys, threading
from pathlib import Path
from capstore.service import landlock, sandbox, seccomp

home = Path(sys.argv[1])
ready = socket.socket(socket.AF_UNIX)
ready.bind(str(home / "beside" / "socket"))
ready.listen()
tcp = socket.socket()
tcp.bind(("127.0.0.1", 0))
tcp.listen()
unix = socket.socket(socket.AF_UNIX)
unconnected = socket.socket()
unbound = socket.socket()
held = (home / "beside" / "held").open("r+b", buffering=0)
beside = os.open(home / "beside", os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    on_x86_64, on_aarch64 = {
        "ptrace": (101, 117), "unshare": (272, 97), "io_uring_setup": (425, 425),
        "bpf": (321, 280), "keyctl": (250, 219),
    }[name]
    number = on_x86_64 if os.uname().machine == "x86_64" else on_aarch64
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def moved():
    (home / "rw" / "sub").mkdir()
    (home / "rw" / "new").rename(home / "rw" / "sub" / "new")

TRIES = {
    "write in it": lambda: (home / "rw" / "new").write_bytes(b"new"),
    "move in it": moved,
    "read what is read-only": lambda: (home / "ro" / "file").read_bytes(),
    "list what is read-only": lambda: os.listdir(home / "ro"),
    "write what is open": lambda: held.write(b"grown" * 1000),
    "cut off what is open": lambda: held.truncate(3),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "write what is read-only": lambda: (home / "ro" / "file").write_bytes(b""),
    "make in what is read-only": lambda: (home / "ro" / "new").mkdir(),
    "write beside": lambda: (home / "beside" / "new").write_bytes(b""),
    "read beside": lambda: (home / "beside" / "file").read_bytes(),
    "read beside by what is open": lambda: os.open("file", os.O_RDONLY, dir_fd=beside),
    "remove beside": lambda: (home / "beside" / "file").unlink(),
    "cut off beside": lambda: os.truncate(home / "beside" / "file", 0),
    "move out": lambda: (home / "rw" / "old").rename(home / "beside" / "old"),
    "move in": lambda: (home / "beside" / "file").rename(home / "rw" / "file"),
    "link in": lambda: os.link(home / "beside" / "file", home / "rw" / "file"),
    "follow a link out": lambda: (home / "rw" / "link").read_bytes(),
    "read the passwords": lambda: Path("/etc/passwd").read_bytes(),
    "read its own environment": lambda: Path("/proc/self/environ").read_bytes(),
    "make a device": lambda: os.mknod(home / "rw" / "null", 0o020666, os.makedev(1, 3)),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "run": lambda: subprocess.run(["/bin/true"]),
    "fork": os.fork,
    "make a socket": socket.socket,
    "make a pair of sockets": socket.socketpair,
    "connect by TCP": lambda: unconnected.connect(tcp.getsockname()),
    "connect to a socket": lambda: unix.connect(str(home / "beside" / "socket")),
    "bind": lambda: unbound.bind(("127.0.0.1", 0)),
    "kill": lambda: os.kill(os.getppid(), 0),
    "kill itself by number": lambda: os.kill(os.getpid(), 0),
    "be another user": lambda: os.setuid(12345),
    "change the root": lambda: os.chroot(home),
    "work elsewhere": lambda: os.chdir("/"),
    "trace": lambda: call("ptrace", 16, os.getppid(), 0, 0),
    "unshare": lambda: call("unshare", 0x10000000),
    "ask for a ring": lambda: call("io_uring_setup", 8, 0),
    "load a program": lambda: call("bpf", 0, 0, 0),
    "use a key ring": lambda: call("keyctl", 0, 0, 0, 0),
    "make memory to execute": lambda: os.memfd_create("x"),
}

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.errno
    return 0

def all_of(found):
    found.update({name: outcome(attempt) for name, attempt in TRIES.items()})

found = {}
exec(sys.argv[2])
applied = sandbox.enter([home / "ro"], [home / "rw"])
if sys.argv[3] == "thread":
    # A thread that is begun in the sandbox is in it.
    thread = threading.Thread(target=all_of, args=[found])
    thread.start()
    thread.join()
else:
    all_of(found)
print(json.dumps({"found": found, "done": applied.done, "missing": applied.missing}))
"""
ALLOWED = {
    "write in it",
    "move in it",
    "read what is read-only",
    "list what is read-only",
    "write what is open",
    "cut off what is open",
    "start a thread",
}


def tried(home: Path, before: str = "", where: str = "main") -> dict[str, object]:
    """What came of all that was tried in the sandbox, after `before`."""
    for name in ("rw", "ro", "beside"):
        (home / name).mkdir()
        (home / name / "file").write_bytes(b"file")
    (home / "rw" / "file").rename(home / "rw" / "old")
    (home / "rw" / "link").symlink_to("../beside/file")
    (home / "beside" / "held").write_bytes(b"")
    ran = subprocess.run(
        [sys.executable, "-c", _TRY, str(home), before, where],
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr.decode()
    result: dict[str, object] = json.loads(ran.stdout)
    return result


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_it_can_do_and_what_it_cannot(where: str, tmp_path: Path) -> None:
    result = tried(tmp_path, where=where)
    assert result["missing"] == landlock.missing(landlock.abi())
    found = result["found"]
    assert isinstance(found, dict)
    assert {name for name, code in found.items() if code == 0} == ALLOWED
    refused = {errno.EPERM, errno.EACCES, errno.EXDEV}
    assert {name: code for name, code in found.items() if code not in refused | {0}} == {}
    assert (tmp_path / "rw" / "sub" / "new").read_bytes() == b"new"
    assert (tmp_path / "beside" / "file").read_bytes() == b"file"
    assert (tmp_path / "beside" / "held").read_bytes() == b"gro"
    assert sorted(each.name for each in (tmp_path / "beside").iterdir()) == [
        "file",
        "held",
        "socket",
    ]


@needs_seccomp
def test_a_kernel_without_landlock_is_said_to_lack_it(tmp_path: Path) -> None:
    result = tried(tmp_path, "landlock.abi = lambda: 0")
    assert result["missing"] == ["files: Landlock is not in this kernel"]
    found = result["found"]
    assert isinstance(found, dict)
    assert found["read beside"] == 0
    assert found["execute"] == found["make a socket"] == errno.EPERM


@needs_landlock
def test_a_kernel_without_filters_is_said_to_lack_them(tmp_path: Path) -> None:
    # Only what does no harm where nothing keeps it from being done.
    harmless = ("read beside", "write beside", "be another user", "change the root")
    result = tried(
        tmp_path,
        f"seccomp.machine = lambda: None; TRIES = {{name: TRIES[name] for name in {harmless}}}",
    )
    assert "system calls: no seccomp filter on this machine" in result["missing"]  # type: ignore[operator]
    found = result["found"]
    assert isinstance(found, dict)
    assert found["read beside"] == errno.EACCES
    # Without privileges, and not with those of a program either.
    assert found["be another user"] == found["change the root"] == errno.EPERM


@needs_landlock
def test_a_thread_that_is_there_already_is_told_of(tmp_path: Path) -> None:
    before = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert "1 threads that are there already" in tried(tmp_path, before)["missing"]  # type: ignore[operator]


@needs_landlock
def test_an_older_landlock_restricts_what_it_knows(tmp_path: Path) -> None:
    result = tried(tmp_path, "landlock.abi = lambda: 2")
    assert result["missing"] == [
        f"{what}: Landlock is too old here (version 2)"
        for what in ("cutting files off", "TCP", "signals and abstract sockets")
    ]
    found = result["found"]
    assert isinstance(found, dict)
    assert {name for name, code in found.items() if code == 0} == ALLOWED | {"cut off beside"}


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (0, ["files"]),
        (1, ["files"]),
        (2, ["cutting files off", "TCP", "signals and abstract sockets"]),
        (3, ["TCP", "signals and abstract sockets"]),
        (4, ["signals and abstract sockets"]),
        (6, []),
        (9, []),
    ],
)
def test_what_a_version_of_landlock_lacks(version: int, words: list[str]) -> None:
    assert landlock.missing(version) == words


@needs_landlock
def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from capstore.service import sandbox
try:
    sandbox.enter([], [Path(sys.argv[1])])
except Exception as error:
    print(type(error).__name__, sys.argv[1] in str(error))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "nothing")],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == b"NotFound False\n"
