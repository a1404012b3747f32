"""What must hold of an open image, whatever it holds: one bounded walk that asks everything.

Invariants: the walk raises `Broken` for what must not be.  Exceptions that are no `StorageError`
leave it as they are, for the worker to report.  Its own memory is bounded: it reads through small
buffers, up to `CONTENT_BYTES_MAX` in all, and looks at `NODES_MAX` nodes at most.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from capstore.images.tree import REGION_KINDS, Content, ImageTree
from capstore.schema.errors import (
    Corrupt,
    InvalidName,
    NotFound,
    StorageError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import (
    KIB,
    MIB,
    PAGE_BYTES_MAX,
    PAGE_ENTRIES_MAX,
    SYMLINK_TARGET_BYTES_MAX,
)
from capstore.schema.names import check_name
from capstore.schema.nodes import Entry, NodeKind, Page, Stat

CONTENT_BYTES_MAX: Final = 8 * MIB
NODES_MAX: Final = 20_000
# Of one file: from its beginning, and at its end.
_HEAD_BYTES: Final = 2 * MIB
_TAIL_BYTES: Final = 64 * KIB
_INT64_MAX: Final = (1 << 63) - 1
_UINT64_MAX: Final = (1 << 64) - 1
_UINT32_MAX: Final = (1 << 32) - 1
_MESSAGE_CHARS_MAX: Final = 2000
_PAGE_LIMITS: Final = (1, 2, 3, 7, PAGE_ENTRIES_MAX)
# What an image may be refused with, or a part of one.
DAMAGE: Final = (Corrupt, TooLarge, Unsupported)

T = TypeVar("T")


class Broken(AssertionError):
    """Something holds that must not."""


def demand(holds: bool, what: str) -> None:
    """Raises `Broken` with `what` unless it `holds`."""
    if not holds:
        raise Broken(what)


def check_message(error: StorageError, host_path: str) -> None:
    """A message is short text without `host_path`."""
    demand(len(error.message) <= _MESSAGE_CHARS_MAX, f"a message of {len(error.message)} chars")
    demand(_is_text(error.message), "a message is no text")
    demand(host_path not in error.message, "a message names a path of the host")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True)
class Truth:
    """What an image showed before it was damaged: entries and contents, by path."""

    entries: dict[str, Entry] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Seen:
    """What a walk found: how much of it, and what was damaged."""

    truth: Truth = field(default_factory=Truth)
    # Structures that could not be had, bytes of files that could not, findings of `verify`.
    broken_structures: list[str] = field(default_factory=list)
    broken_contents: int = 0
    findings: int = 0
    complete: bool = True

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found to be damaged."""
        return not (self.broken_structures or self.broken_contents or self.findings)


