"""Files of the audit: rotated, opened anew, on a full disk, written in order."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.schema.errors import NotFound
from capstore.service.audit import Audit
from capstore.service.audit_file import AuditFile, AuditStream
from capstore.service.client import connect
from tests.service.observed import ListSink, observed

pytestmark = pytest.mark.anyio


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbered(first: int, count: int) -> list[bytes]:
    return [b'{"n":%d}\n' % number for number in range(first, first + count)]


def test_a_file_is_rotated_by_its_size_and_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    file = AuditFile(path, size_max=100, keep=3)
    for first in range(0, 1000, 10):
        assert file.write(numbered(first, 10)) == (10, None)
    file.close()
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["audit", "audit.1", "audit.2", "audit.3"]
    kept = [line["n"] for name in reversed(names) for line in lines_in(tmp_path / name)]
    assert kept == list(range(kept[0], 1000))
    for name in names:
        assert (tmp_path / name).stat().st_size <= 100
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_file_without_a_bound_is_left_to_others_and_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    file = AuditFile(path, size_max=0, keep=8)
    file.write(numbered(0, 1000))
    path.rename(tmp_path / "moved")
    file.write(numbered(1000, 1))
    file.reopen()
    file.write(numbered(1001, 1))
    file.close()
    assert len(lines_in(tmp_path / "moved")) == 1001
    assert lines_in(path) == [{"n": 1001}]


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    for number in range(3):
        file = AuditFile(tmp_path / "audit", size_max=1000, keep=1)
        file.write(numbered(number, 1))
        file.close()
    assert [line["n"] for line in lines_in(tmp_path / "audit")] == [0, 1, 2]


def test_a_file_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='"audit"'):
        AuditFile(tmp_path / "missing" / "audit", size_max=0, keep=1)


# A file may have so many bytes; SIGXFSZ is ignored, as Python has it.
_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from capstore.service.audit_file import AuditFile
file = AuditFile(Path(sys.argv[1]), size_max=0, keep=1)
lines = [b'{"n":%d}\\n' % number for number in range(1000, 1100)]
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
first = file.write(lines)
second = file.write(lines)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
third = file.write(lines)
print([(count, error and error.errno) for count, error in (first, second, third)])
"""


def test_a_file_on_a_full_disk_is_cut_behind_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(path)], capture_output=True, check=True
    )
    # 100 lines of 11 bytes fit, another 100 do not.
    assert done.stdout == b"[(100, None), (0, 27), (100, None)]\n"
    assert [line["n"] for line in lines_in(path)] == [*range(1000, 1100)] * 2


def test_a_stream_is_written_in_order() -> None:
    reader, writer = os.pipe()
    try:
        assert AuditStream(writer).write(numbered(0, 3)) == (3, None)
        assert os.read(reader, 1000) == b"".join(numbered(0, 3))
    finally:
        os.close(writer)
        os.close(reader)


async def test_sighup_has_the_file_opened_anew_at_once(tmp_path: Path) -> None:
    sink = ListSink()
    audit = Audit(sink)
    audit.reopen()
    while not sink.reopened:
        await asyncio.sleep(0)
    await audit.close()
    assert sink.reopened == 1


async def test_what_waits_is_written_at_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = Audit(AuditFile(path, size_max=0, keep=1))
    async with observed({"m": await MemoryVolume.open()}, audit) as served:
        async with connect(served.unix["m"]) as root:
            await root.stat()
    assert [line["method"] for line in lines_in(path)][-1] == "stat"
