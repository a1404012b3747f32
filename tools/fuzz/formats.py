"""The formats that are fuzzed: what a corpus is made of, how an image is damaged, opened, asked.

Invariants: a question about damaged bytes knows what the original showed, and demands the same
wherever the format has a checksum that the damage cannot have kept.
"""

from __future__ import annotations

import contextlib
import os
import random
import tarfile
from functools import cache
from pathlib import Path
from typing import Final

from capstore.images.compressed import CompressedDevice, open_compressed
from capstore.images.devices import MemoryDevice
from capstore.images.formats import format_of, open_image
from capstore.images.indexfile import index_path
from capstore.images.partitions import partitions
from capstore.images.tree import ImageTree
from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import MIB, PARTITIONS_MAX
from capstore.tools.fuzz import corpus, disks, forge, seals
from capstore.tools.fuzz.case import Ask, Format, Subject
from capstore.tools.fuzz.check import DAMAGE, Seen, Truth, Walk, check_message, demand
from capstore.tools.fuzz.draft import MUTATORS, Original

# Indices are believed by the archive's time.
_MTIME_NS: Final = 1_700_000_000 * 10**9
_DEVICE_BYTES_MAX: Final = 4 * MIB


def walked(
    tree: ImageTree, size: int, subject: Subject, truth: Truth | None = None, *, keep: bool = False
) -> Seen:
    """Asks the open `tree` everything, and closes it."""
    try:
        return Walk(
            tree, size, subject.rng, truth=truth, keep=keep, host_path=str(subject.folder)
        ).run()
    finally:
        tree.close()


def _truth_of(original: Original, kind: str, folder: Path) -> Truth:
    """What the original shows."""
    subject = Subject(original, original.data, intact=True, rng=random.Random(0), folder=folder)  # noqa: S311
    path = subject.write("original")
    seen = walked(open_image(path, scheme=kind), len(original.data), subject, keep=True)
    demand(seen.is_clean and seen.complete, f"{kind}: {original.name} is no good original")
    return seen.truth


_truths: dict[tuple[str, bytes], Truth] = {}


def truth_of(original: Original, kind: str, folder: Path) -> Truth:
    """What the original shows; found out once."""
    key = (kind, original.data)
    if key not in _truths:
        _truths[key] = _truth_of(original, kind, folder)
    return _truths[key]


# Trees --------------------------------------------------------------------------------------------


def _ask_tree(kind: str, *, sealed: bool = False) -> Ask:
    """The question about an image of `kind`; `sealed` says that checksums cover everything."""

    def ask(subject: Subject) -> Seen:
        path = subject.write()
        _sniff(path)
        truth = None
        if sealed and subject.intact:
            truth = truth_of(subject.original, kind, subject.folder)
        return walked(open_image(path, scheme=kind), len(subject.data), subject, truth)

    return ask


def _sniff(path: Path) -> None:
    """What a file looks like is answered or refused."""
    try:
        format_of(path)
    except DAMAGE as error:
        check_message(error, str(path.parent))


def ask_cpio(subject: Subject) -> Seen:
    """As of any archive; one byte that was changed in the content of a crc archive is noticed."""
    path = subject.write()
    _sniff(path)
    truth = None
    if subject.original.name == "crc" and subject.intact and _is_one_content_byte(subject):
        truth = truth_of(subject.original, "cpio", subject.folder)
    return walked(open_image(path, scheme="cpio"), len(subject.data), subject, truth)


def _is_one_content_byte(subject: Subject) -> bool:
    """Whether one byte differs, and is content (headers have no checksum)."""
    before = subject.original.data
    if len(before) != len(subject.data):
        return False
    changed = [at for at, (a, b) in enumerate(zip(before, subject.data, strict=True)) if a != b]
    contents = truth_of(subject.original, "cpio", subject.folder).contents.values()
    places = [(before.find(one), len(one)) for one in contents if len(one) > 4]
    return len(changed) == 1 and any(at <= changed[0] < at + size for at, size in places)


