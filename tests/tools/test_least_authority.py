"""A service that is ready opens nothing but below what it was given; in the sandbox it cannot."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest

from capstore.backers.spec_text import Spec
from capstore.schema.errors import Unsupported
from capstore.schema.limits import SPAN_BYTES_MAX
from capstore.service import landlock, seccomp
from capstore.tools.confine import reached
from capstore.tools.prove.kill import why_no_strace
from tests.tools.command import TOKEN, capstore, serving, wait_until
from tests.tools.tour import given, tour, volumes_in

TRACED = "%file,%network,%process,write"
_STRING = r"\"(?P<path>(?:[^\"\\]|\\.)*)\""
# A path, and the directory it is relative to; a path alone.
_AT = re.compile(r"(?P<folder>AT_FDCWD|\d+)<(?P<below>[^>]*)>, " + _STRING)
_ALONE = re.compile(_STRING)
# Takes two paths; and takes what a link shall hold first.
_OF_TWO = {"rename", "link"}
_LINKING = {"symlink", "symlinkat"}
_PID = re.compile(r"^\d+\s+")
# A path in what these answer is told, not looked up; sockets that are there go on to talk.
_TELLING = {"getsockname", "getpeername", "accept", "accept4", "write", "getcwd"}
_TALKING = {"recvfrom", "sendto", "recvmsg", "sendmsg", "shutdown", "getsockopt", "setsockopt"}
_NEVER = {
    "execve",
    "execveat",
    "fork",
    "vfork",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
}
# The process's own descriptors by their numbers: what is held is opened again, or told its place.
_OWN = "/proc/self/fd/"


def violations(lines: Sequence[str], given: Sequence[Path]) -> list[str]:
    """The traced calls that look for something outside of `given`."""
    return [line for line in lines if not _is_within(line, [str(path) for path in given])]


def _is_within(line: str, given: Sequence[str]) -> bool:
    text = _PID.sub("", line)
    call = text.partition("(")[0]
    if call in _NEVER:
        return False
    if call in ("clone", "clone3"):
        return "CLONE_THREAD" in text
    if call in _TELLING | _TALKING or not call.isidentifier():
        return True
    if call in _LINKING:
        text = _ALONE.sub("", text, count=1)
    found = [each.groupdict() for each in _AT.finditer(text)]
    alone = [each.groupdict() for each in _ALONE.finditer(text)]
    found = found or alone[: 2 if call in _OF_TWO else 1]
    assert found or "AT_FDCWD" not in text, line
    return all(_is_given(each, given) for each in found)


def _is_given(looked: dict[str, str | None], given: Sequence[str]) -> bool:
    path, folder, below = looked["path"] or "", looked.get("folder"), looked.get("below") or ""
    if path.startswith("/"):
        return path.startswith(_OWN) or _is_below(path, given)
    # Relative to what is held, a single name.
    held = folder is not None and folder != "AT_FDCWD"
    return held and "/" not in path and path != ".." and _is_below(below, given)


def _is_below(path: str, given: Sequence[str]) -> bool:
    path = path.removesuffix(" (deleted)").rstrip("/")
    return any(path == top or path.startswith(f"{top}/") for top in given) and "/.." not in path


@pytest.mark.parametrize(
    ("call", "within"),
    [
        ('openat(7</given>, "name", O_RDONLY) = 8</given/name>', True),
        ('openat2(7</given/sub>, "name", {flags=O_PATH}, 24) = 8', True),
        ('openat(AT_FDCWD</>, "/proc/self/fd/7", O_RDONLY) = 8', True),
        ('openat(AT_FDCWD</>, "/given/name", O_RDONLY) = 8', True),
        ('statx(7</given>, "", AT_EMPTY_PATH, STATX_ALL, {}) = 0', True),
        ('renameat(7</given>, "a", 8</given/b>, "c") = 0', True),
        ("clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 12", True),
        ("accept4(5<socket:[1]>, {sa_family=AF_UNIX}, [16], SOCK_CLOEXEC) = 9", True),
        ('getsockname(5<socket:[1]>, {sun_path="/elsewhere"}, [16]) = 0', True),
        ("<... openat resumed>) = 3", True),
        ('openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY) = 8', False),
        ('openat(AT_FDCWD</given>, "name", O_RDONLY) = 8', False),
        ('openat(AT_FDCWD</>, "/given/../etc/passwd", O_RDONLY) = 8', False),
        ('openat(AT_FDCWD</>, "/given-not", O_RDONLY <unfinished ...>', False),
        ('openat(7</elsewhere>, "name", O_RDONLY) = 8', False),
        ('openat(7</given>, "..", O_RDONLY) = 8', False),
        ('openat(7</given>, "sub/name", O_RDONLY) = 8', False),
        ('renameat(7</given>, "a", AT_FDCWD</>, "/etc/c") = 0', False),
        ('rename("/given/a", "/given/b") = 0', True),
        ('symlinkat("/etc/passwd", 7</given>, "name") = 0', True),
        ('rename("/given/a", "/etc/a") = 0', False),
        ('symlink("x", "/etc/a") = 0', False),
        ('unlink("socket") = 0', False),
        ('readlink("/etc/localtime", 0x7f, 4096) = 3', False),
        ('execve("/given/program", ["program"], 0x7f) = 0', False),
        ("clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 12", False),
        ("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 8", False),
        ('connect(8<socket:[1]>, {sa_family=AF_UNIX, sun_path="/x"}, 5) = 0', False),
    ],
)
def test_what_counts_as_looking_elsewhere(call: str, within: bool) -> None:
    assert (violations([f"123 {call}"], [Path("/given")]) == []) is within


# The trace ---------------------------------------------------------------------------------------


def _arguments(home: Path) -> list[str]:
    (home / "audit").mkdir()
    listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    audit = ["--audit", f"{home}/audit/calls", "--audit-max-bytes", "16KiB"]
    return [*volumes_in(home), *listen, *audit]


def _read_metrics(state: Path) -> None:
    with urlopen((state / "metrics").read_text().strip(), timeout=20) as answer:
        assert b"# TYPE" in answer.read()


@pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))
def test_nothing_is_opened_elsewhere_once_it_is_ready(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    home = tmp_path / "home"
    home.mkdir()
    # -D: the service stays the child of whoever waits for it.
    prefix = ["strace", "-D", "-f", "-y", "-s", "4096", "-o", str(trace), "-e", TRACED]
    with serving(*_arguments(home), prefix=prefix) as served:
        asyncio.run(tour(served.lines))
        _read_metrics(served.state)
        assert served.stop() == 0
        wait_until(
            lambda: re.search(rf"^{served.process.pid} +\+\+\+ exited", trace.read_text(), re.M)
        )
        assert "Traceback" not in served.log
        lines = trace.read_text().splitlines()
        ready = next(n for n, line in enumerate(lines) if re.search(r"write\(1<.*capnp:", line))
        after = lines[ready + 1 :]
        found = violations(after, [*given(home), served.state, served.folder, home / "audit"])
        assert found == []
        # The tour was one, and the beginning was not as the rest.
        assert sum("openat" in line for line in after) > 100
        assert violations(lines[:ready], given(home))


# The sandbox -------------------------------------------------------------------------------------

# Imported by the service when it starts: SIGUSR1 has it try what it must not be able to.
_HOOK = """
import json, os, signal, socket, sys
from pathlib import Path

