"""The index of an archive in the making: stored paths become a tree.

Invariants:

* Stored paths are taken apart here and nowhere else: empty components and ``.`` are dropped, names
  that are no UTF-8 are escaped reversibly (`capstore.schema.names`), a path with ``..`` or with a
  component that cannot be a name is a finding and is not served.
* The last member of a name wins, as it does when an archive is unpacked; a directory that comes
  again keeps what is in it.  Directories that no member names are made where a path needs them.
* Memory is bounded: an index that would take more than its budget is `TooLarge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from capstore.images.nodetable import ROOT, NodeTable
from capstore.images.tree import Finding
from capstore.schema.errors import InvalidName, TooLarge
from capstore.schema.limits import INDEX_FINDINGS_MAX, NAME_BYTES_MAX, SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name, from_bytes
from capstore.schema.nodes import NodeKind, Provenance

_SHOWN_BYTES_MAX: Final = 100


class IndexBuilder:
    """Takes what a parser finds in an archive; `bytes_max` is the budget."""

    def __init__(self, *, bytes_max: int) -> None:
        self.table = NodeTable()
        self.findings: list[Finding] = []
        self.findings_dropped = 0
        self._bytes_max = bytes_max
        # The directory that the last path led to: members of one directory come together.
        self._last: tuple[bytes, int] = (b"", ROOT)

    def node(
        self,
        kind: NodeKind,
        *,
        size: int = 0,
        modified: int = 0,
        created: int = 0,
        provenance: Provenance = Provenance.UNKNOWN,
        executable: bool = False,
        target: bytes = b"",
        extents: Sequence[tuple[int, int, int]] = (),
        checksum: int | None = None,
    ) -> int:
        """A new node, which `bind` gives its name.

        Times are in ns since 1970; `extents` are (offset in the file, length, offset in the
        device); `target` is a symbolic link's; `checksum` is of the whole content, of the
        archive's own kind.  Raises `TooLarge` over the budget.
        """
        table = self.table
        number = table.add(
            kind,
            modified=modified,
            created=created,
            provenance=provenance,
            executable=executable,
            size=size,
            extents=[(*row, 0) for row in extents],
        )
        if checksum is not None:
            table.set_check(number, checksum)
        if kind is NodeKind.SYMLINK:
            # What is too long is never bound, and not worth its escaping.
            fits = len(target) <= SYMLINK_TARGET_BYTES_MAX
            cut = target[: SYMLINK_TARGET_BYTES_MAX + 1]
            table.set_target(number, from_bytes(target).encode() if fits else cut)
        self._check_budget()
        return number

    def set_content(self, node: int, size: int, extents: Sequence[tuple[int, int, int]]) -> None:
        """Gives the file another content."""
        self.table.set_content(node, size, [(*row, 0) for row in extents])
        self._check_budget()

    def damage(self, node: int, message: str) -> None:
        """Reading this node's content will be `Corrupt` with `message`."""
        self.table.damage(node, message)

    def refuse(self, path: bytes, reason: str, offset: int) -> None:
        """Notes that the member at `offset`, called `path` if that is known, is not served."""
        if len(self.findings) >= INDEX_FINDINGS_MAX:
            self.findings_dropped += 1
            return
        shown = from_bytes(path[:_SHOWN_BYTES_MAX])
        where = f'member "{shown}"' if path else "archive"
        self.findings.append(Finding(where, reason, offset))

    def bind(self, path: bytes, node: int, offset: int = 0) -> None:
        """Gives `node` the stored `path`, as the member at `offset` has it."""
        head, _, last = path.rstrip(b"/").rpartition(b"/")
        try:
            if last in (b"", b"."):
                self._bind_directory(path, node, offset)
                return
            name = _stored_name(last)
            self._check_target(node)
            directory = self._directory(head)
        except InvalidName as error:
            self.refuse(path, error.message, offset)
            return
        self._put(directory, name, node)

    def find(self, path: bytes) -> int | None:
        """The node that `path` stands for now."""
        at = ROOT
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            if len(part) > NAME_BYTES_MAX:
                return None
            child = self.table.children.get(at, {}).get(from_bytes(part))
            if child is None:
                return None
            at = child
        return at

    def _bind_directory(self, path: bytes, node: int, offset: int) -> None:
        """A path that ends with ``.`` or is the root's: it can only be a directory's."""
        if not self.table.is_directory(node):
            self.refuse(path, "a path without a name that is no directory's", offset)
            return
        self.table.copy_facts(self._directory(path), node)

    def _check_target(self, node: int) -> None:
        if self.table.target_bytes(node) > SYMLINK_TARGET_BYTES_MAX:
            raise InvalidName(f"its target is longer than {SYMLINK_TARGET_BYTES_MAX} bytes")

    def _directory(self, path: bytes) -> int:
        """The directory at `path`, made with all above it if it is not there."""
        if path == self._last[0]:
            return self._last[1]
        # All names are checked before the first directory is made.
        parts = (part for part in path.split(b"/") if part not in (b"", b"."))
        names = [_stored_name(part) for part in parts]
        at = ROOT
        for name in names:
            child = self.table.children[at].get(name)
            if child is None or not self.table.is_directory(child):
                child = self.table.add(NodeKind.DIRECTORY)
                self._set(at, name, child)
                self._check_budget()
            at = child
        self._last = (path, at)
        return at

    def _put(self, directory: int, name: str, node: int) -> None:
        present = self.table.children[directory].get(name)
        table = self.table
        if present is not None and table.is_directory(present):
            if table.is_directory(node):
                table.copy_facts(present, node)
                return
            # What is below it is gone, and may have been the directory that came last.
            self._last = (b"", ROOT)
        self._set(directory, name, node)

    def _set(self, directory: int, name: str, node: int) -> None:
        self.table.children[directory][name] = node
        self.table.bytes_used += len(name)

    def _check_budget(self) -> None:
        if self.table.bytes_used > self._bytes_max:
            raise TooLarge(f"the archive's index takes more than {self._bytes_max} bytes")


def _stored_name(raw: bytes) -> str:
    """The name that stands for `raw`; raises `InvalidName`."""
    if len(raw) > NAME_BYTES_MAX:  # escaping makes nothing shorter
        raise InvalidName(f"a name has at most {NAME_BYTES_MAX} bytes")
    return check_name(from_bytes(raw))


assert NAME_BYTES_MAX < 1 << 16  # noqa: S101 - what a record's nameBytes can hold