class Walk:
    """Asks the open `tree` of an image of `size` bytes everything; `run` once.

    With a `truth`, whatever is shown must be as it has it; with `keep`, what is shown is kept.
    `host_path` must stand in no message.
    """

    def __init__(
        self,
        tree: ImageTree,
        size: int,
        rng: random.Random,
        *,
        truth: Truth | None = None,
        keep: bool = False,
        host_path: str = "\0",
    ) -> None:
        self._tree = tree
        self._size = size
        self._rng = rng
        self._truth = truth
        self._keep = keep
        self._host_path = host_path
        self._seen = Seen()
        self._content_left = CONTENT_BYTES_MAX
        self._stats: dict[int, Stat] = {}
        self._named = truth is not None or keep

    def run(self) -> Seen:
        tree, seen = self._tree, self._seen
        demand(repr(tree).isprintable(), "the repr of a tree")
        root = self._ask(lambda: tree.stat(tree.root), "stat")
        if root is not None:
            demand(root.kind is NodeKind.DIRECTORY, "the root is no directory")
            demand(root.node_id == tree.root, "the root has another id")
            self._stats[tree.root] = root
        pending = [(tree.root, "")]
        while pending:
            directory, path = pending.pop()
            pending += [
                (entry.stat.node_id, self._join(path, entry.name))
                for entry in self._directory(directory, path)
                if entry.stat.kind is NodeKind.DIRECTORY
            ]
            if len(self._stats) > NODES_MAX:
                seen.complete = False
                break
        self._strangers()
        self._whole()
        self._verify()
        return seen

    def _ask(self, question: Callable[[], T], what: str) -> T | None:
        """The answer, None for damage."""
        try:
            return question()
        except DAMAGE as error:
            check_message(error, self._host_path)
            self._seen.broken_structures.append(f"{what}: {error}")
            return None

    def _join(self, path: str, name: str) -> str:
        return f"{path}/{name}" if self._named else ""

    # Directories ---------------------------------------------------------------------------------

    def _directory(self, directory: int, path: str) -> list[Entry]:
        self._tree.waits(directory)
        entries = self._listed(directory, self._rng.choice(_PAGE_LIMITS))
        again = self._listed(directory, PAGE_ENTRIES_MAX)
        if entries is None or again is None:
            # A page may be short of the damage; what both show is the same.
            pairs = zip(entries or [], again or [], strict=False)
            demand(all(a == b for a, b in pairs), "two listings differ")
        else:
            demand(entries == again, "listings by pages of different lengths differ")
        found = entries or again or []
        for entry in found:
            self._entry(directory, entry, self._join(path, entry.name))
            # A search among entries that are out of order finds what it finds.
            if again is not None:
                self._look_up(directory, entry)
        return found

    def _listed(self, directory: int, limit: int) -> list[Entry] | None:
        """All entries; None where a page is damaged."""
        tree, entries = self._tree, list[Entry]()
        after = ""
        while True:
            page: Page | None = self._ask(
                lambda after=after: tree.list(directory, after, limit),  # type: ignore[misc]
                "list",
            )
            if page is None:
                return None
            demand(len(page.entries) <= limit, "a page is longer than its limit")
            demand(bool(page.entries) or not page.more, "an empty page is followed by another")
            texts = [
                len(one.name.encode()) + len((one.target or "").encode()) for one in page.entries
            ]
            demand(len(texts) == 1 or sum(texts) <= PAGE_BYTES_MAX, "a page has too many bytes")
            for entry in page.entries:
                demand(
                    entry.name.encode() > after.encode(),
                    f"{entry.name!r} is listed behind {after!r}",
                )
                after = entry.name
            entries += page.entries
            if not page.more:
                return entries
            if len(entries) > NODES_MAX:
                self._seen.complete = False
                return entries

    def _entry(self, directory: int, entry: Entry, path: str) -> None:
        tree, node = self._tree, entry.stat.node_id
        try:
            check_name(entry.name)
        except InvalidName as error:
            raise Broken(f"{entry.name!r} is listed: {error.message}") from None
        _check_stat(entry)
        stat = self._ask(lambda: tree.stat(node), "stat")
        demand(stat is None or stat == entry.stat, f"node {node} is listed as {entry.stat}")
        known = self._stats.setdefault(node, entry.stat)
        demand(known == entry.stat, f"node {node} is both {known} and {entry.stat}")
        is_directory = entry.stat.kind is NodeKind.DIRECTORY
        demand(stat is None or known is entry.stat or not is_directory, "a directory has two names")
        self._ask(lambda: tree.mark(node), "mark")
        if self._keep:
            self._seen.truth.entries[path] = entry
        if self._truth is not None:
            truth = self._truth.entries.get(path)
            demand(truth == entry, f"{path!r} was {truth} and is {entry}")
        self._content(entry, path)

    def _look_up(self, directory: int, entry: Entry) -> None:
        """The entry by its name."""
        try:
            found = self._ask(lambda: self._tree.lookup(directory, entry.name), "lookup")
        except NotFound:
            raise Broken(f"{entry.name!r} is listed and not found") from None
        demand(found is None or found == entry, f"{entry.name!r} is looked up as {found}")

    # Content -------------------------------------------------------------------------------------

    def _content(self, entry: Entry, path: str) -> None:
        tree, node = self._tree, entry.stat.node_id
        tree.content_waits(node)
        if entry.stat.kind is not NodeKind.FILE:
            try:
                tree.content(node)
            except StorageError as error:
                check_message(error, self._host_path)
            else:
                raise Broken(f"a {entry.stat.kind.value} has content")
            return
        content = self._ask(lambda: tree.content(node), "content")
        if content is None:
            return
        demand(content.size == entry.stat.size, "the size of a content is not the file's")
        try:
            self._read(content, path)
        except (Corrupt, TooLarge) as error:
            check_message(error, self._host_path)
            self._seen.broken_contents += 1

    def _read(self, content: Content, path: str) -> None:
        """Reads forward in pieces, then at the end, behind it, and here and there."""
        size = content.size
        _read_piece(content, size, 16)
        _read_piece(content, _INT64_MAX, 16)
        step = self._rng.choice((1000, 4 * KIB, 64 * KIB, MIB))
        head = bytearray()
        for offset in range(0, min(size, _HEAD_BYTES, self._content_left), step):
            head += _read_piece(content, offset, step)
        self._content_left -= len(head)
        tail_at = max(0, size - _TAIL_BYTES)
        tail = _read_piece(content, tail_at, _TAIL_BYTES)
        demand(
            not head[tail_at:] or tail.startswith(head[tail_at : tail_at + len(tail)]),
            "a file's end is read in two ways",
        )
        at = self._rng.randint(0, max(0, len(head) - 1))
        demand(_read_piece(content, at, 100)[: len(head) - at] == head[at : at + 100], "read twice")
        if self._keep:
            self._seen.truth.contents[path] = bytes(head)
        if self._truth is not None:
            truth = self._truth.contents.get(path, b"")
            demand(truth.startswith(head), f"{path!r} has wrong bytes")

    # The image as a whole ------------------------------------------------------------------------

    def _strangers(self) -> None:
        """Names and ids that are none."""
        tree = self._tree
        for name in ("", ".", "..", "a/b", "\0", "x" * 256, "\udc80"):
            _refused(lambda name=name: tree.lookup(tree.root, name), InvalidName)  # type: ignore[misc]
        name = "no such name \U0001f4be"
        found = self._ask_absent(lambda: tree.lookup(tree.root, name))
        demand(found is None or found.name == name, "a name that is not listed is found")
        for node in (-1, 7, len(self._stats) + 1, self._size, 1 << 32, 1 << 62, 1 << 64):
            stat = self._ask_absent(lambda node=node: tree.stat(node))  # type: ignore[misc]
            demand(stat is None or stat.node_id == node, "an id leads to another node")
            self._ask_absent(lambda node=node: tree.content(node))  # type: ignore[misc]
            self._ask_absent(lambda node=node: tree.list(node, "", 10))  # type: ignore[misc]

    def _ask_absent(self, question: Callable[[], T]) -> T | None:
        """The answer to a question about what may be there or not."""
        try:
            return question()
        except StorageError as error:
            check_message(error, self._host_path)
            return None

    def _whole(self) -> None:
        tree = self._tree
        usage = self._ask(tree.usage, "usage")
        if usage is not None:
            numbers = [usage.total_bytes, usage.used_bytes, usage.free_bytes]
            numbers += [usage.total_nodes, usage.used_nodes]
            demand(all(0 <= number <= _UINT64_MAX for number in numbers), f"{usage}")
            demand(_is_text(usage.label), "the label is no text")
        facts = self._ask(tree.describe, "describe")
        demand(facts is None or _is_text(json.dumps(facts)), "describe is no JSON")
        self._ask(self._regions, "regions")

    def _regions(self) -> None:
        end = 0
        for region in self._tree.regions():
            demand(region.kind in REGION_KINDS, f"a region of the kind {region.kind}")
            demand(region.start >= end and region.length >= 0, f"{region} begins before {end}")
            end = region.start + region.length
        demand(end <= self._size, f"the regions end at {end} of {self._size}")

    def _verify(self) -> None:
        """What could not be had must be a finding."""
        for finding in self._tree.verify():
            self._seen.findings += 1
            demand(_is_text(finding.where) and _is_text(finding.message), f"{finding}")
            demand(len(finding.where) + len(finding.message) <= 2 * _MESSAGE_CHARS_MAX, "long text")
            demand(self._host_path not in finding.message, "a finding names a path of the host")
        broken = self._seen.broken_structures
        demand(not broken or self._seen.findings > 0, f"verify finds nothing, but {broken[:3]}")


