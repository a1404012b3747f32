"""``capstore image``: the verbs for image files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.parameters import JsonOption, QuietOption, block

image = typer.Typer(help="Build, inspect, verify, extract and compare images.")
app = typer.Typer()
app.add_typer(image, name="image")

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="An image, or a SPEC of one.")]
TreeHelp = "A directory, an image, a LOCATION or a SPEC."


class Format(StrEnum):
    """What can be built."""

    RO1 = "ro1"
    TAR = "tar"
    CPIO = "cpio"
    FAT = "fat"
    WF1 = "wf1"
    ST1 = "st1"
    COMBINED = "st1+wf1"


_TREES = (Format.WF1, Format.COMBINED)
_STORES = (Format.ST1, Format.COMBINED)


class FatType(StrEnum):
    """The sizes of a FAT's entries, in bits."""

    FAT12 = "12"
    FAT16 = "16"
    FAT32 = "32"


@image.command(
    epilog=block(
        "Examples",
        "capstore image build base.ro1 --format ro1 --from rootfs/",
        "capstore image build base.tar --format tar --from @uris#work",
        "SOURCE_DATE_EPOCH=1700000000 capstore image build esp.img --format fat --from esp/",
        "capstore image build usb.img --format fat --size 64MiB --label USB --from photos.tar.gz",
        "capstore image build work.wf1 --format wf1 --size 16MiB",
        "capstore image build assets.st1 --format st1 --from assets/ --content",
        "capstore image build disk.img --format st1+wf1 --size 16MiB --from rootfs/",
    )
)
def build(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The image to make.")],
    format: Annotated[Format, typer.Option("--format", "-f", help="Of the image.")],  # noqa: A002
    source: Annotated[str | None, typer.Option("--from", metavar="TREE", help=TreeHelp)] = None,
    label: Annotated[str, typer.Option(help="Of the volume (ro1 and fat).")] = "",
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a fat, wf1 or st1 image: 64MiB; else as it needs."),
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option("--objects", metavar="TREE", help="For the store in front (st1+wf1)."),
    ] = None,
    content: Annotated[
        bool,
        typer.Option("--content", help="Keys of objects are the SHA-256 of their content."),
    ] = False,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For what --content says, instead of stdout."),
    ] = None,
    fat_type: Annotated[
        FatType | None, typer.Option(help="Of a FAT image; else what suits its size.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Build an image of a tree, or a store of objects.

    TREE is a local directory, an image, a LOCATION at a service, or a volume SPEC as serve takes
    it. The same tree gives the same bytes; times later than SOURCE_DATE_EPOCH (seconds since 1970)
    become that. OUT appears when it is whole. FAT images are made with mkfs.fat and mcopy. A wf1
    or st1 image of a --size never changes its length, else it grows as it is written; without
    --from it is empty.

    In a st1 image each file is an object; its key is its path. With --content the key is the
    SHA-256 of what is in it, its path is a name for that, and a line PATH<TAB>HASH is printed for
    each. A st1+wf1 image is a store of 128 KiB, filled from --objects, in front of a wf1 volume.
    """
    from capstore.schema.sizes import parse_size
    from capstore.tools.console import run
    from capstore.tools.image.build import Plan
    from capstore.tools.image.build import build as work

    seeds = objects if format is Format.COMBINED else source
    wrong = {
        "--fat-type is for --format fat": fat_type and format is not Format.FAT,
        "--size is for --format fat, wf1, st1 and st1+wf1": size
        and format not in (Format.FAT, *_TREES, *_STORES),
        "--from is needed: only a wf1 or st1 image can be empty": source is None
        and format not in (*_TREES, *_STORES),
        "--label is for --format ro1 and fat": label and format not in (Format.FAT, Format.RO1),
        "--objects is for --format st1+wf1": objects is not None and format is not Format.COMBINED,
        "--content is for objects of --format st1 or st1+wf1": content
        and (format not in _STORES or seeds is None),
        "--manifest is for --content": manifest is not None and not content,
    }
    for message, is_so in wrong.items():
        if is_so:
            raise typer.BadParameter(message)
    plan = Plan(
        Path(out),
        format.value,
        source,
        label=label,
        size=None if size is None else parse_size(size),
        fat_type=None if fat_type is None else int(fat_type.value),
        objects=objects,
        hashed=content,
        manifest=manifest,
        force=force,
    )
    run(work(plan, quiet=quiet))


@image.command(
    epilog=block(
        "Examples",
        "capstore image inspect base.ro1",
        "capstore image inspect --json disk.img | jq .usage",
        "capstore image inspect fat:disk.img,part=1 --picture disk.svg",
    )
)
def inspect(
    file: FileArgument,
    json: JsonOption = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|FILE.png", help="Draw the image's map, too."),
    ] = None,
) -> None:
    """Show what an image says of itself.

    Its facts, its usage, and a map of what its bytes are used for. It is not checked: see verify.

    --json: an object with format, size (bytes), facts (by format), usage, totals (bytes by kind of
    region), regions (start, length, kind, label) and regionsLeftOut. The kinds are superblock,
    table, directory, header, log, data, dead, free, unused and damaged. A st1 image has segments
    (use, live, dead, free) and segmentsLeftOut, too; one of the format st1+wf1 has halves with
    format, facts, usage and segments each. The picture needs matplotlib.
    """
    from capstore.tools.console import run
    from capstore.tools.image.inspect import inspect as work

    if picture is not None and picture.suffix.lower() not in (".svg", ".png"):
        raise typer.BadParameter("a picture is a .svg or a .png")
    run(work(file, json=json, picture=picture))


@image.command(
    epilog=block(
        "Examples",
        "capstore image verify base.ro1",
        "capstore image verify --json disk.img",
        "capstore image verify --repair work.wf1",
        "capstore image verify overlay:wf1:work.wf1+tar:base.tar",
    )
)
def verify(
    file: FileArgument,
    json: JsonOption = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what a crash left (wf1, st1, overlay), first."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Check every structure and checksum of an image, or an overlay.

    Every file in it is read, too. Of overlay:UPPER+LOWER... each layer that is an image is checked,
    then whether the marks of the upper layer fit the layers below it; nothing is written, but a
    memory: layer is locked meanwhile.

    Exit code 0: nothing is wrong. 1: damaged; one line for each damage, OFFSET: WHERE: MESSAGE,
    with - for an offset that is not known. 2: it cannot be opened (or the usage is wrong).

    --repair removes only what never was acknowledged: the torn tail of a log, and a superblock
    that was being written. Nothing else is changed, and nothing at all in an image that cannot be
    opened. Of an overlay the upper layer is repaired, nothing else: marks that hide nothing go, and
    what was being copied; the tree it shows stays the same. Give it the layers it was made over.

    --json: an object with clean (a boolean) and findings (offset or null, where, message,
    repairable).
    """
    from capstore.tools.console import run
    from capstore.tools.image.verifylayers import verify as work

    raise typer.Exit(run(work(file, json=json, quiet=quiet, repair=repair)))


@image.command(
    epilog=block(
        "Examples",
        "capstore image extract base.tar.gz rootfs",
        "capstore image extract disk.img . boot/config.txt",
        "capstore image extract st1:disk.img objects --manifest objects.json",
    )
)
def extract(
    file: FileArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A local directory.")],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Only this file or directory in the image.")
    ] = "",
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of objects: what is where, as JSON."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Unpack an image into a local directory.

    As get -r does: all that is in the image goes into DEST, which is made if need be; a PATH goes
    into DEST if that is a directory, else to the name DEST. Nothing in an image leads out of DEST.
    Times, the executable bit and symbolic links (as links) are kept, other permissions are not.

    The objects of a st1 image go into a new or empty directory: to the path that their key is, or
    that a name for them is, else to .hex/DIGITS; nothing is overwritten. Of a st1+wf1 image the
    tree goes to DEST/files, the objects to DEST/objects; st1:FILE or wf1:FILE is one of them.

    --manifest: an array of objects with file, key (null for a hash and for what is no UTF-8), hex,
    size, version, created, provenance, and name if the file is there by one.
    """
    from capstore.tools.console import run
    from capstore.tools.image.extract import extract as work

    run(work(file, dest, path, manifest=manifest, quiet=quiet))


@image.command(
    epilog=block(
        "Examples",
        "capstore image reset overlay:wf1:work.wf1+tar:base.tar",
        "capstore image reset --yes dir:work",
    )
)
def reset(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="An overlay, or its upper layer alone.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Drop all changes in the upper layer of an overlay.

    SPEC is overlay:UPPER+LOWER..., or UPPER alone: wf1:PATH, dir:PATH or memory:FILE. All that is
    in the upper layer goes in one step, which a crash leaves done or not done; lower layers are not
    opened. Says how many nodes and bytes went. A terminal is asked first. Nobody else may have the
    layer open.

    A directory is exchanged with a new one of the same mode and owner, .NAME.capstore-reset beside
    it; what a reset that was killed leaves of that goes with the next one.
    """
    import sys

    from capstore.tools.console import run
    from capstore.tools.image.reset import content_of
    from capstore.tools.image.reset import reset as work

    asks = not yes and sys.stdin is not None and sys.stdin.isatty()
    if asks and not typer.confirm(f"Drop {run(content_of(spec))}?", err=True):
        raise typer.Exit(1)
    run(work(spec, quiet=quiet))


@image.command(
    epilog=block("Examples", "capstore image compact work.wf1", "capstore image compact disk.img")
)
def compact(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A wf1 or st1 image.")],
    quiet: QuietOption = False,
) -> None:
    """Make a wf1 or st1 image as small as what is in it.

    Live data is moved out of segments that are mostly dead, and an image that grows is cut behind
    the last one in use. Says how large it was and is. Nobody else may have the image open.
    """
    from capstore.tools.console import run
    from capstore.tools.image.maintaining import compacted as work

    run(work(file, quiet=quiet))


@image.command(
    epilog=block(
        "Examples",
        "capstore image diff old.ro1 new.ro1",
        "capstore image diff --ignore-times rootfs/ base.tar.gz",
        "capstore image diff @uris#work/-/src base.ro1",
        "capstore image diff overlay:wf1:work.wf1+tar:base.tar --layer work.tar.gz",
    )
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=TreeHelp)],
    b: Annotated[str | None, typer.Argument(metavar="B", help=TreeHelp)] = None,
    layer: Annotated[
        Path | None,
        typer.Option(metavar="OUT.tar[.gz|.zst]", help="Write what an overlay's upper layer is."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it is there (--layer).")
    ] = False,
    ignore_times: Annotated[
        bool, typer.Option("--ignore-times", help="Do not compare when things were modified.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two trees, or two stores.

    Each is an image, a directory, a LOCATION or a SPEC. Of two images with a store these are
    compared, and the trees where both have one.

    One line for each difference: "A PATH" is only in B (added), "D PATH" only in A (deleted),
    "M PATH (WHAT)" in both, where WHAT is of kind, size, content, mode, time, target. Exit code 0:
    they are equal. 1: they differ. 2: something could not be compared (or the usage is wrong).

    With --layer A is an overlay, overlay:UPPER+LOWER..., and there is no B: what the upper layer
    adds to the lower ones, changes and removes becomes an OCI image layer, with .wh. entries for
    what is gone. The layers are only read. OUT appears when it is whole; times later than
    SOURCE_DATE_EPOCH become that. Exit code 0: written. 1: it failed.

    --json: an array of objects with change (added, deleted, modified), path and what; of stores,
    with kind (object, name), key (null for a hash) and hex instead of path.
    """
    from capstore.tools.console import run
    from capstore.tools.image.diff import diff as work

    if layer is not None:
        _export(a, layer, force=force, quiet=quiet, alone=not (b or ignore_times or json))
        return
    if b is None:
        raise typer.BadParameter("a tree is compared with another: diff A B")
    if force:
        raise typer.BadParameter("--force is for --layer")
    raise typer.Exit(run(work(a, b, ignore_times=ignore_times, json=json, quiet=quiet)))


def _export(source: str, out: Path, *, force: bool, quiet: bool, alone: bool) -> None:
    """``diff --layer``; `alone` says that nothing was given that is for comparing."""
    from capstore.tools.console import run
    from capstore.tools.image.layer import ENDINGS, OVERLAY, export

    if not alone:
        raise typer.BadParameter("--layer is of one overlay, and nothing is compared")
    if not source.startswith(OVERLAY):
        raise typer.BadParameter(f"--layer is of an overlay: {OVERLAY}UPPER+LOWER")
    if not out.name.endswith(ENDINGS):
        raise typer.BadParameter("a layer is a .tar, .tar.gz or .tar.zst")
    run(export(out, source, force=force, quiet=quiet))
