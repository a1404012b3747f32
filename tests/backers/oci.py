"""OCI image layers applied by the rules of their specification, with nothing of capstore's.

Trees of the host and of nodes are compared as dictionaries: a path's kind, content or target,
executable bit, time, and the first of the names that its node has.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from capstore.backers.node import DirectoryNode, NodeKind, Stat
from capstore.schema.nodes import Provenance
from tests.contract.harness import content_of, entries_of

OPAQUE = ".wh..wh..opq"


class Thing(NamedTuple):
    """What is at a path; `node` is the first path of the same node."""

    kind: str
    content: bytes
    executable: bool
    modified: int
    node: str


Things = dict[str, Thing]


# On the host --------------------------------------------------------------------------------------


def on_host(root: Path) -> Things:
    """The tree of a directory."""
    found: Things = {}
    nodes: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"), key=lambda path: os.fsencode(path))]:
        name = str(path.relative_to(root))
        status = path.lstat()
        kind, content = "directory", b""
        if path.is_symlink():
            kind, content = "symlink", os.fsencode(os.readlink(path))
        elif path.is_file():
            kind, content = "file", path.read_bytes()
        executable = kind == "file" and bool(status.st_mode & 0o100)
        node = nodes.setdefault(status.st_ino, name)
        found[name] = Thing(kind, content, executable, status.st_mtime_ns, node)
    return found


def apply(layer: Path, root: Path) -> None:
    """Applies a layer to the tree of a directory."""
    with tarfile.open(layer) as archive:
        members = archive.getmembers()
        entries = [one for one in members if not os.path.basename(one.name).startswith(".wh.")]
        # A mark is about what was there before, wherever it stands.
        for member in members:
            if member not in entries:
                assert member.isreg()
                assert member.size == 0
                _hide(root / os.path.dirname(member.name), os.path.basename(member.name))
        for member in entries:
            _apply(archive, member, root)
    for member in reversed(entries):
        if not member.islnk():
            time = int(Decimal(member.pax_headers.get("mtime", member.mtime)) * 10**9)
            os.utime(root / member.name, ns=(time, time), follow_symlinks=False)


def _hide(directory: Path, mark: str) -> None:
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    for name in names if mark == OPAQUE else {mark.removeprefix(".wh.")}:
        _remove(directory / name)


def _apply(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = root / member.name
    if os.path.lexists(path) and not (member.isdir() and path.is_dir() and not path.is_symlink()):
        _remove(path)
    if member.isdir():
        path.mkdir(exist_ok=True)
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        os.link(root / member.linkname, path, follow_symlinks=False)
    else:
        content = archive.extractfile(member)
        assert content is not None
        path.write_bytes(content.read())
        path.chmod(member.mode)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


# Of nodes -----------------------------------------------------------------------------------------


async def of_nodes(root: DirectoryNode) -> Things:
    """The tree of a directory of nodes."""
    nodes: dict[int, str] = {}
    found = {".": _thing(await root.stat(), b"", ".", nodes)}
    await _of_nodes(root, (), found, nodes)
    return found


async def _of_nodes(
    directory: DirectoryNode, above: Sequence[str], found: Things, nodes: dict[int, str]
) -> None:
    for entry in await entries_of(directory):
        path = (*above, entry.name)
        content = (entry.target or "").encode()
        if entry.stat.kind is NodeKind.FILE:
            content = await content_of(directory, entry.name)
        found["/".join(path)] = _thing(entry.stat, content, "/".join(path), nodes)
        if entry.stat.kind is NodeKind.DIRECTORY:
            await _of_nodes(await directory.sub(entry.name), path, found, nodes)


def _thing(stat: Stat, content: bytes, path: str, nodes: dict[int, str]) -> Thing:
    modified = 0 if stat.provenance is Provenance.UNKNOWN else stat.modified
    node = nodes.setdefault(stat.node_id, path)
    return Thing(stat.kind.value, content, stat.executable, modified, node)


def in_order(things: Things) -> list[tuple[str, Thing]]:
    """A tree in an order of its own, with nodes called by their first names in it."""
    nodes: dict[str, str] = {}
    ordered = sorted(things.items(), key=lambda item: item[0].removeprefix("."))
    return [(path, one._replace(node=nodes.setdefault(one.node, path))) for path, one in ordered]


def lay_out(things: Things, root: Path) -> None:
    """Makes a tree on the host."""
    for path, thing in in_order(things):
        at = root / path
        if thing.node != path:
            os.link(root / thing.node, at, follow_symlinks=False)
        elif thing.kind == "directory":
            at.mkdir()
        elif thing.kind == "symlink":
            at.symlink_to(thing.content.decode())
        else:
            at.write_bytes(thing.content)
            at.chmod(0o755 if thing.executable else 0o644)
    for path, thing in reversed(in_order(things)):
        os.utime(root / path, ns=(thing.modified, thing.modified), follow_symlinks=False)


# Images -------------------------------------------------------------------------------------------


def image(place: Path, layers: Sequence[Path]) -> None:
    """An image of `layers`, the lowest first, called ``test``, at `place`
    (https://github.com/opencontainers/image-spec/blob/main/image-layout.md)."""
    (place / "blobs" / "sha256").mkdir(parents=True)
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    plain = [hashlib.sha256(layer.read_bytes()).hexdigest() for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in plain]},
        "history": [{"created_by": "test"} for _ in layers],
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": _blob(place, f"{kind}.config.v1+json", json.dumps(config).encode()),
        "layers": [_blob(place, f"{kind}.layer.v1.tar", layer.read_bytes()) for layer in layers],
    }
    entry = _blob(place, f"{kind}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "test"}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (place / "index.json").write_text(json.dumps(index))


def _blob(place: Path, kind: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (place / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def unpacked_by_umoci(place: Path, layers: Sequence[Path]) -> Path:
    """Where umoci has put the tree of an image of `layers`; `place` is a new directory."""
    image(place / "image", layers)
    rootless = ["--rootless"] if os.geteuid() else []
    command = ["umoci", "unpack", *rootless, "--image", f"{place / 'image'}:test"]
    subprocess.run([*command, place / "bundle"], check=True, capture_output=True)
    return place / "bundle" / "rootfs"


def names_by(program: Sequence[str], layer: Path) -> Iterator[str]:
    """The paths in an archive as another program lists them."""
    done = subprocess.run([*program, layer], check=True, capture_output=True)
    return iter(done.stdout.decode().splitlines())
