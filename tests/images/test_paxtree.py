"""The saved tree: what other tars make of it, and what becomes of archives that are not ours."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images import paxtree
from capstore.images.paxtree import Budget, Header, Member, MemberKind, read_tree, write_tree
from capstore.images.tar_pax import pax_record
from capstore.schema.errors import (
    Corrupt,
    NoSpace,
    StorageError,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from capstore.schema.nodes import Provenance

BUDGET = Budget(total_bytes_max=10_000_000, file_bytes_max=10_000_000, members_max=10_000)
VOLUME = bytes(range(16))
ROOT = Member(
    MemberKind.DIRECTORY, 1, 0, "", version=9, created=-1, modified=1_600_000_000_500_000_000
)
MEMBERS = [
    ROOT,
    Member(MemberKind.DIRECTORY, 2, 1, "d", version=3, modified=-1),
    Member(MemberKind.FILE, 3, 2, "é\n €", executable=True, size=3, linked=True, content=[b"abc"]),
    Member(MemberKind.LINK, 3, 1, "again"),
    Member(MemberKind.SYMLINK, 4, 1, "-l", target="../ö//x"),
    Member(MemberKind.FILE, 5, 2, "empty", modified=2**63 - 1, created=-(2**63)),
    Member(MemberKind.FILE, 6, 1, "big", size=200_001, content=[b"x" * 200_000, b"y"]),
]
MARKED = [
    replace(ROOT, origin=2**64 - 1, provenance=Provenance.UNKNOWN),
    Member(MemberKind.WHITEOUT, 0, 1, "gone"),
    Member(MemberKind.DIRECTORY, 2, 1, "d", opaque=True, redirect="a/\n é"),
    Member(MemberKind.WHITEOUT, 0, 2, "é" * 127 + "x"),
    Member(MemberKind.FILE, 3, 2, ".wh.gone", origin=5, below=2**63 - 1, linked=True),
    Member(MemberKind.LINK, 3, 1, "again"),
    Member(MemberKind.FILE, 4, 0, "", origin=6, below=1, size=3, content=[b"abc"]),
    Member(MemberKind.SYMLINK, 5, 0, "", target="x", provenance=Provenance.TAR_HEADER, below=1),
]


def archive(members: list[Member], count: int | None = None) -> bytes:
    stream = io.BytesIO()
    header = Header(VOLUME, 100, 200, len(members) if count is None else count)
    write_tree(stream, header, members)
    return stream.getvalue()


def load(raw: bytes, budget: Budget = BUDGET) -> list[Member]:
    _, members = read_tree(io.BytesIO(raw), budget)
    return [replace(member, content=[b"".join(member.content)]) for member in members]


def plain(member: Member) -> Member:
    """A member as it is read: its content in one piece, and what readers do not learn left out."""
    return replace(member, content=[b"".join(member.content)], linked=False)


@pytest.mark.parametrize("members", [MEMBERS, MARKED])
def test_what_was_written_is_read(members: list[Member]) -> None:
    raw = archive(members)
    header, _ = read_tree(io.BytesIO(raw), BUDGET)
    assert header == Header(VOLUME, 100, 200, len(members))
    assert load(raw) == [plain(member) for member in members]
    assert archive(members) == raw


def test_the_format_before_marks_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(paxtree, "FORMAT", 1)
        older = archive(MEMBERS)
    assert load(older) == [plain(member) for member in MEMBERS]


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
TIMES = st.integers(-(2**63), 2**63 - 1)


@given(
    NAMES, NAMES, TIMES, TIMES, st.integers(0, 2**63 - 1), st.binary(max_size=2000), st.booleans()
)
def test_any_name_time_and_content(
    directory: str, name: str, created: int, modified: int, version: int, data: bytes, bit: bool
) -> None:
    members = [
        ROOT,
        Member(MemberKind.DIRECTORY, 2, 1, directory, version, created, modified),
        Member(
            MemberKind.FILE, 3, 2, name, version, created, modified, bit, len(data), content=[data]
        ),
        Member(MemberKind.SYMLINK, 4, 2, name, version, created, modified, target=name),
    ]
    assert load(archive(members)) == [plain(member) for member in members]


# Oracles ----------------------------------------------------------------------------------------


def test_gnu_tar_agrees(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive(MEMBERS))
    listed = subprocess.run(
        ["tar", "--warning=no-unknown-keyword", "--quoting-style=literal", "-tf", path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert listed.stderr == ""
    assert listed.stdout == "./\n./d/\n./d/é\n €\n./again\n./-l\n./d/empty\n./big\n"
    subprocess.run(
        ["tar", "--warning=no-unknown-keyword", "-xf", path, "-C", tmp_path, "--exclude=./d/empty"],
        check=True,
    )
    assert (tmp_path / "d" / "é\n €").read_bytes() == b"abc"
    assert (tmp_path / "again").samefile(tmp_path / "d" / "é\n €")
    assert os.readlink(tmp_path / "-l") == "../ö//x"
    assert (tmp_path / "big").read_bytes() == b"x" * 200_000 + b"y"


def test_tarfile_agrees() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(MEMBERS))) as tar:
        found = {member.name: member for member in tar}
        assert list(found) == [".", "./d", "./d/é\n €", "./again", "./-l", "./d/empty", "./big"]
        assert found["./d/é\n €"].mode == 0o755
        assert found["./again"].linkname == "./d/é\n €"
        assert found["./-l"].linkname == "../ö//x"
        assert found["./big"].size == 200_001
        assert found["./d/empty"].pax_headers["mtime"] == "9223372036.854775807"
        assert found["./d"].pax_headers["mtime"] == "-0.000000001"
        assert found["."].pax_headers["CAPSTORE.volume"] == VOLUME.hex()


def test_a_file_over_8_gib() -> None:
    """Its size does not fit the old header.  The headers are looked at without the content."""
    size = 2**33 + 5
    raw = archive([ROOT, Member(MemberKind.FILE, 2, 1, "f", size=size)])
    with tarfile.open(fileobj=io.BytesIO(raw), ignore_zeros=True) as tar:
        tar.next()
        found = tar.next()
        assert found is not None
        assert found.size == size
    _, members = read_tree(io.BytesIO(raw), Budget(2**34, 2**34, 2))
    next(members)
    assert next(members).size == size


def test_whiteouts_are_empty_files_to_tarfile() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(MARKED))) as tar:
        found = {member.name: member for member in tar}
    long = "./d/.wh." + "é" * 125
    unnamed = ["./@unnamed/4", "./@unnamed/5"]
    assert list(found) == [".", "./.wh.gone", "./d", long, "./d/.wh.gone", "./again", *unnamed]
    for name in ("./.wh.gone", long):
        assert found[name].isreg()
        assert not found[name].size


# Deep trees -------------------------------------------------------------------------------------


def test_deep_paths_are_cut() -> None:
    members = [ROOT]
    for number in range(100):
        members.append(Member(MemberKind.DIRECTORY, number + 2, number + 1, "n" * 250))
    members.append(Member(MemberKind.FILE, 500, 101, "f" * 255))
    raw = archive(members)
    assert load(raw) == [plain(member) for member in members]
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 2500


# Refusals ---------------------------------------------------------------------------------------


def block(flag: bytes, payload: bytes, size: int | None = None) -> bytes:
    """A ustar header with what follows it, padded."""
    length = len(payload) if size is None else size
    return paxtree._ustar(flag, "x", length) + payload + bytes(-len(payload) % 512)


def member(keywords: dict[str, str], flag: bytes = b"0", content: bytes = b"") -> bytes:
    """A member with keywords of one's choice and a correct checksum."""
    complete = {
        "path": "./x",
        "mtime": "0.000000000",
        "CAPSTORE.node": "2",
        "CAPSTORE.parent": "1",
        "CAPSTORE.version": "0",
        "CAPSTORE.created": "0",
        **keywords,
    }
    return signed({key: value for key, value in complete.items() if value != "-"}, flag, content)


