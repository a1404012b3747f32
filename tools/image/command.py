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
    )
)
def build(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The image to make.")],
    format: Annotated[Format, typer.Option("--format", "-f", help="Of the image.")],  # noqa: A002
    source: Annotated[str | None, typer.Option("--from", metavar="TREE", help=TreeHelp)] = None,
    label: Annotated[str, typer.Option(help="Of the volume (ro1 and fat).")] = "",
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a fat or wf1 image: 64MiB; else as it needs."),
    ] = None,
    fat_type: Annotated[
        FatType | None, typer.Option(help="Of a FAT image; else what suits its size.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Build an image of a tree.

    TREE is a local directory, an image, a LOCATION at a service, or a volume SPEC as serve takes
    it. The same tree gives the same bytes; times later than SOURCE_DATE_EPOCH (seconds since 1970)
    become that. OUT appears when it is whole. FAT images are made with mkfs.fat and mcopy. A wf1
    image of a --size never changes its length, else it grows as it is written; without --from it is
    empty.
    """
    from capstore.schema.sizes import parse_size
    from capstore.tools.console import run
    from capstore.tools.image.build import Plan
    from capstore.tools.image.build import build as work

    if format is not Format.FAT and fat_type:
        raise typer.BadParameter("--fat-type is for --format fat")
    if format not in (Format.FAT, Format.WF1) and size:
        raise typer.BadParameter("--size is for --format fat and wf1")
    if format is not Format.WF1 and source is None:
        raise typer.BadParameter("--from is needed: only a wf1 image can be empty")
    if format not in (Format.FAT, Format.RO1) and label:
        raise typer.BadParameter("--label is for --format ro1 and fat")
    plan = Plan(
        Path(out),
        format.value,
        source,
        label=label,
        size=None if size is None else parse_size(size),
        fat_type=None if fat_type is None else int(fat_type.value),
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
    table, directory, header, log, data, dead, free, unused and damaged. The picture needs
    matplotlib.
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
    )
)
def verify(
    file: FileArgument,
    json: JsonOption = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what a crash left in a wf1 image, first.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Check every structure and checksum of an image.

    Every file in it is read, too.

    Exit code 0: nothing is wrong. 1: damaged; one line for each damage, OFFSET: WHERE: MESSAGE,
    with - for an offset that is not known. 2: it cannot be opened (or the usage is wrong).

    --repair removes only what never was acknowledged: the torn tail of a log, and a superblock
    that was being written. Nothing else is changed, and nothing at all in an image that cannot be
    opened.

    --json: an object with clean (a boolean) and findings (offset or null, where, message,
    repairable).
    """
    from capstore.tools.console import run
    from capstore.tools.image.verify import verify as work

    raise typer.Exit(run(work(file, json=json, quiet=quiet, repair=repair)))


@image.command(
    epilog=block(
        "Examples",
        "capstore image extract base.tar.gz rootfs",
        "capstore image extract disk.img . boot/config.txt",
    )
)
def extract(
    file: FileArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A local directory.")],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Only this file or directory in the image.")
    ] = "",
    quiet: QuietOption = False,
) -> None:
    """Unpack an image into a local directory.

    As get -r does: all that is in the image goes into DEST, which is made if need be; a PATH goes
    into DEST if that is a directory, else to the name DEST. Nothing in an image leads out of DEST.
    Times, the executable bit and symbolic links (as links) are kept, other permissions are not.
    """
    from capstore.tools.console import run
    from capstore.tools.image.extract import extract as work

    run(work(file, dest, path, quiet=quiet))


@image.command(epilog=block("Examples", "capstore image compact work.wf1"))
def compact(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A wf1 image.")],
    quiet: QuietOption = False,
) -> None:
    """Make a wf1 image as small as what is in it.

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
    )
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=TreeHelp)],
    b: Annotated[str, typer.Argument(metavar="B", help=TreeHelp)],
    ignore_times: Annotated[
        bool, typer.Option("--ignore-times", help="Do not compare when things were modified.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two trees.

    Each is an image, a directory, a LOCATION or a SPEC.

    One line for each difference: "A PATH" is only in B (added), "D PATH" only in A (deleted),
    "M PATH (WHAT)" in both, where WHAT is of kind, size, content, mode, time, target. Exit code 0:
    they are equal. 1: they differ. 2: something could not be compared (or the usage is wrong).

    --json: an array of objects with change (added, deleted, modified), path and what.
    """
    from capstore.tools.console import run
    from capstore.tools.image.diff import diff as work

    raise typer.Exit(run(work(a, b, ignore_times=ignore_times, json=json, quiet=quiet)))
