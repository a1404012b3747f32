"""Tar archives that other tools made are shown as they were packed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice
from capstore.images.tar import index_tar
from capstore.schema.nodes import NodeKind, Provenance
from tests.images.archives import SECOND, Served, plant, planted, run, serve, shown
from tests.images.trees import read_all

TAR = Provenance.TAR_HEADER


def tar(raw: bytes | BlockDevice) -> Served:
    return serve(raw, index_tar)


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_gnu_tar(form: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    plant(root, long=form not in ("v7", "ustar"))
    if form == "v7":
        os.unlink(root / "pipe")
    run("tar", f"--format={form}", "--numeric-owner", "-C", root, "-cf", "a.tar", ".", cwd=tmp_path)
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert shown(served) == planted(root, TAR, unit=1 if form == "posix" else SECOND)
    assert served.node("hard") == served.node("d/a.txt") == served.node("z hard")
    assert served.tree.stat(served.node("hard")).link_count == 3


@pytest.mark.parametrize("form", ["ustar", "pax", "gnutar"])
def test_bsdtar(form: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    plant(root, long=form != "ustar")
    run("bsdtar", "--format", form, "-C", root, "-cf", "a.tar", ".", cwd=tmp_path)
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert shown(served) == planted(root, TAR, unit=1 if form == "pax" else SECOND)
    assert served.node("hard") == served.node("d/a.txt")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile(form: int, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    # tarfile computes with floating-point times.
    plant(root, long=form != tarfile.USTAR_FORMAT, whole_seconds=True)
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        archive.add(root, arcname=".")
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert shown(served) == planted(root, TAR, unit=SECOND)


def test_a_ustar_prefix(tmp_path: Path) -> None:
    deep = tmp_path / "t" / ("p" * 90) / ("q" * 60)
    deep.mkdir(parents=True)
    (deep / "name").write_bytes(b"content")
    run("tar", "--format=ustar", "-C", "t", "-cf", "a.tar", ".", cwd=tmp_path)
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert served.paths()["p" * 90 + "/" + "q" * 60 + "/name"] == b"content"


def holes(path: Path, pieces: dict[int, bytes], size: int) -> None:
    with path.open("wb") as stream:
        for offset, piece in pieces.items():
            stream.seek(offset)
            stream.write(piece)
        stream.truncate(size)


SPARSE = [
    ["--format=gnu"],
    ["--format=oldgnu"],
    *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")),
]


@pytest.mark.parametrize("options", SPARSE, ids=lambda options: "".join(options)[9:])
def test_sparse_members_of_gnu_tar(options: list[str], tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    # More regions than the old header holds, then more than its first extension does.
    many = {number * 65_536: b"%05d" % number * 300 for number in range(40)}
    holes(root / "many", many, 41 * 65_536)
    holes(root / "first", {0: b"start"}, 1_000_000)
    holes(root / "last", {999_000: b"end" * 100}, 999_300)
    holes(root / "all", {}, 5_000_000)
    holes(root / ("l" * 150), {500_000: b"long"}, 600_000)
    (root / "dense").write_bytes(b"dense")
    run("tar", *options, "--sparse", "-C", root, "-cf", "a.tar", ".", cwd=tmp_path)
    raw = (tmp_path / "a.tar").read_bytes()
    served = tar(raw)
    assert served.findings == []
    assert shown(served) == planted(root, TAR, unit=1 if "posix" in options[0] else SECOND)
    assert len(raw) < 1_000_000


def test_sparse_members_of_bsdtar(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    holes(root / "file", {65_536: b"x" * 5000, 1 << 20: b"end"}, 2 << 20)
    run("bsdtar", "--format", "pax", "-C", root, "-cf", "a.tar", ".", cwd=tmp_path)
    served = tar((tmp_path / "a.tar").read_bytes())
    assert shown(served) == planted(root, TAR)


@pytest.mark.parametrize("options", SPARSE, ids=lambda options: "".join(options)[9:])
def test_a_sparse_member_of_60_gigabytes(options: list[str], tmp_path: Path) -> None:
    size = 60 << 30
    holes(tmp_path / "disk", {0: b"boot", 40 << 30: b"middle" * 1000}, size)
    run("tar", *options, "--sparse", "-cf", "a.tar", "disk", cwd=tmp_path)
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    content = served.tree.content(served.node("disk"))
    assert content.size == size
    for offset, expected in [(0, b"boot\0\0"), (40 << 30, b"middle"), (size - 6, bytes(6))]:
        view = bytearray(b"?" * 6)
        assert content.read_into(offset, memoryview(view)) == 6
        assert bytes(view) == expected


def test_times_before_1970_and_beyond_octal(tmp_path: Path) -> None:
    times = {
        "old": -1_500_000_000,
        "older": -2 * SECOND,
        "late": (8**11 + 5) * SECOND,
    }
    for name, mtime in times.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, ns=(mtime, mtime))
    for form, unit in (("gnu", SECOND), ("posix", 1)):
        run("tar", f"--format={form}", "-cf", "a.tar", *times, cwd=tmp_path)
        served = tar((tmp_path / "a.tar").read_bytes())
        assert served.findings == []
        for name in times:
            mtime = (tmp_path / name).stat().st_mtime_ns
            assert served.tree.stat(served.node(name)).modified == mtime // unit * unit


def test_a_member_over_8_gibibytes(tmp_path: Path) -> None:
    """Its size is in base 256 or in a pax header; the archive is a file with a hole."""
    size = (8 << 30) + 1000
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("huge")
        info.size = size
        after = tarfile.TarInfo("after")
        after.size = 5
        path = tmp_path / "a.tar"
        with path.open("wb") as stream:
            stream.write(info.tobuf(form))
            start = stream.tell()
            stream.seek(start + size + -size % 512)
            stream.write(after.tobuf(form) + b"after".ljust(512, b"\0") + bytes(1024))
        device = FileDevice.open(path)
        served = tar(device)
        assert served.findings == []
        assert served.tree.stat(served.node("huge")).size == size
        assert read_all(served.tree.content(served.node("after"))) == b"after"
        device.close()


def test_the_last_member_of_a_name_wins(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for content in (b"one", b"second"):
            info = tarfile.TarInfo("./a//b")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("/abs/"))
        info = tarfile.TarInfo("a")
        info.type, info.mtime = tarfile.DIRTYPE, 77
        archive.addfile(info)
    served = tar(stream.getvalue())
    assert served.findings == []
    assert served.paths() == {
        "a": NodeKind.DIRECTORY,
        "a/b": b"second",
        "abs": NodeKind.DIRECTORY,
    }
    assert served.tree.stat(served.node("a")).modified == 77 * SECOND


def test_incremental_and_labelled_archives(tmp_path: Path) -> None:
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "f").write_bytes(b"f")
    run(
        *("tar", "--format=gnu", "-g", "snap", "--label=a volume", "-cf", "a.tar", "t"),
        cwd=tmp_path,
    )
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert served.paths() == {
        "t": NodeKind.DIRECTORY,
        "t/d": NodeKind.DIRECTORY,
        "t/d/f": b"f",
    }


def test_volumes_of_a_multi_volume_archive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 15_000)
    (tmp_path / "b").write_bytes(b"b")
    run(
        *("tar", "--format=gnu", "-M", "-L", "10", "-cf", "1.tar", "-f", "2.tar", "a", "b"),
        cwd=tmp_path,
    )
    first = tar((tmp_path / "1.tar").read_bytes())
    assert "the archive ends before the file does" in str(first.paths()["a"])
    second = tar((tmp_path / "2.tar").read_bytes())
    assert second.paths() == {"b": b"b"}
    assert [finding.message for finding in second.findings] == ["its type M is not supported"]


def test_global_headers(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    (tmp_path / "g").write_bytes(b"g")
    run(
        *("tar", "--format=posix", "--pax-option=globexthdr.name=x,mtime=123.5,comment=hello"),
        *("-cf", "a.tar", "f", "g"),
        cwd=tmp_path,
    )
    served = tar((tmp_path / "a.tar").read_bytes())
    assert served.findings == []
    assert served.paths() == {"f": b"f", "g": b"g"}


@pytest.mark.parametrize("raw", [b"", bytes(512), bytes(1024), bytes(10_240)], ids=len)
def test_empty_archives(raw: bytes) -> None:
    assert tar(raw).paths() == {}
