from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capstore.schema.errors import Denied, InvalidArgument
from capstore.tools.serving import (
    TcpAddress,
    UnixAddress,
    parse_address,
    parse_volumes,
    refuse_own_secrets,
)
from tests.tools.command import COMMAND, TOKEN, capstore, serving, wait_until


def test_it_says_what_it_serves_and_stops_cleanly(tmp_path: Path) -> None:
    with serving("memory:", f"x=dir:{tmp_path}", "--listen", "127.0.0.1:0") as served:
        shapes = [re.sub(r"[\w-]{43}", "#", re.sub(r":\d+/", ":PORT/", x)) for x in served.lines]
        unix = f"capnp://insecure@{served.socket}/#"
        tls = "capnp://sha-256:#@127.0.0.1:PORT/#"
        assert shapes == [f"memory\t{unix}", f"memory\t{tls}", f"x\t{unix}", f"x\t{tls}"]
        assert served.uri_file.read_text().splitlines() == served.lines
        assert stat.S_IMODE(served.uri_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(served.state.stat().st_mode) == 0o700
        assert stat.S_IMODE(served.socket.stat().st_mode) == 0o600
        assert served.stop() == 0
        assert not served.socket.exists()
        assert "Traceback" not in served.log
        assert not TOKEN.search(served.log.encode())


def test_sigint_stops_cleanly_while_a_client_is_connected() -> None:
    with serving("m=memory:") as served:
        capstore("put", "-", served.at("m", "x"), stdin=b"x").ok()
        assert served.stop(signal.SIGINT) == 0
        assert "Traceback" not in served.log


_NEVER_STOPS = """
import asyncio
from capstore.tools.serving import _cancel_at_signal

async def serve():
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        print("stopping", flush=True)
        await asyncio.Event().wait()

async def main():
    serving = asyncio.create_task(serve())
    _cancel_at_signal(serving)
    await asyncio.wait([serving])

asyncio.run(main())
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_stop_that_takes_too_long(second: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _NEVER_STOPS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"stopping\n"
        process.send_signal(second)
        assert process.wait(20) == -second


def test_a_restart_keeps_uris_and_what_was_saved(tmp_path: Path) -> None:
    arguments = ["d=dir:" + str(tmp_path), "--state", str(tmp_path.parent / "kept")]
    with serving(*arguments) as served:
        capstore("put", "-", served.at("d", "x"), stdin=b"kept").ok()
        token = served.uri("d").rpartition("/")[2]
        shared = capstore("share", served.at("d"), "x").ok().strip().rpartition("/")[2]
        assert served.stop() == 0
    with serving(*arguments) as served:
        assert served.uri("d").endswith(token)
        assert capstore("cat", f"capnp://insecure@{served.socket}/{shared}").ok() == "kept"


def test_without_a_specification_it_serves_files_and_objects_here(tmp_path: Path) -> None:
    with serving(cwd=tmp_path) as served:
        for name, line in zip(("files", "objects"), served.lines, strict=True):
            assert line.startswith(f"{name}\tcapnp://insecure@{tmp_path}/capstore-data/socket/")
        capstore("store", "put", served.uri("objects"), "key", stdin=b"object").ok()
        capstore("put", "-", served.uri("files") + "/-/x", stdin=b"here").ok()
        assert capstore("cat", served.uri("files") + "/-/x").ok() == "here"
        assert served.stop() == 0
    for name in ("files.wf1", "objects.st1"):
        assert (tmp_path / "capstore-data" / name).stat().st_mode & 0o777 == 0o600
    with serving("--uri-file", "uris", cwd=tmp_path) as served:
        assert capstore("cat", served.uri("files") + "/-/x").ok() == "here"
        assert capstore("store", "get", served.uri("objects"), "key").ok() == "object"
        # The tree is what is meant where no name is given.
        assert capstore("cat", f"@{tmp_path}/uris/-/x").ok() == "here"
        assert served.stop() == 0


def test_a_second_one_on_the_same_state_is_busy() -> None:
    with serving("memory:") as served:
        second = capstore("serve", "memory:", "--state", served.state, "--listen", "127.0.0.1:0")
        assert "busy: another service holds" in second.failed("busy")
        third = capstore(
            "serve",
            "memory:",
            "--state",
            served.folder / "other",
            "--listen",
            f"unix:{served.socket}",
        )
        assert third.code == 1
        assert third.error.splitlines()[-1].startswith("capstore: busy: ")
        assert capstore("ls", served.at("memory")).ok() == ""


def test_a_reader_that_goes_away_does_not_end_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    uris = tmp_path / "uris"
    process = subprocess.Popen(
        [*COMMAND, "serve", "memory:", "--uri-file", str(uris)],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    os.close(writer)
    try:
        wait_until(uris.exists)
        assert capstore("ls", f"@{uris}").ok() == ""
        process.terminate()
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        assert b"Traceback" not in log
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m capstore.tools.main --version {closed}"
    assert subprocess.run(command, shell=True, cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["nonsense"], 1, "invalidArgument: "),
        (["tape:x"], 1, 'invalidArgument: volume "x" (tape:x): no backer'),
        (["memory:,colour=red"], 1, "invalidArgument: "),
        (["a=dir:missing"], 1, 'notFound: volume "a" (dir:missing): '),
        (["a=memory:", "a=memory:"], 2, 'Invalid value: two volumes are called "a"'),
        (["a b=memory:"], 2, 'Invalid value: "a b" cannot name a volume'),
        (["memory:", "--listen", "nowhere"], 2, 'Invalid value: "nowhere" is no address'),
        (["memory:", "--log-level", "loud"], 2, "Invalid value for '--log-level'"),
        (["dir:."], 1, 'denied: the volume "dir:." would hold the secrets'),
    ],
)
def test_what_cannot_be_served(arguments: list[str], code: int, error: str, tmp_path: Path) -> None:
    ran = capstore("serve", *arguments, cwd=tmp_path)
    assert ran.code == code
    assert ran.raw == b""
    assert ran.error.splitlines()[-1].startswith(f"capstore: {error}")


def test_volumes_have_the_name_that_was_given_or_the_obvious_one() -> None:
    assert parse_volumes(["dir:/srv/work", "memory:,max-bytes=1MiB", "a=dir:/x=y,ro"]) == {
        "work": "dir:/srv/work",
        "memory": "memory:,max-bytes=1MiB",
        "a": "dir:/x=y,ro",
    }


def test_addresses() -> None:
    assert parse_address("unix:a/b") == UnixAddress(Path("a/b"))
    assert parse_address("[::1]:80") == TcpAddress("::1", 80)
    assert parse_address("localhost:0") == TcpAddress("localhost", 0)


def test_a_volume_does_not_hold_the_secrets_of_its_service(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for volume in (tmp_path, tmp_path / "link", tmp_path / "sub" / ".."):
        with pytest.raises(Denied):
            refuse_own_secrets(f"dir:{volume},ro", [tmp_path / "sub" / "state"])
    refuse_own_secrets(f"dir:{tmp_path}/sub", [tmp_path / "state"])
    with pytest.raises(InvalidArgument):
        refuse_own_secrets("nonsense", [])