def ask_partitions(subject: Subject) -> Seen:
    """The table, and the volume in each of the first partitions."""
    found = partitions(MemoryDevice(subject.data, read_only=True))
    numbers = [one.number for one in found]
    demand(len(found) <= PARTITIONS_MAX + 4, f"{len(found)} partitions")
    demand(numbers == sorted(set(numbers)), f"the partitions {numbers}")
    demand(all(one.start >= 0 and one.length >= 0 for one in found), f"{found}")
    demand(all(one.name.isprintable() or one.name.encode() for one in found), f"{found}")
    original = subject.original.data
    if subject.original.name == "gpt" and subject.intact and subject.data[:512] == original[:512]:
        demand(found == partitions(MemoryDevice(original)), "the GPT is believed, and is wrong")
    path = subject.write()
    _sniff(path)
    seen = Seen()
    for part in (None, *numbers[:4], 99):
        try:
            tree = open_image(path, scheme="fat", part=part)
        except (InvalidArgument, *DAMAGE) as error:
            check_message(error, str(subject.folder))
            seen.broken_contents += part is not None and part != 99
            continue
        one = walked(tree, len(subject.data), subject)
        seen.findings += one.findings
    return seen


# Compressed files ---------------------------------------------------------------------------------


@cache
def _content_of(data: bytes) -> bytes:
    device = open_compressed(MemoryDevice(data))
    try:
        return device.read(0, device.size())
    finally:
        device.close()


def ask_compressed(subject: Subject) -> Seen:
    """The content as a device, again by its seek points, and as an archive if it is one."""
    path = subject.write()
    _sniff(path)
    size_max = len(_content_of(subject.original.data)) + _DEVICE_BYTES_MAX
    device = open_compressed(path, content_bytes_max=size_max)
    try:
        whole = _check_device(subject, device)
        points = device.export_points()
        damage = device.damage
    finally:
        device.close()
    again = open_compressed(path, points=points)
    try:
        demand(_read_device(again, subject.rng) == device_bytes(whole), "by its points it differs")
        demand(again.damage == damage, "by its points it is damaged in another way")
    finally:
        again.close()
    if subject.original.name != "tar":
        return Seen(findings=damage is not None)
    truth = None
    if _is_checked(subject) and whole == _content_of(subject.original.data):
        truth = truth_of(subject.original, "tar", subject.folder)
    return walked(open_image(path, scheme="tar"), len(subject.data), subject, truth)


def device_bytes(whole: bytes) -> bytes:
    """As much of the content as is compared."""
    return whole[:_DEVICE_BYTES_MAX]


def _check_device(subject: Subject, device: CompressedDevice) -> bytes:
    """The content, whose verified part must be what it was."""
    demand(0 <= device.verified <= device.size(), "more is verified than there is")
    whole = device.read(0, min(device.size(), 2 * _DEVICE_BYTES_MAX))
    demand(device_bytes(whole) == _read_device(device, subject.rng), "read in two ways")
    if _is_checked(subject):
        original = _content_of(subject.original.data)
        demand(original.startswith(whole[: device.verified]), "verified bytes are wrong")
    return whole


# Originals of which checksums do not cover all: lengths of skippable frames have none.
_UNCHECKED: Final = ("unchecked", "skippable")
_ZST_MAGIC: Final = b"\x28\xb5\x2f\xfd"


def _is_checked(subject: Subject) -> bool:
    """Whether the format's checksums must have noticed the damage."""
    if not subject.intact or subject.original.name in _UNCHECKED:
        return False
    # A descriptor of a zstd frame has no checksum, and says whether the frame has one.
    original, at = subject.original.data, -1
    if not original.startswith(_ZST_MAGIC):
        return True
    while (at := original.find(_ZST_MAGIC, at + 1)) >= 0:
        if original[at + 4 : at + 5] != subject.data[at + 4 : at + 5]:
            return False
    return True


def _read_device(device: CompressedDevice, rng: random.Random) -> bytes:
    """The content in pieces, from the last to the first."""
    size = min(device.size(), _DEVICE_BYTES_MAX)
    step = rng.choice((1000, 65_536, MIB)) if size < 100_000 else MIB
    pieces = [device.read(at, min(step, size - at)) for at in reversed(range(0, size, step))]
    for at in (-1, device.size(), 1 << 64):
        with contextlib.suppress(InvalidArgument):
            device.read(at, 1)
            demand(False, "bytes outside of the device are read")
    return b"".join(reversed(pieces))


