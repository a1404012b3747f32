"""Read-only images of every format, for the suite's read half and refusal half.

Each image is made by a tool that is not ours where there is one, and opened by its specification.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from capstore.backers.spec import open_volume
from capstore.images.builder import Facts, TreeBuilder
from capstore.images.devices import FileDevice
from capstore.images.ro1_build import Ro1Builder
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.contract.faults import DelayedDirectory, Delays
from tests.contract.harness import LONG, READERS, Harness, Link, ReaderFactory, Tree
from tests.images.fatimages import fill, make
from tests.service.inprocess import serving

# Makes an image of what is in the folder `tree` of a folder; returns the specification.
Maker = Callable[[Path], str]


def unpack(folder: Path, tree: Tree, *, symlinks: bool = True) -> None:
    """Makes `tree` in `folder`."""
    for name, what in tree.items():
        if isinstance(what, bytes):
            (folder / name).write_bytes(what)
        elif not isinstance(what, Link):
            (folder / name).mkdir()
            unpack(folder / name, what, symlinks=symlinks)
        elif symlinks:
            (folder / name).symlink_to(what.target)


def _push(builder: TreeBuilder, path: tuple[str, ...], tree: Tree) -> None:
    builder.directory(path, Facts())
    for name, what in tree.items():
        below = (*path, name)
        if isinstance(what, bytes):
            builder.begin_file(below, Facts(), len(what))
            builder.write(what)
            builder.end_file()
        elif isinstance(what, Link):
            builder.symlink(below, Facts(), what.target)
        else:
            _push(builder, below, what)


def _run(*command: str | Path, cwd: Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, input=stdin, capture_output=True, check=True
    ).stdout


def _tar(*options: str) -> Maker:
    def make_tar(folder: Path) -> str:
        _run("tar", "-cf", folder / "image", *options, "-C", folder / "tree", ".", cwd=folder)
        return f"tar:{folder / 'image'}"

    return make_tar


def _cpio(form: str) -> Maker:
    def make_cpio(folder: Path) -> str:
        tree = folder / "tree"
        names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        raw = _run("cpio", "-o0", "--quiet", "-H", form, cwd=tree, stdin=names.encode())
        (folder / "image").write_bytes(raw)
        return f"cpio:{folder / 'image'}"

    return make_cpio


def _fat(kind: str, kib: int) -> Maker:
    def make_fat(folder: Path) -> str:
        image = make(folder / "image", kib, "-F", kind)
        fill(image, folder / "tree")
        return f"fat:{image}"

    return make_fat


@asynccontextmanager
async def _image(maker: Maker, tree: Tree, *, symlinks: bool) -> AsyncIterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        unpack(folder / "tree", tree, symlinks=symlinks)
        yield folder, maker(folder)


def _in_process(maker: Maker, *, symlinks: bool = True) -> ReaderFactory:
    @asynccontextmanager
    async def factory(tree: Tree) -> AsyncIterator[Harness]:
        async with _image(maker, tree, symlinks=symlinks) as (folder, spec):
            volume = await open_volume(spec, cache=folder / "cache")
            yield Harness(volume.root, symlinks=symlinks)
            await volume.close()

    return factory


def _over_rpc(maker: Maker, *, symlinks: bool = True) -> ReaderFactory:
    @asynccontextmanager
    async def factory(tree: Tree) -> AsyncIterator[Harness]:
        async with _image(maker, tree, symlinks=symlinks) as (folder, spec):
            volume = await open_volume(spec)
            async with (
                serving({"v": volume}, folder=folder, tls=False) as served,
                connect(served.unix["v"]) as root,
            ):
                assert isinstance(root, Directory)
                yield Harness(root, symlinks=symlinks)

    return factory


def _delayed(factory: ReaderFactory) -> ReaderFactory:
    def slow(tree: Tree) -> AbstractAsyncContextManager[Harness]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Harness]:
            async with factory(tree) as harness:
                yield replace(harness, root=DelayedDirectory(harness.root, Delays()))

        return opened()

    return slow


@asynccontextmanager
async def _ro1(tree: Tree) -> AsyncIterator[Harness]:
    """Built straight from the tree, without a host directory between."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as name:
        image = Path(name) / "image"
        device = FileDevice.open(image, create=True)
        builder = Ro1Builder(device)
        _push(builder, (), tree)
        builder.finish()
        device.close()
        volume = await open_volume(f"ro1:{image}")
        yield Harness(volume.root)
        await volume.close()


def _ro1_maker(folder: Path) -> str:
    device = FileDevice.open(folder / "image", create=True)
    builder = Ro1Builder(device)
    _push(builder, (), _tree_at(folder / "tree"))
    builder.finish()
    device.close()
    return f"ro1:{folder / 'image'}"


def _tree_at(folder: Path) -> Tree:
    found: dict[str, bytes | Link | Tree] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            found[path.name] = Link(str(path.readlink()))
        else:
            found[path.name] = _tree_at(path) if path.is_dir() else path.read_bytes()
    return found


READERS["ro1"] = _ro1
READERS["rpc-ro1"] = _over_rpc(_ro1_maker)
READERS["ro1+delay"] = _delayed(_ro1)
for _form in ("v7", "oldgnu", "gnu", "ustar", "posix"):
    READERS[f"tar-{_form}"] = _in_process(_tar(f"--format={_form}"))
for _option in ("--gzip", "--bzip2", "--xz", "--zstd"):
    READERS[f"tar{_option}"] = _in_process(_tar(_option))
READERS["rpc-tar"] = _over_rpc(_tar())
READERS["rpc-tar--gzip"] = _over_rpc(_tar("--gzip"))
READERS["tar--gzip+delay"] = _delayed(READERS["tar--gzip"])
for _form in ("newc", "crc", "odc"):
    READERS[f"cpio-{_form}"] = _in_process(_cpio(_form))
READERS["rpc-cpio"] = _over_rpc(_cpio("newc"))
READERS["cpio-crc+delay"] = _delayed(READERS["cpio-crc"])
for _bits, _kib in (("12", 1440), ("16", 16_000), ("32", 40_000)):
    READERS[f"fat{_bits}"] = _in_process(_fat(_bits, _kib), symlinks=False)
READERS["rpc-fat"] = _over_rpc(_fat("12", 1440), symlinks=False)
READERS["fat12+delay"] = _delayed(READERS["fat12"])
# Other ways to write the same, which the engines' own tests have, too.
LONG |= {"tar-oldgnu", "tar-ustar", "tar--bzip2", "tar--xz", "cpio-odc", "fat16"}