def _check_stat(entry: Entry) -> None:
    stat, target = entry.stat, entry.target
    demand(0 <= stat.node_id < 1 << 64, f"the node id {stat.node_id}")
    demand(0 <= stat.size <= _INT64_MAX, f"the size {stat.size}")
    demand(max(abs(stat.created), abs(stat.modified)) <= _INT64_MAX + 1, "a time")
    demand(1 <= stat.link_count <= _UINT32_MAX, f"the link count {stat.link_count}")
    demand((target is None) == (stat.kind is not NodeKind.SYMLINK), "a target")
    length = 0 if target is None else len(target.encode())
    demand(target is None or length == stat.size, "the size of a target")
    demand(length <= SYMLINK_TARGET_BYTES_MAX, f"a target of {length} bytes")
    demand(stat.kind is not NodeKind.DIRECTORY or stat.size == 0, "a directory with a size")


def _read_piece(content: Content, offset: int, length: int) -> bytes:
    """What is read into a buffer of `length` bytes; both ways to read agree."""
    buffer = bytearray(b"\xaa" * length)
    got = content.read_into(offset, memoryview(buffer))
    demand(
        got == max(0, min(length, content.size - offset)), f"{got} bytes of {length} at {offset}"
    )
    other = bytearray(b"\x55" * length)
    now = content.read_now(offset, memoryview(other))
    demand(now is None or (now == got and other[:got] == buffer[:got]), "read_now differs")
    return bytes(buffer[:got])


def _refused(question: Callable[[], object], kind: type[StorageError]) -> None:
    try:
        answer = question()
    except kind:
        return
    except NotFound:
        answer = "not found"
    raise Broken(f"expected {kind.__name__}, got {answer}")
