"""Layers of OCI images out of overlays and into them, and overlays made into images."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from capstore.backers.layers import open_layer
from capstore.backers.node import Attributes, DirectoryNode, OpenFlags, Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_compose import layer_to_read, viewed
from capstore.backers.overlay_view import open_to_read
from capstore.backers.spec import open_volume
from capstore.tools.image.epoch import facts_of
from capstore.tools.image.layer import LayerBuilder, LayerPusher, packed, push_layer
from capstore.tools.progress import Meter
from tests.backers import oci
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import Stack, ideal, stacked
from tests.backers.test_overlay_model import STEPS, hold_all
from tests.contract import model
from tests.contract.harness import replace_content
from tests.tools.command import Ran, capstore, serving

EPOCH = "1700000000"
# What is new in an overlay is newer than that.
LONG_AGO = 1_600_000_000


def export(out: Path, overlay: str, *more: str, **environment: str) -> Ran:
    return capstore("image", "diff", overlay, "--layer", out, *more, **environment)


# One overlay with everything in it ---------------------------------------------------------------


def make_base(root: Path) -> None:
    """A tree of which everything can be changed that can be."""
    for folder in ("bin", "etc/deep/er", "gone/below", "old/sub", "usr/share", "var"):
        (root / folder).mkdir(parents=True)
    for name in (
        "bin/run",
        "etc/hosts",
        "etc/deep/er/file",
        "gone/below/file",
        "old/a",
        "old/sub/b",
    ):
        (root / name).write_text(name)
    for name in (
        "old/sub/b",
        "usr/share/doc",
        "usr/file",
        "-first",
        "to be a directory",
        "ünï",
        "var/log",
    ):
        (root / name).write_text(name)
    (root / "bin/run").chmod(0o755)
    (root / "bin/sh").symlink_to("run")
    (root / "etc/link").symlink_to("../no such")
    os.link(root / "bin/run", root / "usr/share/run")
    os.link(root / "old/a", root / "usr/a")
    os.link(root / "var/log", root / "usr/log")
    os.link(root / "var/log", root / "etc/log")
    (root / "large").write_bytes(os.urandom(3 << 20) + bytes(2 << 20) + b"end")
    for number, path in enumerate([root, *sorted(root.rglob("*"))]):
        os.utime(path, (LONG_AGO + number,) * 2, follow_symlinks=False)


async def change_all(root: DirectoryNode) -> None:
    """Changes of every sort."""
    etc, usr, var = [await root.sub(name) for name in ("etc", "usr", "var")]
    # Contents, attributes and new things.
    await replace_content(etc, "hosts", b"changed")
    await (await root.sub("bin")).set_attributes(Attributes(executable=False), "run")
    await etc.set_attributes(Attributes(modified=LONG_AGO * 10**9 + 5), "link")
    new = await root.mkdir("new")
    await (await new.create("run", executable=True)).close()
    await new.symlink("link", "run")
    await new.link("run", root, "other name")
    file = await root.open("large", OpenFlags.WRITE)
    await file.write(4 << 20, b"in a hole")
    await file.close()
    # Removed, and made again.
    await root.remove("-first")
    gone = await root.sub("gone")
    await (await gone.sub("below")).remove("file")
    await gone.remove("below")
    await root.remove("gone")
    await (await (await root.mkdir("gone")).create("again")).close()
    await root.remove("to be a directory")
    await root.mkdir("to be a directory")
    # Moved.
    await root.rename("old", usr, "new")
    await (await (await usr.sub("new")).sub("sub")).remove("b")
    deep = await etc.sub("deep")
    await etc.rename("deep", root, "er")
    await deep.rename("er", etc, "deep")
    await root.rename("ünï", var, "日")
    # A node with three names, one of which was removed when it had been changed.
    await replace_content(var, "log", b"changed under all names")
    await var.remove("log")


class Made:
    """An overlay in a folder, with everything changed; `shown` is its tree."""

    def __init__(self, place: Path, upper: str) -> None:
        self.place = place
        self.base = place / "base.tar"
        self.upper = place / f"upper.{upper}"
        self.spec = f"overlay:{upper}:{self.upper}+tar:{self.base}"
        tree = place / "tree"
        tree.mkdir()
        make_base(tree)
        command = ["tar", "--sort=name", "--numeric-owner", "-C", tree, "-cf", self.base, "."]
        subprocess.run(command, check=True)
        shutil.rmtree(tree)
        if upper == "dir":
            self.upper.mkdir()
        asyncio.run(self._change("" if upper == "dir" else ",create"))
        self.shown = asyncio.run(shown_by(self.spec))

    async def _change(self, option: str) -> None:
        volume = await open_volume(self.spec.replace("+", f"{option}+", 1))
        await change_all(volume.root)
        await volume.close()


async def shown_by(spec: str) -> oci.Things:
    """The tree that a specification names."""
    volume = await open_to_read(spec)
    things = await oci.of_nodes(volume.root)
    await volume.close()
    return things


@pytest.fixture(scope="module", params=["wf1", "dir"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("overlay"), str(request.param))


@pytest.fixture(scope="module")
def layer(made: Made) -> Path:
    path = made.place / "layer.tar"
    assert export(path, made.spec).ok() == ""
    return path


def same(found: oci.Things, expected: oci.Things) -> None:
    assert dict(oci.in_order(found)) == dict(oci.in_order(expected))


def test_a_layer_gives_the_overlays_tree(made: Made, layer: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xpf", made.base, "-C", tmp_path], check=True)
    oci.apply(layer, tmp_path)
    same(oci.on_host(tmp_path), made.shown)


def test_umoci_gives_the_overlays_tree(made: Made, layer: Path, tmp_path: Path) -> None:
    same(oci.on_host(oci.unpacked_by_umoci(tmp_path, [made.base, layer])), made.shown)


def test_a_layer_over_the_base_shows_the_overlays_tree(made: Made, layer: Path) -> None:
    spec = f"overlay:memory:+oci:{layer}+tar:{made.base}"
    shown = asyncio.run(shown_by(spec))
    # The root of the upper layer is a new one.
    same(shown | {".": made.shown["."]}, made.shown)


@pytest.mark.parametrize("program", [("tar", "-tf"), ("bsdtar", "-tf")])
def test_others_list_a_layer(program: tuple[str, ...], layer: Path) -> None:
    with tarfile.open(layer) as archive:
        expected = archive.getnames()
    listed = [name.removesuffix("/") for name in oci.names_by(program, layer)]
    assert listed == expected
    assert "usr/new/sub" in expected
    assert "gone/.wh..wh..opq" in expected


def test_links_have_the_mode_and_time_of_their_node(layer: Path) -> None:
    """Some programs set them."""
    with tarfile.open(layer) as archive:
        links = [member for member in archive if member.islnk()]
        assert {link.name for link in links} >= {"other name", "usr/share/run", "usr/new/a"}
        for link in links:
            original = archive.getmember(link.linkname)
            assert (link.mode, link.mtime) == (original.mode, original.mtime)


@pytest.mark.parametrize(("ending", "unpack"), [("gz", "gzip"), ("zst", "zstd")])
def test_a_layer_is_compressed_as_its_name_says(
    made: Made, layer: Path, tmp_path: Path, ending: str, unpack: str
) -> None:
    packed_layer = tmp_path / f"layer.tar.{ending}"
    export(packed_layer, made.spec).ok()
    first = packed_layer.read_bytes()
    done = subprocess.run([unpack, "-dc", packed_layer], check=True, capture_output=True)
    assert done.stdout == layer.read_bytes()
    export(packed_layer, made.spec, "--force").ok()
    assert packed_layer.read_bytes() == first


def test_the_same_layers_give_the_same_bytes(made: Made, layer: Path, tmp_path: Path) -> None:
    before = made.upper.read_bytes() if made.upper.is_file() else None
    export(tmp_path / "again.tar", made.spec).ok()
    assert (tmp_path / "again.tar").read_bytes() == layer.read_bytes()
    assert before is None or made.upper.read_bytes() == before


def test_no_time_in_a_layer_is_later_than_the_epoch(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "layer.tar"
    export(out, made.spec, SOURCE_DATE_EPOCH=EPOCH).ok()
    with tarfile.open(out) as archive:
        times = {member.name: member.mtime for member in archive}
    assert max(times.values()) == int(EPOCH)
    assert times["new"] == times[".wh.-first"] == int(EPOCH)
    assert LONG_AGO < times["usr/new/a"] < LONG_AGO + 100


def test_the_base_is_compared_with_the_overlay(made: Made) -> None:
    ran = capstore("image", "diff", f"tar:{made.base}", made.spec)
    assert ran.code == 1
    assert {"D -first", "A new/run", "M etc/hosts (size, time)", "M bin/run (mode)"} <= set(
        ran.out.splitlines()
    )


# The command --------------------------------------------------------------------------------------


def test_a_layer_is_not_replaced_unasked(made: Made, layer: Path, tmp_path: Path) -> None:
    out = tmp_path / "layer.tar"
    out.write_text("precious")
    assert "--force" in export(out, made.spec).failed("alreadyExists")
    assert out.read_text() == "precious"
    export(out, made.spec, "--force").ok()
    assert out.read_bytes() == layer.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("tar:base.tar", "--layer", "out.tar"),
        ("base.tar", "--layer", "out.tar"),
        ("overlay:memory:+memory:", "base.tar", "--layer", "out.tar"),
        ("overlay:memory:+memory:", "--layer", "out.tar", "--json"),
        ("overlay:memory:+memory:", "--layer", "out.tar", "--ignore-times"),
        ("overlay:memory:+memory:", "--layer", "out.tar.xz"),
        ("overlay:memory:+memory:", "--layer", "out"),
        ("base.tar",),
        ("base.tar", "base.tar", "--force"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ran = capstore("image", "diff", *arguments, cwd=tmp_path)
    assert ran.code == 2
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    assert export(out, f"overlay:wf1:{tmp_path}/no.wf1,create+memory:").failed("notFound")
    assert export(out, f"overlay:memory:{tmp_path}/no+memory:").failed("notFound")
    assert export(out, "overlay:memory:").failed("invalidArgument")
    assert export(out, "overlay:oci:x+memory:").failed("invalidArgument")
    assert export(out, f"overlay:dir:{tmp_path}+dir:{tmp_path}").failed("invalidArgument")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    upper = tmp_path / "upper.wf1"

    async def make() -> None:
        volume = await open_volume(f"wf1:{upper},create")
        await (await (await volume.root.mkdir("a")).create(".wh.\x1b")).close()
        await volume.close()

    asyncio.run(make())
    said = export(tmp_path / "out.tar", f"overlay:wf1:{upper}+memory:").failed("invalidName")
    assert '"/a/.wh.\\x1b"' in said
    assert list(tmp_path.iterdir()) == [upper]


def test_an_overlay_in_use_is_busy(tmp_path: Path) -> None:
    spec = f"overlay:wf1:{tmp_path}/upper.wf1,create+memory:"
    with serving(f"o={spec}"):
        assert export(tmp_path / "out.tar", spec).failed("busy")
        assert not (tmp_path / "out.tar").exists()


def test_what_is_being_made_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    spec = f"overlay:dir:{tmp_path}+memory:"
    export(tmp_path / "out.tar", spec).ok()
    export(tmp_path / "out.tar", spec, "--force").ok()
    capstore("image", "build", tmp_path / "out.ro1", "--format", "ro1", "--from", spec).ok()
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == [".", "file"]
    assert "out.ro1" not in capstore("image", "inspect", "--json", tmp_path / "out.ro1").ok()


# Flattening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ro1", "tar", "cpio", "wf1"])
def test_an_overlay_becomes_an_image(made: Made, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"flat.{kind}"
    build = ("image", "build", out, "--format", kind, "--from", made.spec)
    assert capstore(*build).ok() == ""
    assert capstore("image", "verify", out).ok() == ""
    assert capstore("image", "diff", made.spec, out).ok() == ""
    shown = asyncio.run(shown_by(f"{kind}:{out}"))
    assert shown.keys() == made.shown.keys()
    assert [one.node for _, one in oci.in_order(shown)] == [
        one.node for _, one in oci.in_order(made.shown)
    ]
    first = out.read_bytes()
    capstore(*build, "--force").ok()
    assert out.read_bytes() == first


def test_an_overlay_becomes_a_fat_image(tmp_path: Path) -> None:
    base, upper = tmp_path / "base", tmp_path / "upper"
    base.mkdir()
    upper.mkdir()
    for name in ("a", "b"):
        (base / name).write_text(name)
        os.utime(base / name, (LONG_AGO, LONG_AGO))
    (upper / ".wh.a").touch()
    spec = f"overlay:dir:{upper}+dir:{base}"
    out = tmp_path / "flat.img"
    capstore("image", "build", out, "--format", "fat", "--from", spec).ok()
    assert capstore("image", "diff", "--ignore-times", spec, out).ok() == ""
    assert capstore("image", "diff", "--ignore-times", base, out).out == "D a\n"


# Any changes --------------------------------------------------------------------------------------


async def changed(stack: Stack, steps: list[tuple[object, ...]]) -> oci.Things:
    """Does `steps` to the overlay; returns what it shows then."""
    volume = await stack.open()
    twin = Twin.of(volume.root, ideal(stack.tree))
    await hold_all(twin)
    for name, *arguments in steps:
        if name != "reopen":
            await getattr(twin, str(name))(*arguments)
        # What is gone is tested elsewhere.
        twin.directories = [one for one in twin.directories if model.within(one[1], twin.ideal)]
    for file, _ in [*twin.readers, *twin.files]:
        await file.close()
    return await read(volume)


async def export_here(volume: Volume, out: Path) -> None:
    """As the command does it."""
    assert isinstance(volume, OverlayVolume)
    with packed(out, out.name) as stream:
        builder = LayerBuilder(stream)
        keep = partial(facts_of, epoch=None, needs_time=True)
        await push_layer(LayerPusher(builder, keep, Meter()), volume)
        builder.finish()


async def read(volume: Volume) -> oci.Things:
    things = await oci.of_nodes(volume.root)
    await volume.close()
    return things


STACKS = ("memory over ro1+tar", "wf1 over tar", "dir over ro1", "dir over memory")
COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Without shrinking, which would take minutes.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


async def check(name: str, steps: list[tuple[object, ...]]) -> None:
    """The layer of what `steps` do, applied to the base, gives the same tree."""
    async with stacked(name) as stack:
        expected = await changed(stack, steps)
        lowers = [open_layer(one) for one in await stack.open_lowers()]
        base = await read(await OverlayVolume.over(None, lowers))
        lowers = [open_layer(one) for one in await stack.open_lowers()]
        volume = await viewed(await layer_to_read(await stack.open_upper_volume()), lowers)
        layer, root = stack.place / "layer.tar", stack.place / "root"
        await export_here(volume, layer)
        shown = await read(volume)
        same(shown, expected)
        oci.lay_out(base, root)
        oci.apply(layer, root)
        same(oci.on_host(root), shown)
        # And as a lower layer of another overlay.
        over = [open_layer(await open_volume(f"tar:{layer}"), named=True)]
        over += [open_layer(one) for one in await stack.open_lowers()]
        same(await read(await OverlayVolume.over(None, over)), shown)


@pytest.mark.parametrize("name", STACKS)
@settings(COMMON, max_examples=8, phases=PHASES)
@given(steps=st.lists(STEPS, min_size=5, max_size=25))
def test_a_layer_of_any_changes(name: str, steps: list[tuple[object, ...]]) -> None:
    asyncio.run(check(name, steps))


@pytest.mark.long
@pytest.mark.parametrize("name", STACKS)
@settings(COMMON, max_examples=400)
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
def test_a_layer_of_many_changes(name: str, steps: list[tuple[object, ...]]) -> None:
    asyncio.run(check(name, steps))