def whiteout(keywords: dict[str, str], content: bytes = b"") -> bytes:
    """A whiteout with keywords of one's choice and a correct checksum."""
    complete = {"path": "./.wh.x", "CAPSTORE.parent": "1", "CAPSTORE.name": "x", **keywords}
    return signed({key: value for key, value in complete.items() if value != "-"}, b"7", content)


def signed(keywords: dict[str, str], flag: bytes, content: bytes) -> bytes:
    payload = b"".join(pax_record(key, value.encode()) for key, value in keywords.items())
    head = paxtree._ustar(flag, "x", len(content))
    check = zlib.crc32(content, zlib.crc32(head, zlib.crc32(payload)))
    payload += pax_record("CAPSTORE.crc32", b"%08x" % check)
    return block(b"x", payload) + head + content + bytes(-len(content) % 512)


def whole(*members: bytes, count: int | None = None) -> bytes:
    """An archive of a root and `members`."""
    head = archive([ROOT], len(members) + 1 if count is None else count)[:-1024]
    return head + b"".join(members) + bytes(1024)


def test_the_forge_forges() -> None:
    (_, found, gone) = load(whole(member({}, content=b"abc"), whiteout({})))
    assert (found.name, found.size, found.content) == ("x", 3, [b"abc"])
    assert (gone.kind, gone.name) == (MemberKind.WHITEOUT, "x")


