"""Round trips, threads, processes: what a filesystem does with its connection."""

from __future__ import annotations

import gc
import io
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from fs import errors

import capstore
from capstore.service.pyfs import CapstoreFS
from tests.service.relay import delayed
from tests.service.support import ServiceUnderTest, running_service

MIB = 1024 * 1024


# Speed -------------------------------------------------------------------------------------------


def test_small_operations_take_one_round_trip(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.makedirs("a/b/c/d")
    tree.writebytes("a/b/c/d/f", b"x" * 1000)
    one_way = 0.15

    def takes_one(action: Callable[[], object]) -> None:
        begin = time.monotonic()
        action()
        assert time.monotonic() - begin < 3.5 * one_way

    with delayed(service.uri("m"), service.folder, one_way) as slow, CapstoreFS(slow) as far:
        # Those of a row wait at once.
        for actions in (
            [lambda: far.exists("a/b/c/d/f")],
            [
                lambda: far.readbytes("a/b/c/d/f"),
                lambda: far.readtext("a/b/c/d/f"),
                lambda: far.download("a/b/c/d/f", io.BytesIO()),
                lambda: far.getinfo("a/b/c/d/f", ["details"]),
                lambda: far.isdir("a/b/c/d"),
                lambda: list(far.scandir("a/b/c/d", ["details"])),
                lambda: far.listdir("a/b/c/d"),
                lambda: far.isempty("a/b/c/d"),
                lambda: far.openbin("a/b/c/d/f").close(),
            ],
            [lambda: far.writebytes("a/b/c/d/g", b"y" * 1000), lambda: far.makedir("a/b/c/d/e")],
            [lambda: far.upload("a/b/c/d/g", io.BytesIO(b"z")), lambda: far.removedir("a/b/c/d/e")],
            [lambda: far.remove("a/b/c/d/g")],
        ):
            with ThreadPoolExecutor(len(actions)) as pool:
                list(pool.map(takes_one, actions))


def test_large_transfers_are_windowed(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    data = bytes(8 * MIB)
    tree.writebytes("f", data)
    one_way = 0.05

    def by_file() -> None:
        with far.openbin("f") as file:
            while file.read(100_000):
                pass

    with delayed(service.uri("m"), service.folder, one_way) as slow, CapstoreFS(slow) as far:
        for action in (
            lambda: far.readbytes("f"),
            lambda: far.download("f", io.BytesIO()),
            lambda: far.writebytes("g", data),
            lambda: far.upload("g", io.BytesIO(data)),
            by_file,
        ):
            begin = time.monotonic()
            action()
            # One after the other, 32 requests of 256 KiB would take 3.2 seconds.
            assert time.monotonic() - begin < 1.8


# Threads and processes ---------------------------------------------------------------------------


def test_many_threads_share_one_filesystem(tree: CapstoreFS) -> None:
    def work(number: int) -> None:
        rng = random.Random(number)
        home = tree.makedir(f"home{number}")
        for step in range(10):
            data = rng.randbytes(rng.randrange(300_000))
            home.writebytes(f"f{step}", data)
            with home.open(f"f{step}", "rb") as file:
                assert file.read() == data
            home.move(f"f{step}", f"g{step}")
            assert home.exists(f"g{step}")
            assert not home.exists("nothing/there")
        assert len(home.listdir("/")) == 10

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert len(tree.listdir("/")) == 12


def test_one_file_object_in_many_threads(tree: CapstoreFS) -> None:
    with tree.openbin("f", "w", 0) as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: file.write(b"%09d\n" % number), range(200)))
    lines = tree.readbytes("f").split()
    assert sorted(lines) == [b"%09d" % number for number in range(200)]


