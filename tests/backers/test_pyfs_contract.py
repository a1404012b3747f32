"""What of the contract suite's write half holds for PyFilesystem2: all but `EXCLUDED`.

It runs in memory and on a directory of the host.  Symbolic links, which PyFilesystem2 does not
make, are made there as another program would, and in memory what needs them is left out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstore.backers.hostops import raw_target
from capstore.backers.node import DirectoryNode, RenameMode
from capstore.backers.pyfs import PyfsDirectory, PyfsVolume
from capstore.schema.errors import AlreadyExists, StorageError, Unsupported
from tests.contract import (
    model,
    test_attributes,
    test_cancellation,
    test_directories,
    test_files,
    test_links,
    test_model,
    test_names,
    test_rename,
)
from tests.contract.harness import Harness, clear

pytestmark = pytest.mark.anyio

MODULES: list[ModuleType] = [
    test_attributes,
    test_cancellation,
    test_directories,
    test_files,
    test_links,
    test_names,
    test_rename,
]

EXCLUDED = {
    "test_a_link_to_a_symbolic_link_is_one": "no hard links",
    "test_an_open_file_sees_its_names": "no hard links",
    "test_onto_another_name_of_the_same_file": "no hard links",
    "test_two_names_are_one_file": "no hard links",
    "test_what_cannot_be_linked": "no hard links",
    "test_create_executable": "no permissions",
    "test_executable": "no permissions",
    "test_attributes_are_of_the_link_itself": "attributes of links are not set",
    "test_a_moved_directory_knows_where_it_is": "exchanges entries",
    "test_modified_is_set_and_moves_on_with_a_change": "times are floating point numbers",
    "test_modified_of_a_directory": "times are floating point numbers",
}
# What makes symbolic links.
ON_HOST_ONLY = {
    "test_a_directory_s_version_changes_with_its_entries",
    "test_a_cancelled_read_leaves_its_buffer_alone",
    "test_a_listing_tells_what_lookup_tells",
    "test_a_page_is_bounded",
    "test_a_symbolic_link_does_not_replace",
    "test_a_target_is_kept_as_it_is",
    "test_create_does_not_replace",
    "test_kinds_and_sizes",
    "test_matrix",
    "test_mkdir_does_not_replace",
    "test_more_entries_than_a_page_holds",
    "test_no_method_follows_a_link",
    "test_onto_itself",
    "test_open",
    "test_remove",
    "test_sub_of_what_is_no_directory",
    "test_what_is_no_target",
    "test_whole_or_not_at_all",
}

for _module in MODULES:
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and _name not in EXCLUDED:
            globals()[_name] = _test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "harness" in metafunc.fixturenames:
        on_host_only = metafunc.function.__name__ in ON_HOST_ONLY
        kinds = ["osfs"] if on_host_only else ["mem", "osfs"]
        metafunc.parametrize("harness", kinds, indirect=True)


async def _symlink(directory: PyfsDirectory, name: str, target: str) -> None:
    """Makes a link without the filesystem's knowing; its directory is noted as changed."""
    place = directory._target(name, directory, name)
    raw = raw_target(target)
    tree = directory.volume.tree
    try:
        os.symlink(raw, tree.fs.getsyspath(place.path_of(name)))
    except FileExistsError:
        raise AlreadyExists from None
    tree.places.added(place)


async def _refused(root: DirectoryNode) -> None:
    with pytest.raises(Unsupported):
        await root.rename("f", root, "d", RenameMode.EXCHANGE)


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Harness]:
    volume = await PyfsVolume.open(url)
    yield Harness(volume.root, hard_links=False, created_times=False, executable=False)
    await volume.close()


@pytest.fixture
async def harness(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Harness]:
    monkeypatch.setattr(test_rename, "outcome", _outcome)
    refused = (_refused, test_cancellation.BEFORE)
    monkeypatch.setitem(test_cancellation.CHANGES, "exchange", refused)
    if request.param == "mem":
        async with _opened("mem://") as made:
            yield made
        return
    monkeypatch.setattr(PyfsDirectory, "symlink", _symlink)
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        async with _opened(f"osfs://{folder}") as made:
            yield made


@pytest.fixture
def root(harness: Harness) -> DirectoryNode:
    return harness.root


_told = test_rename.outcome


def _outcome(source: str, target: str, mode: RenameMode) -> type[StorageError] | None:
    """As the protocol has it, but that nothing is exchanged."""
    return _told(source, target, mode) or (Unsupported if mode is RenameMode.EXCHANGE else None)


def test_the_lists_name_tests() -> None:
    known = {name for module in MODULES for name in vars(module)}
    assert (ON_HOST_ONLY | set(EXCLUDED)) <= known


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(test_model.OPERATIONS, max_size=30))
async def test_a_sequence_of_operations(
    harness: Harness, operations: list[tuple[object, ...]]
) -> None:
    links = PyfsDirectory.symlink is _symlink
    case = await harness.root.mkdir("case")
    pair = test_model.Pair([(case, model.Directory())], hard_links=False)
    for operation, *arguments in operations:
        if RenameMode.EXCHANGE in arguments or (operation == "symlink" and not links):
            continue
        await getattr(pair, str(operation))(*arguments)
        await pair.check()
    await pair.close()
    await clear(await harness.root.sub("case"))
    await harness.root.remove("case")