HOSTILE = {
    "absolute path": member({"path": "/etc/passwd"}),
    "upwards": member({"path": "./../x"}),
    "upwards in the end": member({"path": "./d/.."}),
    "no path": member({"path": "-"}),
    "bare path": member({"path": "x"}),
    "empty path": member({"path": ""}),
    "root below": member({"path": "./"}),
    "root of another name": member({"CAPSTORE.parent": "0"}),
    "nul in a path": member({"path": "./a\0b"}),
    "empty part": member({"path": "./a//b"}),
    "long name": member({"path": "./" + "x" * 256}),
    "name with a slash": member({"CAPSTORE.name": "a/b"}),
    "name that leads up": member({"CAPSTORE.name": ".."}),
    "empty name": member({"CAPSTORE.name": ""}),
    "its own parent": member({"CAPSTORE.node": "1"}),
    "node without id": member({"CAPSTORE.node": "0"}),
    "negative id": member({"CAPSTORE.node": "-2"}),
    "huge id": member({"CAPSTORE.node": str(2**64)}),
    "id of a million digits": member({"CAPSTORE.node": "9" * 10_000}),
    "id in other digits": member({"CAPSTORE.node": "٢"}),
    "id with a sign": member({"CAPSTORE.node": "+2"}),
    "id with an underscore": member({"CAPSTORE.node": "1_0"}),
    "time without fraction": member({"mtime": "5"}),
    "time that is not finite": member({"mtime": "inf"}),
    "time with exponent": member({"mtime": "1e9.000000000"}),
    "time out of range": member({"mtime": "9999999999.000000000"}),
    "unknown keyword": member({"comment": "hello"}),
    "gnu sparse": member({"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**62)}),
    "size that is not there": member({"size": "5000000"}),
    "size that is none": member({"size": "1.5"}),
    "negative size": member({"size": "-1"}),
    "link without target": member({}, b"2"),
    "link with an empty target": member({"linkpath": ""}, b"2"),
    "link with a nul": member({"linkpath": "a\0"}, b"2"),
    "link with a long target": member({"linkpath": "x" * 4096}, b"2"),
    "directory with content": member({}, b"5", b"x"),
    "link with content": member({"linkpath": "./y"}, b"1", b"x"),
    "device": member({}, b"3"),
    "fifo": member({}, b"6"),
    "gnu long name": member({}, b"L"),
    "old sparse": member({}, b"S"),
    "no pax header": paxtree._ustar(b"0", "x", 0),
    "further name without a place": member({"CAPSTORE.parent": "0", "linkpath": "./y"}, b"1"),
    "unnamed under another name": member({"CAPSTORE.parent": "0", "path": "./@unnamed/3"}),
    "whiteout of a name": member({"CAPSTORE.name": "x"}, b"7"),
    "whiteout without name": whiteout({"CAPSTORE.name": "-"}),
    "whiteout without place": whiteout({"CAPSTORE.parent": "0"}),
    "whiteout with content": whiteout({}, b"x"),
    "whiteout that leads up": whiteout({"CAPSTORE.name": ".."}),
    "whiteout with a mark": whiteout({"CAPSTORE.origin": "1"}),
    "half opaque": member({"CAPSTORE.opaque": "2"}, b"5"),
    "opaque in words": member({"CAPSTORE.opaque": "yes"}, b"5"),
    "empty mark": member({"CAPSTORE.origin": "0"}),
    "negative mark": member({"CAPSTORE.below": "-1"}),
    "huge origin": member({"CAPSTORE.origin": str(2**64)}),
    "huge count": member({"CAPSTORE.below": str(2**63)}),
    "unknown provenance": member({"CAPSTORE.provenance": "hearsay"}),
    "marks of a further name": member({"CAPSTORE.origin": "1", "linkpath": "./y"}, b"1"),
    "pax header twice": member({})[:1024] + member({}),
    "empty pax header": block(b"x", b""),
    "pax header of an impossible size": block(b"x", b"", 8**11 - 1),
    "record of no length": block(b"x", b"0 a=b\n" * 10),
    "record longer than its header": block(b"x", b"99 a=b\n" * 10),
    "record without value": block(b"x", b"6 abc\n" * 10),
    "record of many digits": block(b"x", b"9" * 500),
    "no utf-8": block(b"x", b"9 a=\xff\xfe\n" + b"27 CAPSTORE.crc32=00000000\n"),
    "repeated keyword": block(b"x", b"6 a=b\n6 a=b\n" + b"27 CAPSTORE.crc32=00000000\n"),
    "noise": random.Random(1).randbytes(1024),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members_are_corrupt(hostile: bytes) -> None:
    with pytest.raises(Corrupt):
        load(whole(hostile, count=2))


HEADERS = {
    "empty": b"",
    "zeros": bytes(10_240),
    "half a block": archive([ROOT])[:200],
    "only a header": archive([ROOT])[:1024],
    "fewer members than counted": whole(count=2),
    "more members than counted": whole(member({}), count=1),
    "something behind": archive([ROOT]) + b"x",
    "no end": archive([ROOT])[:-512],
    "text": b"hello world\n" * 1000,
}


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS)
def test_archives_that_are_not_whole_are_corrupt(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        load(raw)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_other_archives_are_refused(form: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers={"comment": "x"}) as tar:
        tar.addfile(tarfile.TarInfo("./"), None)
    with pytest.raises(Corrupt):
        load(stream.getvalue())


def test_a_newer_format_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(paxtree, "FORMAT", paxtree.FORMAT + 1)
        newer = archive([ROOT])
    with pytest.raises(Unsupported):
        load(newer)


@pytest.mark.parametrize("members", [MEMBERS[:5], MARKED])
def test_every_truncation_is_corrupt(members: list[Member]) -> None:
    raw = archive(members)
    for length in range(0, len(raw), 13):
        with pytest.raises(Corrupt):
            load(raw[:length])


@pytest.mark.parametrize("members", [MEMBERS[:5], MARKED])
def test_every_changed_bit_is_noticed(members: list[Member], stride: int) -> None:
    """Or is in a place that nobody reads, the padding of the pax header's own ustar header."""
    raw = archive(members)
    good = load(raw)
    generator = random.Random(0)
    for at in range(0, len(raw), stride):
        changed = bytearray(raw)
        changed[at] ^= 1 << generator.randrange(8)
        try:
            assert load(bytes(changed)) == good
        except (Corrupt, Unsupported, NoSpace):
            continue


@settings(max_examples=300)
@given(st.data())
def test_nothing_foreign_is_raised(data: st.DataObject) -> None:
    raw = bytearray(archive(data.draw(st.sampled_from([MEMBERS[:5], MARKED]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        # Make the header's own checksum right again, so that the damage is looked at.
        start = at // 512 * 512
        head = raw[start : start + 512]
        if len(head) == 512:
            total = sum(head) - sum(head[148:156]) + 256
            raw[start + 148 : start + 156] = b"%06o\0 " % total
    with suppress(StorageError):
        load(bytes(raw))


# Budgets ----------------------------------------------------------------------------------------

OVER: list[tuple[Callable[[Budget], Budget], type[StorageError]]] = [
    (lambda budget: replace(budget, file_bytes_max=200_000), TooLarge),
    (lambda budget: replace(budget, total_bytes_max=200_003), NoSpace),
    (lambda budget: replace(budget, members_max=6), NoSpace),
]


@pytest.mark.parametrize(("change", "error"), OVER)
def test_more_than_the_budget(
    change: Callable[[Budget], Budget], error: type[StorageError]
) -> None:
    raw = archive(MEMBERS)
    assert load(raw, Budget(200_004, 200_001, 7))
    with pytest.raises(error):
        load(raw, change(BUDGET))


def test_memory_is_bounded_whatever_sizes_are_claimed() -> None:
    claims = (8**11 - 1, 2**40, 2**62, 2**63 - 1)
    vast = Budget(2**63, 2**63, 10)
    tracemalloc.start()
    try:
        for claim in claims:
            with pytest.raises(Corrupt):
                load(whole(member({"size": str(claim)})), vast)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_content_that_is_skipped_is_noticed() -> None:
    _, members = read_tree(io.BytesIO(archive(MEMBERS)), BUDGET)
    with pytest.raises(Corrupt):
        list(members)


def test_a_device_that_fails() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "x", "/secret")

    with pytest.raises(StorageIOError) as caught:
        read_tree(Failing(), BUDGET)
    assert "secret" not in str(caught.value)
