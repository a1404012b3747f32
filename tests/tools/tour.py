"""A service of every kind of volume, and a walk through all that can be asked of it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from capstore.backers.node import Attributes, NodeKind, OpenFlags
from capstore.backers.store import Binding
from capstore.schema.errors import StorageError, Unsupported
from capstore.schema.limits import SPAN_BYTES_MAX
from capstore.service.client import Connection, open_connection
from capstore.service.grants import Policy
from capstore.service.remote import Directory
from capstore.service.remote_store import RemoteStore

LARGE = bytes(range(256)) * 8192
WRITABLE = ("memory", "saved", "dir", "wf1", "overlay", "osfs")
READABLE = ("tar", "xz", "dir-ro", "oci", "zip", "mounts")


def volumes_in(folder: Path) -> list[str]:
    """Specifications of one volume of every kind, with what they need made in `folder`."""
    for name in ("host", "host-ro", "osfs", "lower", "saved"):
        (folder / name).mkdir()
        (folder / name / "old").write_bytes(b"old")
    for name, mode in (("a.tar", "w"), ("a.tar.xz", "w:xz"), ("layer.tar", "w")):
        with tarfile.open(folder / name, mode) as archive:
            for inside in ("old", "zeros"):
                member = tarfile.TarInfo(inside)
                # One block of xz, too long to be kept: the service needs a place for it.
                member.size = 3 if inside == "old" else SPAN_BYTES_MAX + 1
                content = b"old" if inside == "old" else bytes(member.size)
                archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        packed.writestr("old", "old")
    return [
        "memory=memory:",
        f"saved=memory:{folder}/saved/file",
        f"dir=dir:{folder}/host",
        f"dir-ro=dir:{folder}/host-ro,ro",
        f"wf1=wf1:{folder}/a.wf1,create",
        f"st1=st1:{folder}/a.st1,create",
        f"tar=tar:{folder}/a.tar",
        f"xz=tar:{folder}/a.tar.xz",
        f"oci=oci:{folder}/layer.tar",
        f"zip=pyfs:zip://{folder}/a.zip",
        f"osfs=pyfs:osfs://{folder}/osfs",
        f"overlay=overlay:wf1:{folder}/upper.wf1,create+dir:{folder}/lower,ro",
        f"mounts=mounts:/=tar:{folder}/a.tar,/tmp=memory:",
    ]


def given(folder: Path) -> list[Path]:
    """The directories in which the service goes on opening what is asked for."""
    return [folder / name for name in ("host", "host-ro", "osfs", "lower", "saved")]


async def tour(lines: Sequence[str]) -> None:
    """Asks for everything, over each address that `lines`, those of the service, name."""
    uris = [line.split("\t") for line in lines]
    for scheme in ("insecure", "sha-256"):
        for name, uri in uris:
            if uri.startswith(f"capnp://{scheme}"):
                async with open_connection(uri) as connection:
                    await _visit(connection, name)


async def _visit(connection: Connection, name: str) -> None:
    root = await connection.root()
    if isinstance(root, RemoteStore):
        await _objects(connection, root)
        return
    assert isinstance(root, Directory)
    await _look(root)
    if name in WRITABLE:
        await _change(connection, root)
    try:
        token = await root.save("shared")
    except Unsupported:
        return
    await _shares(connection, token)


async def _look(root: Directory) -> None:
    page = await root.list()
    for entry in page.entries:
        found = await root.lookup(entry.name)
        if found.stat.kind is NodeKind.FILE:
            file = await root.open(entry.name)
            await file.read(0, 1000)
            await file.stat()
            await file.close()
    for broken in ("nothing", "..", "a/b", "\0"):
        try:
            await root.lookup(broken)
        except StorageError:
            continue
        raise AssertionError(broken)
    await root.usage()
    await (await root.read_only()).stat()


async def _change(connection: Connection, root: Directory) -> None:
    file = await root.create("new", executable=False)
    for offset in range(0, len(LARGE), 1 << 18):
        await file.write(offset, LARGE[offset : offset + (1 << 18)])
    await file.truncate(len(LARGE) - 1)
    await file.append(b"x")
    await file.sync()
    await file.set_attributes(Attributes(modified=1_700_000_000_000_000_000))
    await _if_supported(root.set_attributes(Attributes(executable=True), "new"))
    await file.close()
    below = await root.mkdir("below")
    await root.rename("new", below, "moved")
    await _if_supported(below.symlink("link", "moved"))
    await _if_supported(below.link("moved", root, "second"))
    await _if_supported(root.snapshot())
    again = await below.open("moved", OpenFlags.WRITE)
    assert bytes(await again.read(0, 4)) == LARGE[:4]
    await root.sync()
    await _if_supported(below.save("below"))
    narrowed = await below.attenuate(Policy(read_only=True), revocable=True)
    await narrowed.capability.list()
    for entry in (await below.list()).entries:
        await below.remove(entry.name)
    await root.remove("below")
    if "second" in [entry.name for entry in (await root.list()).entries]:
        await root.remove("second")
    changed = await root.open("old", OpenFlags.WRITE | OpenFlags.CREATE)
    await changed.append(b"er")
    await changed.close()
    await root.sync()


async def _if_supported(call: Awaitable[object]) -> None:
    with suppress(Unsupported):
        await call


async def _shares(connection: Connection, token: str) -> None:
    again = await connection.restore(token)
    assert isinstance(again, Directory)
    await again.list()
    control = await connection.reference(token)
    await control.list()
    await control.revoke((await control.status()).id)


async def _objects(connection: Connection, store: RemoteStore) -> None:
    for number in range(20):
        await store.put(LARGE[: number * 1000], b"key %d" % number)
    await store.put(LARGE)
    await store.put(LARGE, b"large")
    assert await store.get(b"large") == LARGE
    await store.list()
    for number in range(20):
        await store.delete(b"key %d" % number)
    await store.names.bind(Binding("name", hash=sha256(LARGE).digest()))
    await store.compact()
    await store.collect()
    await store.sync()
    await store.usage()
    await connection.reference(await store.save("store"))
