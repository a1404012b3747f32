"""``capstore store``, run as processes against a service of a store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import capstore as library
from capstore.backers.store import ANY, Condition, ObjectRange, Put
from capstore.schema.limits import KEY_BYTES_MAX, OBJECT_BYTES_MAX, TRANSFER_BYTES_MAX, WINDOW_BYTES
from tests.contract.store_model import ModelStore
from tests.service.store_service import RunningStore, WatchedStore, running_store, watched
from tests.tools.command import COMMAND, WARNINGS, Ran, capstore, wait_until

LARGE = bytes(range(256)) * 12_345
Running = RunningStore[WatchedStore]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_store(tmp_path_factory.mktemp("s"), watched) as running:
        yield running


@pytest.fixture
def running(service: Running) -> Running:
    service.empty()
    service.store.before_read = None
    service.store.state.names.clear()
    return service


def store(verb: str, running: Running, *arguments: str | Path, **more: Any) -> Ran:
    return capstore("store", verb, running.at(), *arguments, **more)


@pytest.mark.parametrize("size", [0, 10, TRANSFER_BYTES_MAX, len(LARGE)])
def test_put_and_get(running: Running, tmp_path: Path, size: int) -> None:
    data = LARGE[:size]
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(data)
    assert store("put", running, "a/b", source).ok() == ""
    assert store("put", running, "from stdin", stdin=data).ok() == ""
    assert running.objects() == {b"a/b": data, b"from stdin": data}
    assert store("get", running, "from stdin", copy).ok() == ""
    assert copy.read_bytes() == data
    ran = store("get", running, "a/b")
    assert (ran.code, ran.raw == data, ran.error) == (0, True, "")
    copy.write_bytes(b"replaced")
    assert store("get", running, "a/b", copy).ok() == ""
    assert copy.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_content_addressed(running: Running, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for data in (b"content", LARGE):
        source.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        assert store("put", running, "--content", source).ok() == f"{digest}\n"
        assert store("put", running, "--content", stdin=data).ok() == f"{digest}\n"
        ran = store("get", running, "--hex", digest.upper())
        assert (ran.code, ran.raw == data) == (0, True)
        shown = json.loads(store("put", running, "--content", "--json", source).ok())
        assert (shown["hex"], shown["size"]) == (digest, len(data))
    key = hashlib.sha256(b"content").digest()
    store("put", running, "--hex", key.hex(), stdin=b"other").failed("conflict")
    running.store.damage(key)
    store("get", running, "--hex", key.hex()).failed("corrupt")


def test_a_get_keeps_what_is_there_if_it_fails(running: Running, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"before")
    assert '"nothing"' in store("get", running, "nothing", copy).failed("notFound")
    assert copy.read_bytes() == b"before"
    running.put(b"k", LARGE)
    store("get", running, "k", tmp_path).failed("isDirectory")
    store("get", running, "k", f"{tmp_path}/none/x").failed("notFound")
    store("get", running, "k", f"{copy}/").failed("notDirectory")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_get_is_of_one_version(running: Running, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", LARGE[::-1]
    seen = 0

    def replace(times: int) -> Callable[[bytes], None]:
        def before_read(key: bytes) -> None:
            nonlocal seen
            seen += 1
            # Behind the first range of an attempt.
            if seen % 5 == 4 and seen < 5 * times:
                running.store.state.put(other, key, ANY)

        return before_read

    running.put(b"k", LARGE)
    running.store.before_read = replace(2)
    store("get", running, "k", copy).ok()
    assert copy.read_bytes() == other
    seen = 0
    running.put(b"k", LARGE)
    running.store.before_read = replace(2)
    ran = store("get", running, "k")
    assert ran.code == 1
    assert ran.error.startswith('capstore: conflict: key "k": ')
    assert LARGE.startswith(ran.raw)
    seen = 0
    running.store.before_read = replace(1 << 30)
    copy.write_bytes(b"before")
    store("get", running, "k", copy).failed("conflict")
    assert copy.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def _stuck(running: Running) -> threading.Event:
    """Has reads behind the first one wait until the event is set."""
    go, read = threading.Event(), ModelStore.read

    async def slow(key: bytes, offset: int, length: int) -> ObjectRange:
        while offset >= WINDOW_BYTES and not go.is_set():
            await asyncio.sleep(0.01)
        return await read(running.store, key, offset, length)

    running.store.read = slow  # type: ignore[method-assign]
    return go


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_get_leaves_nothing(running: Running, tmp_path: Path, number: int) -> None:
    running.put(b"k", LARGE)
    go = _stuck(running)
    try:
        with subprocess.Popen(
            [*COMMAND, "store", "get", running.at(), "k", tmp_path / "copy"]
        ) as p:
            wait_until(lambda: any(tmp_path.iterdir()))
            assert not (tmp_path / "copy").exists()
            p.send_signal(number)
            assert p.wait(10) == 128 + number
    finally:
        go.set()
        del running.store.read  # type: ignore[method-assign]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_put_leaves_nothing(running: Running, number: int) -> None:
    with subprocess.Popen(
        [*COMMAND, "store", "put", running.at(), "torso"], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * (3 << 20))
        process.stdin.flush()
        wait_until(lambda: running.store.sinks_open)
        process.send_signal(number)
        process.wait(10)
    wait_until(lambda: not running.store.sinks_open)
    assert running.objects() == {}


def test_conditions(running: Running) -> None:
    first = json.loads(store("put", running, "--if-absent", "--json", "k", stdin=b"1").ok())
    assert set(first) == {"key", "hex", "size", "version"}
    store("put", running, "--if-absent", "k", stdin=b"2").failed("conflict")
    version = str(first["version"])
    store("put", running, "k", "--if-version", version, stdin=b"2").ok()
    store("put", running, "k", "--if-version", version, stdin=b"3").failed("conflict")
    store("rm", running, "k", "--if-version", version).failed("conflict")
    assert running.objects() == {b"k": b"2"}
    ran = store("put", running, "k", "--if-version", "1", "--if-absent")
    assert (ran.code, "exclude each other" in ran.error) == (2, True)


def test_has_and_rm(running: Running) -> None:
    for key in (b"a", b"b", b"\xff\x00"):
        running.put(key, b"x")
    assert store("has", running, "a").ok() == ""
    assert store("has", running, "--hex", "ff00").ok() == ""
    assert '"c"' in store("has", running, "c").failed("notFound")
    store("rm", running, "--hex", "ff00").ok()
    ran = store("rm", running, "a", "c", "b")
    assert ran.code == 1
    assert ran.error.splitlines() == [
        'capstore: notFound: key "c": no such object',
        "capstore: 1 of 3 entries failed",
    ]
    assert running.objects() == {}
    store("rm", running, "a").failed("notFound")
    assert store("rm", running, "-f", "a").ok() == ""
    assert store("rm", running, "a", "b", "--if-version", "1").code == 2


def test_ls(running: Running) -> None:
    assert store("ls", running).ok() == ""
    assert json.loads(store("ls", running, "--json").ok()) == []
    keys = [b"a/1", b"a/2", b"b\x1b[31m", b"\xc3\xbc", b"\xff\n"]
    for key in reversed(keys):
        running.put(key, b"x" * 2048)
    shown = ["a/1", "a/2", "b\\x1b[31m", "ü", "\\xff\\n"]
    assert store("ls", running).ok().splitlines() == shown
    assert store("ls", running, "a/").ok().splitlines() == shown[:2]
    assert store("ls", running, "--hex", "ff").ok() == "ff0a\n"
    long = store("ls", running, "-l", "--human", "a/1", TZ="UTC").ok().split()
    assert long[:2] == ["2.0", "KiB"]
    assert long[2].isdigit()
    assert long[3].startswith("20")
    assert long[-1] == "a/1"
    rows = json.loads(store("ls", running, "--json").ok())
    assert set(rows[0]) == {"key", "hex", "size", "version", "created", "provenance"}
    assert [row["hex"] for row in rows] == [key.hex() for key in keys]
    assert [row["key"] for row in rows] == ["a/1", "a/2", "b\x1b[31m", "ü", None]
    assert rows[0]["created"].endswith("Z")


def test_a_long_listing(running: Running) -> None:
    async def fill(store: WatchedStore) -> None:
        for number in range(2500):
            store.state.put(b"", b"%05d" % number, ANY)

    running.do(fill)
    lines = store("ls", running).ok().splitlines()
    assert lines == [f"{number:05}" for number in range(2500)]
    rows = json.loads(store("ls", running, "--json", "001").ok())
    assert [row["key"] for row in rows] == lines[100:200]


def test_upkeep(running: Running) -> None:
    store("put", running, "k", stdin=b"12345").ok()
    digest = store("put", running, "--content", stdin=b"garbage").ok().strip()
    shown = json.loads(store("stats", running, "--json").ok())
    assert shown == {
        "objects": 2,
        "usedBytes": 12,
        "freeBytes": 0,
        "totalBytes": None,
        "label": "",
    }
    assert store("stats", running).ok() == "objects: 2\nused:    12 B\nfree:    0 B\n"
    assert store("gc", running).ok() == "removed 0 objects (0 B)\n"
    store("bind", running, "keep", digest).ok()
    assert store("gc", running, "--older-than", "0s").ok() == "removed 0 objects (0 B)\n"
    store("unbind", running, "keep").ok()
    collected = json.loads(store("gc", running, "--json", "--older-than", "0").ok())
    assert collected == {"objects": 1, "bytes": 7}
    assert store("compact", running).ok() == ""
    assert running.objects() == {b"k": b"12345"}
    assert store("gc", running, "--older-than", "tomorrow").code == 2


def test_names(running: Running) -> None:
    digest = store("put", running, "--content", stdin=b"content").ok().strip()
    made = json.loads(store("bind", running, "a/b/c", digest, "--if-absent", "--json").ok())
    assert made["name"] == "c"
    store("bind", running, "a/b/c", digest, "--if-absent").failed("conflict")
    assert '"/a/b/c"' in store("bind", running, "a/b/c", "00" * 32).failed("notFound")
    assert store("resolve", running, "a/b/c").ok() == f"{digest}\n"
    shown = json.loads(store("resolve", running, "a/b/c", "--json").ok())
    assert shown == {"name": "c", "version": made["version"], "hash": digest, "reference": None}
    store("bind", running, "a/b/esc\x1b[31m", digest).ok()
    assert store("names", running, "a/b").ok().splitlines() == [
        f"{digest} c",
        f"{digest} esc\\x1b[31m",
    ]
    assert [row["name"] for row in json.loads(store("names", running, "a/b", "--json").ok())] == [
        *("c", "esc\x1b[31m")
    ]
    assert store("names", running).ok() == ""
    store("unbind", running, "a/b/c", "--if-version", "1").failed("conflict")
    store("unbind", running, "a/b/c", "--if-version", str(made["version"])).ok()
    store("unbind", running, "a/b/c").failed("notFound")
    store("resolve", running, "a/b/c").failed("notFound")
    store("resolve", running, "..").failed("invalidName")
    store("resolve", running, "/").failed("invalidArgument")
    assert store("bind", running, "a").code == 2
    assert store("bind", running, "a", "abc").code == 2
    assert store("bind", running, "a", digest, "--reference", "1").code == 2


def test_names_for_what_was_shared(running: Running) -> None:
    uri = capstore("share", running.at("m"), "--read-only").ok().strip()
    store("bind", running, "inbox", "--shared", uri).ok()
    shown = json.loads(store("resolve", running, "inbox", "--json").ok())
    assert store("resolve", running, "inbox").ok() == f"reference {shown['reference']}\n"
    assert shown["hash"] is None
    store("bind", running, "inbox", "--shared", f"{uri}/-/x").failed("invalidArgument")
    elsewhere = uri.replace("/socket/", "/other/")
    store("bind", running, "inbox", "--shared", elsewhere).failed("invalidArgument")
    store("bind", running, "inbox", "--reference", "12345").failed("denied")


def test_a_drop_box_tells_the_key_it_chose(running: Running) -> None:
    async def main() -> str:
        async with library.connect(running.uri()) as root:
            assert isinstance(root, library.RemoteStore)
            return await (await root.put_only()).save()

    address = library.CapabilityURI.parse(running.uri())
    uri = str(address.with_token(asyncio.run(main())))
    key = capstore("store", "put", uri, "inbox/", stdin=b"x").ok().strip()
    assert key.startswith("inbox/")
    assert running.objects() == {key.encode(): b"x"}
    again = capstore("store", "put", "--hex", uri, "ff", stdin=b"y").ok().strip()
    assert running.objects()[bytes.fromhex(again)] == b"y"
    capstore("store", "get", uri, key).failed("denied")
    capstore("store", "ls", uri).failed("denied")
    capstore("store", "has", uri, key).failed("denied")
    capstore("store", "put", uri, "a", "--if-absent", stdin=b"x").failed("denied")


def test_wrong_usage(running: Running, tmp_path: Path) -> None:
    for arguments in (
        ("put", running.at()),
        ("put", "--content", running.at(), "k", "file"),
        ("put", "--content", "--hex", running.at(), "00"),
        ("put", "--hex", running.at(), "0"),
        ("get", "--hex", running.at(), "zz"),
        ("get", running.at()),
        ("put", "-", "k"),
    ):
        assert capstore("store", *arguments).code == 2, arguments
    for verb in ("put", "get", "rm"):
        store(verb, running, "").failed("invalidArgument")
    for verb in ("put", "has"):
        store(verb, running, "k" * (KEY_BYTES_MAX + 1)).failed("invalidArgument")
    assert running.objects() == {}


def test_what_is_no_store(running: Running, tmp_path: Path) -> None:
    for verb in ("ls", "names"):
        capstore("store", verb, running.at("m")).failed("invalidArgument")
        capstore("store", verb, f"{running.at()}/-/a").failed("invalidArgument")
    capstore("store", "put", running.at("m"), "k", stdin=LARGE).failed("invalidArgument")
    store("put", running, "k", tmp_path).failed("isDirectory")
    store("put", running, "k", "").failed("isDirectory")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(OBJECT_BYTES_MAX + 1)
    store("put", running, "k", tmp_path / "sparse").failed("tooLarge")
    assert "nothing" in store("put", running, "k", tmp_path / "nothing").failed("notFound")
    with pytest.raises(library.InvalidArgument):
        library.open_store(running.uri("m"))


def test_keys_are_the_bytes_that_were_typed(running: Running) -> None:
    key = os.fsdecode(b"caf\xe9")
    store("put", running, key, stdin=b"x").ok()
    assert running.objects() == {b"caf\xe9": b"x"}
    assert store("get", running, key).ok() == "x"


def test_progress_is_for_terminals(running: Running, tmp_path: Path) -> None:
    import pty

    running.put(b"k", LARGE)
    main, other = pty.openpty()
    go = _stuck(running)
    shown = b""
    try:
        with subprocess.Popen(
            [*COMMAND, "store", "get", running.at(), "k", tmp_path / "copy"],
            stderr=other,
            env=os.environ | {"PYTHONWARNINGS": WARNINGS, "TERM": "xterm", "COLUMNS": "120"},
        ) as process:
            os.close(other)
            while b"of 3.0 MiB" not in shown:
                shown += os.read(main, 1000)
            go.set()
            # A terminal that nobody reads is full one day.
            reader = threading.Thread(target=lambda: _drain(main))
            reader.start()
            assert process.wait(10) == 0
            reader.join(10)
    finally:
        go.set()
        del running.store.read  # type: ignore[method-assign]
        os.close(main)
    assert (tmp_path / "copy").read_bytes() == LARGE


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:
        return


def test_the_mapping_over_a_connection(running: Running) -> None:
    with library.open_store(running.uri()) as mapping:
        mapping[b"a"] = b"1"
        mapping[b"b"] = LARGE
        assert dict(mapping) == {b"a": b"1", b"b": LARGE}
        assert mapping.batch([Put(b"c", b"3", Condition(absent=True))])[0] > 0
        with mapping.get_stream(b"b") as stream:
            stream.seek(-10, os.SEEK_END)
            assert stream.read() == LARGE[-10:]
        assert mapping.put_stream([LARGE, LARGE]).size == 2 * len(LARGE)
        with pytest.raises(library.Conflict):
            mapping.put_stream([LARGE], b"a", Condition(absent=True))
        assert mapping.pop(b"a") == b"1"
        key = mapping.put(b"content").key
        mapping.names.sub("x").bind(library.Binding("y", hash=key))
        assert [each.hash for each in mapping.names.sub("x").list()] == [key]
        mapping.clear()
        assert not mapping