# The index of an archive --------------------------------------------------------------------------


@cache
def _archives() -> dict[str, bytes]:
    tar = corpus.tar_of(corpus.TREE, tarfile.PAX_FORMAT)
    long = corpus.tar_of({**corpus.TREE, "long": corpus.LONG_CONTENT}, tarfile.PAX_FORMAT)
    crc = next(one.data for one in corpus.cpios() if one.name == "crc")
    return {
        "pax.tar": tar,
        "tar.gz": corpus.gz(long, 1),
        "tar.xz": corpus.xz(tar),
        "crc.cpio": crc,
        "cut.tar": tar[:-2000],
    }


def _archive_path(folder: Path, name: str) -> tuple[Path, str]:
    """The archive, with the time that its index goes by, and its kind."""
    path = folder / name
    if not path.exists():
        path.write_bytes(_archives()[name])
        os.utime(path, ns=(_MTIME_NS, _MTIME_NS))
    return path, "cpio" if name.endswith("cpio") else "tar"


def indices() -> list[Original]:
    """The indices of a few archives."""
    import tempfile

    originals: list[Original] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in _archives():
            path, kind = _archive_path(folder, name)
            open_image(path, scheme=kind, cache=folder / "cache").close()
            data = index_path(folder / "cache", path, kind).read_bytes()
            fields = corpus.index_fields(data)
            originals.append(Original(name, data, fields))
    return originals


def ask_index(subject: Subject) -> Seen:
    """The archive by its index; where the index cannot be used, it is as if it were not there."""
    path, kind = _archive_path(subject.folder, subject.original.name)
    cache_folder = subject.folder / "cache"
    cache_folder.mkdir(exist_ok=True)
    kept = index_path(cache_folder, path, kind)
    kept.write_bytes(subject.data)
    truth, size = None, path.stat().st_size
    if subject.intact:
        plain = Original(subject.original.name, path.read_bytes())
        truth = _index_truth(plain, kind, subject)
    seen = walked(
        open_image(path, scheme=kind, cache=cache_folder), size + len(subject.data), subject, truth
    )
    demand(not subject.intact or not seen.broken_structures, "a damaged index damages the archive")
    return seen


def _index_truth(plain: Original, kind: str, subject: Subject) -> Truth:
    key = (kind, plain.data)
    if key not in _truths:
        tree = open_image(subject.folder / plain.name, scheme=kind)
        _truths[key] = walked(tree, len(plain.data), subject, keep=True).truth
    return _truths[key]


# The registry -------------------------------------------------------------------------------------

_TAR: Final = (*MUTATORS, *[forge.insert_tar_members] * 4, forge.rename_tar_member)
_CPIO: Final = (*MUTATORS, *[forge.insert_cpio_members] * 4)
_FAT: Final = (*MUTATORS, *[forge.link_clusters, forge.change_entry] * 2, forge.copy_entry)
_FIELDS: Final = (*MUTATORS, forge.set_fields, forge.set_fields)

FORMATS: Final[dict[str, Format]] = {
    "ro1": Format(corpus.ro1s, _ask_tree("ro1", sealed=True), seals.seal_ro1, _FIELDS),
    "tar": Format(corpus.tars, _ask_tree("tar"), seals.seal_tar, _TAR),
    "cpio": Format(corpus.cpios, ask_cpio, seals.seal_cpio, _CPIO),
    "fat": Format(disks.fats, _ask_tree("fat"), seals.seal_fat, _FAT),
    "gz": Format(corpus.gzs, ask_compressed, seals.seal_gz),
    "bz2": Format(corpus.bz2s, ask_compressed),
    "xz": Format(corpus.xzs, ask_compressed, seals.seal_xz),
    "zst": Format(corpus.zsts, ask_compressed),
    "index": Format(indices, ask_index, seals.seal_index, _FIELDS),
    "partitions": Format(disks.disks, ask_partitions, seals.seal_gpt, _FIELDS),
}
