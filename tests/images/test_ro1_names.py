"""Names that are known not to be there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from capstore.images import ro1_names
from capstore.images.formats import open_image
from capstore.images.ro1_names import NameSums
from capstore.images.tree import ImageTree
from capstore.schema.errors import Closed, NotFound

NAMES = [f"n{number:03}" for number in range(300)]


@pytest.fixture
def tree(tmp_path: Path) -> ImageTree:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in NAMES:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return open_image(str(path), scheme="tar")


def look_for_all(tree: ImageTree) -> None:
    """Finds all there is, and nothing that is not, before names are kept and behind it."""
    for _ in range(3):
        for name in NAMES:
            assert tree.lookup(tree.root, name).name == name
            for absent in (f"{name}x", name[:-1], f"a{name}", f"z{name}"):
                with pytest.raises(NotFound):
                    tree.lookup(tree.root, absent)


def test_what_is_there_is_found_and_what_is_not_is_not(tree: ImageTree) -> None:
    look_for_all(tree)
    tree.close()
    with pytest.raises(Closed):
        tree.lookup(tree.root, "absent")


@pytest.mark.parametrize("limit", ["_DIRECTORY_NAMES_MAX", "_NAMES_MAX", "_DIRECTORIES_MAX"])
def test_less_is_kept_where_there_is_too_much(
    tree: ImageTree, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(ro1_names, limit, 1)
    look_for_all(tree)
    tree.close()


def test_nothing_is_said_of_a_directory_before_its_names_were_read() -> None:
    sums = NameSums()
    read: list[int] = []

    def records() -> memoryview:
        read.append(1)
        return memoryview(b"")

    assert not sums.exclude(7, b"a")
    for _ in range(20):
        sums.missed(7, 0, records)
    # Empty: read once, and any name is excluded.
    assert read == [1]
    assert sums.exclude(7, b"a")
    assert not sums.exclude(8, b"a")


def test_a_damaged_entry_excludes_nothing() -> None:
    sums = NameSums()
    for _ in range(20):
        sums.missed(7, 1, lambda: memoryview(bytes(ro1_names.RO1_ENTRY.size)))
    assert not sums.exclude(7, b"a")
