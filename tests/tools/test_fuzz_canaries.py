"""Broken parsers, each in its own way: the check has to find every one of them.

`CANARIES` is a registry as the worker takes it; this module is imported there too.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstore.images.devices import MemoryDevice
from capstore.images.ro1_tree import Ro1Tree
from capstore.images.tree import Content, Finding, Region
from capstore.schema.errors import Corrupt, NotFound, StorageIOError
from capstore.schema.nodes import Entry, Page, Stat
from capstore.tools.fuzz.case import Format, Subject
from capstore.tools.fuzz.check import Seen
from capstore.tools.fuzz.corpus import ro1s
from capstore.tools.fuzz.draft import Draft
from capstore.tools.fuzz.formats import truth_of, walked
from capstore.tools.fuzz.running import Worker
from capstore.tools.fuzz.worker import MEMORY_BYTES_MAX, Outcome

ROOT = Path(__file__).parents[2]


class Sound(Ro1Tree):
    """The real one."""

    secret = ""


class Foreign(Sound):
    def stat(self, node: int) -> Stat:
        raise ValueError("invalid literal")


class NoAnswer(Sound):
    def content(self, node: int) -> Content:
        while True:
            pass


class NoAnswerInC(Sound):
    def content(self, node: int) -> Content:
        deque(itertools.repeat(0), maxlen=0)
        raise AssertionError


class Waiting(Sound):
    def content(self, node: int) -> Content:
        time.sleep(1000)
        raise AssertionError


class Crashing(Sound):
    def content(self, node: int) -> Content:
        ctypes.string_at(1)
        raise AssertionError


class Greedy(Sound):
    eaten = b""

    def content(self, node: int) -> Content:
        if not self.eaten:
            self.eaten = b"\1" * (MEMORY_BYTES_MAX * 5 // 4)
        return super().content(node)


class Forged(Sound):
    """As a size that is believed: more than the machine has."""

    def content(self, node: int) -> Content:
        bytearray(1 << 50)
        return super().content(node)


class WrongByte(Sound):
    def content(self, node: int) -> Content:
        found = super().content(node)
        read = found.read_into

        def wrong(offset: int, view: memoryview) -> int:
            got = read(offset, view)
            if offset <= 1 < offset + got:
                view[1 - offset] ^= 1
            return got

        found.read_into = wrong  # type: ignore[method-assign]
        found.read_now = lambda offset, view: None  # type: ignore[method-assign]
        return found


class WrongNow(Sound):
    def content(self, node: int) -> Content:
        found = super().content(node)
        found.read_now = lambda offset, view: found.read_into(offset, view) and 0  # type: ignore[method-assign]
        return found


class Short(Sound):
    def content(self, node: int) -> Content:
        found = super().content(node)
        found.size += 1
        return found


class Unsorted(Sound):
    def list(self, directory: int, after: str, limit: int) -> Page:
        page = super().list(directory, after, limit)
        return Page(page.entries[::-1], page.more)


class Endless(Sound):
    def list(self, directory: int, after: str, limit: int) -> Page:
        page = super().list(directory, "", 1)
        return Page(page.entries, more=True)


class ByPages(Sound):
    def list(self, directory: int, after: str, limit: int) -> Page:
        page = super().list(directory, after, limit)
        return Page(page.entries[:-1], page.more) if limit == 1000 else page


class NoName(Sound):
    def list(self, directory: int, after: str, limit: int) -> Page:
        page = super().list(directory, after, limit)
        return Page([entry._replace(name=entry.name + "/") for entry in page.entries], page.more)


class NotLookedUp(Sound):
    def lookup(self, directory: int, name: str) -> Entry:
        super().lookup(directory, name)
        raise NotFound("no entry of this name")


class AnyName(Sound):
    def lookup(self, directory: int, name: str) -> Entry:
        return self.list(directory, "", 1).entries[0]


class OtherNode(Sound):
    def lookup(self, directory: int, name: str) -> Entry:
        found = super().lookup(directory, name)
        return found._replace(stat=found.stat._replace(node_id=found.stat.node_id + 1))


class Loop(Sound):
    """A directory that is inside of itself."""

    def list(self, directory: int, after: str, limit: int) -> Page:
        page = super().list(directory, after, limit)
        top = self.stat(self.root)
        entries = [
            entry._replace(stat=top) if entry.name == "dir" else entry for entry in page.entries
        ]
        return Page(entries, page.more)


class Telling(Sound):
    def content(self, node: int) -> Content:
        raise Corrupt(f"cannot read {self.secret}/image")


class NotListed(Sound):
    def content(self, node: int) -> Content:
        raise StorageIOError("the disk failed")


class Blind(Sound):
    """Damage that `verify` does not know of."""

    def content(self, node: int) -> Content:
        raise Corrupt("gone")

    def verify(self) -> Iterator[Finding]:
        return iter(())


class Overlapping(Sound):
    def regions(self) -> Iterator[Region]:
        yield Region(0, 100, "data")
        yield Region(50, 100, "data")


class NoJson(Sound):
    def describe(self) -> dict[str, object]:
        return {"magic": b"\0"}


BROKEN = {
    Foreign: "ValueError at test_fuzz_canaries.py",
    NoAnswer: "takes too long",
    NoAnswerInC: "takes too long",
    Waiting: "no answer",
    Crashing: "SIGSEGV",
    Greedy: "memory",
    Forged: "MemoryError at test_fuzz_canaries.py",
    WrongByte: "'/a' has wrong bytes",
    WrongNow: "read_now differs",
    Short: "the size of a content",
    Unsorted: "'a' is listed behind 'b.txt'",
    Endless: "'a' is listed behind 'a'",
    ByPages: "listings by pages of different lengths differ",
    NoName: "'a/' is listed: a name holds",
    NotLookedUp: "'a' is listed and not found",
    AnyName: "'b.txt' is looked up as",
    OtherNode: "'a' is looked up as",
    Loop: "a directory has two names",
    Telling: "a message names a path",
    NotListed: "refused as io",
    Blind: "verify finds nothing",
    Overlapping: "Region(start=##, length=###",
    NoJson: "TypeError",
}


def _ask(kind: type[Sound], subject: Subject) -> Seen:
    device = MemoryDevice(subject.data)
    tree = kind(device, device.view)
    tree.secret = str(subject.folder)
    truth = truth_of(subject.original, "ro1", subject.folder)
    return walked(tree, len(subject.data), subject, truth)


def _nothing(draft: Draft) -> None:
    draft.rng.random()


CANARIES = {
    kind.__name__: Format(
        corpus=lambda: [ro1s()[0]],
        ask=lambda subject, kind=kind: _ask(kind, subject),  # type: ignore[misc]
        mutators=(_nothing,),
    )
    for kind in (Sound, *BROKEN)
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        registry = f"{__name__}:CANARIES"
        with Worker(registry, cpu_seconds_max=0.5) as started:
            yield started


def test_a_sound_one_passes(worker: Worker) -> None:
    outcome = worker.run("Sound", 1)
    assert (outcome.outcome, outcome.fault) == ("clean", ""), outcome.detail


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_one_is_found(
    worker: Worker, kind: type[Sound], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page of one entry has no order, and the like: one of a few numbers finds it.
    outcomes: list[Outcome] = []
    if kind is Waiting:
        worker.run("Sound", 1)
        monkeypatch.setattr(worker, "wall_seconds_max", 1.5)
    while not outcomes or (outcomes[-1].outcome != "failed" and len(outcomes) < 8):
        outcomes.append(worker.run(kind.__name__, len(outcomes)))
    assert outcomes[-1].fault.startswith(BROKEN[kind]), outcomes
    if kind in (NoAnswer, NoAnswerInC, Waiting, Crashing):
        assert "test_fuzz_canaries" in outcomes[-1].detail