told = os.open(os.environ["TOLD"], os.O_WRONLY | os.O_APPEND)
beside = Path(os.environ["BESIDE"])

def outcomes():
    found = {}
    for name, attempt in {
        "read": lambda: Path("/etc/passwd").read_bytes(),
        "look": lambda: list(beside.parent.iterdir()),
        "write": lambda: (beside / "new").write_bytes(b""),
        "remove": lambda: (beside / "file").unlink(),
        "execute": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "connect": socket.socket,
        "kill": lambda: os.kill(os.getppid(), 0),
        "be root": lambda: os.chown(beside / "file", 0, 0),
    }.items():
        try:
            attempt()
        except OSError as error:
            found[name] = error.errno
        else:
            found[name] = 0
    return found

def tried(*_):
    from capstore.backers import workers
    found = [outcomes(), workers._pool.submit(outcomes).result()]
    os.write(told, json.dumps(found).encode())

signal.signal(signal.SIGUSR1, tried)
"""
_complete = landlock.missing(landlock.abi()) == [] and seccomp.machine() is not None
needs_all = pytest.mark.skipif(not _complete, reason="this kernel lacks some of the sandbox")


@needs_all
def test_a_service_in_the_sandbox_does_all_it_does_and_nothing_else(tmp_path: Path) -> None:
    home, hook, beside, told = (tmp_path / name for name in ("home", "hook", "beside", "told"))
    for folder in (home, hook, beside):
        folder.mkdir()
    (hook / "sitecustomize.py").write_text(_HOOK)
    (beside / "file").write_bytes(b"")
    told.touch()
    environment = {"PYTHONPATH": str(hook), "TOLD": str(told), "BESIDE": str(beside)}
    arguments = [*_arguments(home), "--require-sandbox"]
    with serving(*arguments, **environment) as served:
        asyncio.run(tour(served.lines))
        _read_metrics(served.state)
        assert _of_each_thread(served.process.pid) == {("0000000000000000", "1", "2")}
        served.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: told.read_bytes())
        for found in json.loads(told.read_bytes()):
            assert set(found.values()) <= {1, 13}, found
        assert [each.name for each in beside.iterdir()] == ["file"]
        # It went on, and its files were rotated.
        assert len(list((home / "audit").iterdir())) > 1
        kept = capstore("share", served.at("wf1")).ok().strip().rpartition("/")[2]
        assert served.stop() == 0
        assert "Traceback" not in served.log
        assert not TOKEN.search(served.log.encode())
        assert served.log.count("in the sandbox: ") == (4 if _privileged() else 3)
        # What it wrote is there for the next one, which finds its index of the archive, and makes
        # a place for what it unpacks of it before it is in the sandbox.
        with serving(*arguments, "--state", served.state) as again:
            assert capstore("ls", f"capnp://insecure@{again.socket}/{kept}").ok() == "old\n"
            assert capstore("cat", again.at("xz", "zeros")).ok() == "\0" * (SPAN_BYTES_MAX + 1)
            assert again.stop() == 0


def _privileged() -> bool:
    return "CapEff:\t0000000000000000" not in Path("/proc/self/status").read_text()


def _of_each_thread(pid: int) -> set[tuple[str, ...]]:
    """The capabilities, no_new_privs and seccomp's mode of each thread of a process."""
    fields = re.compile(r"(?:CapEff|NoNewPrivs|Seccomp):\s*(\w+)")
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    assert len(tasks) > 1
    return {tuple(fields.findall((task / "status").read_text())) for task in tasks}


