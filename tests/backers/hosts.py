"""What the tests of the host directory backer share."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from capstore.backers import hostfd
from tests.contract.harness import Link

_libc = ctypes.CDLL(None, use_errno=True)


def open_descriptors() -> int:
    """How many descriptors the process holds."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def descriptors_settle(count: int) -> bool:
    """Whether the process soon holds `count` descriptors.

    For a moment after a cancelled call the loop and the worker thread still hold its result.
    """
    for _ in range(200):
        if open_descriptors() == count:
            return True
        await anyio.sleep(0.002)
    return False


@contextmanager
def mounted_tmpfs(at: Path, size: str) -> Iterator[None]:
    """A tmpfs of `size` at `at`; raises OSError where that is not permitted."""
    if _libc.mount(b"tmpfs", os.fsencode(at), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield
    finally:
        gc.collect()
        assert _libc.umount2(os.fsencode(at), 0) == 0, "something below is still open"


@contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Another thread calls `step` over and over while the block runs."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            step()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def exchange(one: Path, other: Path) -> None:
    """Both change places, atomically, as somebody else on the host would do it."""
    above = os.open(one.parent, os.O_PATH)
    try:
        names = os.fsencode(one.name), os.fsencode(other.name)
        hostfd.rename_at(above, names[0], above, names[1], hostfd.RENAME_EXCHANGE)
    finally:
        os.close(above)


def host_tree(folder: Path) -> dict[str, object]:
    """Everything below `folder`, as `tree_of` gives it of a volume."""
    tree: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            tree[path.name] = Link(os.readlink(path))
        elif path.is_dir():
            tree[path.name] = host_tree(path)
        else:
            tree[path.name] = path.read_bytes()
    return tree
