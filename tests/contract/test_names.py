"""What is a name: the same answer from every method that takes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from capstore.backers.node import Attributes, DirectoryNode, OpenFlags, RenameMode
from capstore.schema.errors import InvalidName, NotFound
from tests.contract.harness import content_of, names_of, populate

pytestmark = pytest.mark.anyio

BAD = {
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "slash": "a/b",
    "only slash": "/",
    "trailing slash": "a/",
    "parent": "../a",
    "nul": "a\0b",
    "256 bytes": "a" * 256,
    "256 bytes of two": "é" * 128,
    "lone surrogate": "\ud800",
    "escaped surrogate": "a\udcff",
}
GOOD = {
    "one letter": "a",
    "255 bytes": "a" * 255,
    "255 bytes of three": "€" * 85,
    "spaces": "  a  b ",
    "newline": "a\nb\r",
    "leading dash": "-rf",
    "three dots": "...",
    "hidden": ".hidden",
    "trailing dot": "a.",
    "backslash": "a\\b",
    "colon": "a:b",
    "glob": "*?[a]",
    "escape sequence": "\x1b[2J",
    "beyond the plane": "\U0001f5c4",
    "bidirectional": "\u202eabc",
}

Method = Callable[[DirectoryNode, str], Awaitable[object]]

METHODS: dict[str, Method] = {
    "lookup": lambda root, name: root.lookup(name),
    "open": lambda root, name: root.open(name),
    "open to create": lambda root, name: root.open(name, OpenFlags.WRITE | OpenFlags.CREATE),
    "create": lambda root, name: root.create(name),
    "mkdir": lambda root, name: root.mkdir(name),
    "sub": lambda root, name: root.sub(name),
    "remove": lambda root, name: root.remove(name),
    "rename from": lambda root, name: root.rename(name, root, "new"),
    "rename to": lambda root, name: root.rename("old", root, name),
    "rename to, not replacing": lambda root, name: root.rename(
        "old", root, name, RenameMode.NO_REPLACE
    ),
    "exchange": lambda root, name: root.rename("old", root, name, RenameMode.EXCHANGE),
    "symlink": lambda root, name: root.symlink(name, "target"),
    "link from": lambda root, name: root.link(name, root, "new"),
    "link to": lambda root, name: root.link("old", root, name),
}


@pytest.mark.parametrize("method", METHODS)
async def test_bad_names_are_refused(root: DirectoryNode, method: str) -> None:
    await populate(root, {"old": b"x"})
    for name in BAD.values():
        with pytest.raises(InvalidName):
            await METHODS[method](root, name)
    assert await names_of(root) == ["old"]


async def test_bad_names_are_refused_for_attributes(root: DirectoryNode) -> None:
    # An empty name means the directory itself there.
    for name in filter(None, BAD.values()):
        with pytest.raises(InvalidName):
            await root.set_attributes(Attributes(executable=True), name)


@pytest.mark.parametrize("name", GOOD.values(), ids=GOOD)
async def test_good_names_are_taken_as_they_are(root: DirectoryNode, name: str) -> None:
    file = await root.create(name)
    await file.write(0, b"content")
    await file.close()
    assert (await root.lookup(name)).name == name
    assert await names_of(root) == [name]
    assert await content_of(root, name) == b"content"
    await root.rename(name, root, "other")
    await root.rename("other", root, name)
    await root.remove(name)
    await root.mkdir(name)
    assert await names_of(await root.sub(name)) == []
    await root.remove(name)
    assert await names_of(root) == []


async def test_forms_of_unicode_are_different_names(root: DirectoryNode) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    await populate(root, {composed: b"one", decomposed: b"two"})
    assert await names_of(root) == sorted([composed, decomposed])
    assert await content_of(root, composed) == b"one"
    assert await content_of(root, decomposed) == b"two"


async def test_case_is_kept_and_distinguished(root: DirectoryNode) -> None:
    await populate(root, {"Name": b"one", "name": b"two"})
    assert await names_of(root) == ["Name", "name"]
    await root.remove("Name")
    with pytest.raises(NotFound):
        await root.lookup("Name")


async def test_names_are_listed_in_the_order_of_their_bytes(root: DirectoryNode) -> None:
    names = ["\U0001f5c4", "\uffee", "z", "é", "a\x01", "a", "Z", "-"]
    await populate(root, dict.fromkeys(names, b""))
    assert await names_of(root) == sorted(names, key=str.encode)