def test_what_cannot_be_in_the_sandbox_is_not_served_there(tmp_path: Path) -> None:
    ran = capstore("serve", "t=pyfs:temp://x", "--sandbox", cwd=tmp_path)
    assert "pyfs:temp:// opens and connects as it goes" in ran.error.splitlines()[-1]
    assert ran.code == 1
    assert ran.raw == b""


def test_what_volumes_go_on_reaching(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "archive").touch()
    specs = [
        f"dir:{tmp_path}/a",
        f"dir:{tmp_path}/b,ro",
        f"memory:{tmp_path}/c/file",
        "memory:",
        f"wf1:{tmp_path}/image,create",
        f"tar:{tmp_path}/archive",
        f"oci:{tmp_path}/layer",
        f"oci:{tmp_path}/archive",
        f"pyfs:osfs://{tmp_path}/d",
        f"pyfs:osfs://{tmp_path}/e,ro",
        f"pyfs:zip://{tmp_path}/archive",
        "pyfs:mem://",
    ]
    readable, writable = reached(map(Spec.parse, specs))
    assert readable == [tmp_path / name for name in ("b", "layer", "e")]
    assert writable == [tmp_path / name for name in ("a", "c", "d")]
    for url in ("ftp://host/", "temp://", "userdata://x"):
        with pytest.raises(Unsupported):
            reached([Spec.parse(f"pyfs:{url}")])