def test_nothing_of_pycapnp_is_left_to_the_garbage_collector(
    service: ServiceUnderTest, tree: CapstoreFS
) -> None:
    """It runs in any thread, and freeing a capability in a wrong one aborts the process."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        _use_everything(service, tree)
        gc.collect()
        left = {type(thing) for thing in gc.garbage if "Schema" not in type(thing).__name__}
    finally:
        gc.set_debug(0)
    assert not [kind for kind in left if kind.__module__.startswith("capnp")]
    gc.garbage.clear()


def _use_everything(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.makedirs("a/b")
    tree.writebytes("a/f", bytes(2 * MIB))
    tree.symlink("l", "a")
    tree.symlink("loop", "loop")
    for action in (
        lambda: tree.readbytes("l/f"),
        lambda: tree.readbytes("l/none"),
        lambda: tree.readbytes("loop"),
        lambda: tree.readbytes("a/f/x"),
        lambda: tree.copydir("a", "a/b/c", create=True),
        lambda: tree.copydir("a", "a/f"),
        lambda: tree.movedir("a", "a/b"),
        lambda: list(tree.scandir("/", ["link"])),
        lambda: tree.openbin("a/f", "r+").read(5),
        lambda: tree.removetree("a"),
        lambda: CapstoreFS(service.uri("m")).close(),
        lambda: CapstoreFS(service.uri("m").with_token("A" * 43)),
    ):
        with suppress(errors.FSError, capstore.StorageError):
            action()


def _run(script: str, *args: str, **options: str) -> subprocess.CompletedProcess[str]:
    flags = [
        "-X",
        "dev",
        "-W",
        "error",
        "-W",
        "ignore:pkg_resources",
        "-W",
        "ignore:Deprecated call",
    ]
    flags += [option for text in options.values() for option in ("-W", text)]
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(script), *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_interpreter_ends_cleanly_with_everything_open(
    service: ServiceUnderTest, tree: CapstoreFS
) -> None:
    begin = time.monotonic()
    done = _run(
        """
        import sys
        from capstore.service.pyfs import CapstoreFS
        tree = CapstoreFS(sys.argv[1])
        text = tree.open("text", "w")
        text.write("not flushed")
        binary = tree.open("binary", "wb")
        binary.write(b"not flushed")
        reader = tree.open("reader", "w+b")
        pages = tree.scandir("/")
        """,
        str(service.uri("m")),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - begin < 20
    assert tree.readbytes("text") == tree.readbytes("binary") == b"not flushed"


def test_a_child_made_by_fork_has_a_connection_of_its_own(
    service: ServiceUnderTest, tree: CapstoreFS
) -> None:
    done = _run(
        """
        import gc, os, sys
        from capstore.service.pyfs import CapstoreFS
        from fs import errors
        tree = CapstoreFS(sys.argv[1])
        tree.writetext("before", "1")
        file = tree.open("open", "wb")
        file.write(b"of the parent")
        child = os.fork()
        tree.writetext(f"after {child == 0}", "2")
        if child == 0:
            gc.collect()
            try:
                file.flush()
            except errors.FSError:
                pass
            else:
                print("the child wrote to the parent's file")
            print(sorted(tree.listdir("/")))
            sys.exit(0)
        print(os.waitpid(child, 0)[1], sorted(tree.listdir("/")))
        file.close()
        """,
        str(service.uri("m")),
        fork="ignore:This process",
    )
    assert (done.returncode, done.stderr) == (0, "")
    child, parent = done.stdout.splitlines()
    assert child.startswith("['after ")
    assert parent == "0 ['after False', 'after True', 'before', 'open']"
    assert tree.readbytes("open") == b"of the parent"


def test_a_service_that_stops_meanwhile_leaves_nobody_waiting() -> None:
    failures: list[Exception] = []

    def use(action: Callable[[], object]) -> None:
        try:
            while True:
                action()
        except errors.FSError as error:
            failures.append(error)

    with running_service({"m": "memory:"}) as service:
        tree = CapstoreFS(service.uri("m"))
        data = bytes(4 * MIB)
        tree.writebytes("f", data)
        actions = [
            lambda: tree.readbytes("f"),
            lambda: tree.writebytes("g", data),
            lambda: tree.download("f", io.BytesIO()),
            lambda: list(tree.scandir("/")),
        ]
        threads = [threading.Thread(target=use, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        service.stop()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
    assert {type(failure) for failure in failures} == {errors.RemoteConnectionError}
    tree.close()
