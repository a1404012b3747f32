"""A client in C++, compiled against the schema with Debian's libcapnp, does the whole tour."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import capstore
from capstore.schema import wire
from capstore.service.pyfs import CapstoreFS
from capstore.service.session import Session
from capstore.service.state import StateDirectory
from capstore.service.tls import ServiceKey
from capstore.service.uri import CapabilityURI
from tests.interop.relays import relaying, to
from tests.interop.served import RunningService, running
from tests.service.support import contents

HERE = Path(__file__).parent
SOURCES = [*HERE.glob("*.c++"), *HERE.glob("*.h"), HERE / "build.sh"]
PAGE = (HERE.parents[1] / "docs" / "interop.md").read_text()
BLOCKS = re.findall(r"```(?:cpp|sh)\n(.*?)```", PAGE, re.DOTALL)
PARTS = ("gate", "files", "directories", "errors", "authority", "narrowings", "stores")


def run(tour: Path, uris: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tour, uris, *parts], capture_output=True, text=True, timeout=60)


def steps(tour: Path, uris: Path, *parts: str) -> list[dict[str, Any]]:
    """What the tour prints."""
    ran = run(tour, uris, *parts)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def uri(uris: Path, volume: str = "m") -> CapabilityURI:
    lines = dict(line.split("\t") for line in uris.read_text().splitlines())
    return CapabilityURI.parse(lines[volume])


def write_uri(path: Path, uri: CapabilityURI) -> Path:
    path.touch(mode=0o600)
    path.write_text(f"m\t{uri}\n")
    return path


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_the_tour(tour: Path, service: RunningService, way: str) -> None:
    uris: Path = getattr(service, way)
    expected = [json.loads(line) for line in (HERE / "tour.jsonl").read_text().splitlines()]
    assert steps(tour, uris, *PARTS) == expected

    # And a client in Python finds what the one in C++ made.
    with CapstoreFS(uri(uris)) as tree:
        assert contents(tree) == {
            "/authority": None,
            "/authority/file": b"content",
            "/errors": None,
            "/errors/inner": None,
            "/errors/inner/file": b"",
            "/narrowings": None,
            "/narrowings/a.key": b"",
            "/narrowings/counted": b"1234",
            "/narrowings/log": b"123",
            "/narrowings/new": b"",
            "/narrowings/short": b"123",
            "/narrowings/third": None,
            "/notes": b"hello",
            "/other": None,
            "/other/last": b"",
            "/other/same": b"",
            "/place": None,
            "/place/same": b"content",
            "/shared": None,
            "/shared/made": b"",
            "/desk": None,
            "/desk/one": b"",
            "/desk/pointer": "../anywhere",
            "/desk/ü": b"",
        }
    with capstore.open_store(uri(uris, "o")) as objects:
        large = b"".join(bytes([letter]) * 100_000 for letter in range(ord("a"), ord("u")))
        assert objects[b"large"] == large
        assert [objects[key] for key in objects if key.startswith(b"in/")] == [b"1"]


def test_every_error_code_arrives(
    tour: Path, service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    *codes, bug = steps(tour, service.unix, "codes")
    enumerants = wire.ErrorCode.schema.enumerants
    assert codes == [
        {"step": name, "code": name} for name in sorted(enumerants, key=enumerants.get)
    ]
    assert bug == {
        "step": "a bug",
        "code": "internal",
        "message": "the service has a bug; see its log",
    }
    assert "a bug in" in caplog.text


def test_a_walk_is_one_round_trip(
    tour: Path, service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CapstoreFS(uri(service.unix)) as tree:
        tree.makedirs("a/b")
        tree.writebytes("a/b/c", b"content")

    # Nothing is answered, not even which capability a connection begins with, before the last of
    # restore, sub, sub, open and read has reached the service.
    begun: list[str] = []
    all_begun = threading.Event()

    def count(session: Session) -> None:
        begin(session)
        begun.append("call")
        if len(begun) == 5:
            all_begun.set()

    begin = Session.call_begins
    monkeypatch.setattr(Session, "call_begins", count)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "relay"))
    direct = uri(service.unix)
    relayed = write_uri(tmp_path / "relayed", replace(direct, socket=str(tmp_path / "relay")))
    assert direct.socket is not None
    with relaying(listener, [to(direct.socket, all_begun)]):
        walked = steps(tour, relayed, "walk")
    assert walked == [{"step": "walk", "data": "content", "eof": True}]
    assert len(begun) == 5


def test_a_walk_that_fails_says_why(tour: Path, service: RunningService) -> None:
    ran = run(tour, service.unix, "walk")
    assert ran.returncode == 1
    assert "notFound" in ran.stderr
    assert uri(service.unix).token not in ran.stderr


def test_what_is_dropped_is_released(tour: Path, service: RunningService) -> None:
    def held() -> tuple[int, int]:
        """Capabilities that are handed out, and descriptors of files of the volume."""
        inside = str(service.folder / "d") + "/"
        descriptors = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        paths = [os.readlink(path) for path in descriptors if os.path.islink(path)]
        capabilities = sum(session.capabilities for session in service.service.sessions)
        return capabilities, sum(path.startswith(inside) for path in paths)

    with subprocess.Popen(
        [tour, service.unix, "handles"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append((json.loads(line)["step"], service.do(held)))
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert seen == [
        ("holding one directory", (1, 0)),
        ("holding 32 files more", (33, 32)),
        ("holding one directory again", (1, 0)),
    ]


def test_another_key_is_refused(tour: Path, service: RunningService, tmp_path: Path) -> None:
    right = uri(service.tls)
    other = ServiceKey.from_pem(ServiceKey.generate_pem()).fingerprint
    ran = run(tour, write_uri(tmp_path / "wrong", replace(right, fingerprint=other)), "gate")
    assert ran.returncode == 1
    assert "the service has another key than the URI says" in ran.stderr
    assert right.token not in ran.stderr
    assert ran.stdout == ""


def test_a_uri_that_pins_an_old_key_is_good_until_its_time(tour: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    state = StateDirectory.open(folder / "state")
    old = state.service_keys().current.fingerprint
    keys = state.rotate_service_key(time.time_ns() + 3600 * 10**9)
    state.close()
    with running(folder) as service:
        new = uri(service.tls)
        assert new.fingerprint == keys.current.fingerprint != old
        for fingerprint in (old, new.fingerprint):
            uris = write_uri(tmp_path / "pinned", replace(new, fingerprint=fingerprint))
            assert steps(tour, uris, "files")


def test_who_takes_the_connection_behind_the_look_at_the_key_is_refused(
    tour: Path, service: RunningService, tmp_path: Path
) -> None:
    right = uri(service.tls)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    received: list[bytes] = []

    def impostor(client: socket.socket) -> None:
        context = ServiceKey.from_pem(ServiceKey.generate_pem()).server_context()
        with suppress(OSError), context.wrap_socket(client, server_side=True) as connection:
            received.append(connection.recv(1))

    relayed = replace(right, port=listener.getsockname()[1])
    with relaying(listener, [to(("127.0.0.1", right.port)), impostor]):
        ran = run(tour, write_uri(tmp_path / "relayed", relayed), "gate")
    assert ran.returncode == 1
    assert "certificate is not trusted" in ran.stderr
    assert ran.stdout == ""
    assert not any(received)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_on_the_page_is_that_of_the_tour(block: str) -> None:
    assert any(block.rstrip("\n") in source.read_text() for source in SOURCES)
