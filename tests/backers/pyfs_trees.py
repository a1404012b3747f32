"""A tree to fill a filesystem with."""

from __future__ import annotations

from capstore.backers.node import DirectoryNode, OpenFlags
from tests.contract.harness import populate

TREE = {
    "a": {"b": {"c": b"deep"}, "file": b"content"},
    "empty": {},
    "é": b"",
    "large": bytes(range(256)) * 2000,
}
WRITE = OpenFlags.WRITE


async def filled(root: DirectoryNode) -> DirectoryNode:
    await populate(root, TREE)
    return root
