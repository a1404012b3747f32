"""``capstore get``, ``put``, ``cp`` and ``mv``."""

from __future__ import annotations

from typing import Annotated

import typer

from capstore.tools.parameters import LocationArgument, QuietOption, RecursiveOption, block

app = typer.Typer()


@app.command(
    epilog=block(
        "Examples",
        "capstore get @uris/-/notes/today.txt",
        "capstore get -r @uris/-/notes ~/notes-copy",
        "capstore get -r @uris everything",
    )
)
def get(
    location: LocationArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A local path.")] = ".",
    recursive: RecursiveOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy from a service to this machine.

    As cp does: into DEST if it is a directory, else to the name DEST. What LOCATION itself stands
    for has no name, so -r puts what is in it into DEST, which is made if need be. Times, the
    executable bit and symbolic links (as links) are kept. Files are replaced atomically.
    """
    from capstore.tools import transfers
    from capstore.tools.console import run
    from capstore.tools.location import locate

    if dest == "-":
        raise typer.BadParameter("for stdout use cat; for a file of that name ./-")
    run(transfers.get(locate(location), dest, recursive=recursive, quiet=quiet))


@app.command(
    epilog=block(
        "Examples",
        "capstore put report.pdf @uris/-/docs",
        "capstore put -r src tests @uris",
        "tar c . | capstore put - @uris/-/backup.tar",
    )
)
def put(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Local paths; - is stdin.")
    ],
    location: LocationArgument,
    recursive: RecursiveOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy from this machine to a service.

    As cp does: into LOCATION if it is a directory, else to the name at its end. A SOURCE that ends
    in /. means what is in the directory. Times, the executable bit and symbolic links (as links)
    are kept. A file appears, or is replaced, when it is complete.
    """
    from capstore.tools import transfers
    from capstore.tools.console import run
    from capstore.tools.location import locate

    if "-" in sources and location == "-":
        raise typer.BadParameter("stdin is either the content or the location")
    run(transfers.put(sources, locate(location), recursive=recursive, quiet=quiet))


@app.command(epilog=block("Example", "capstore cp -r @uris#base/-/etc @uris#work"))
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A location.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A location.")],
    recursive: RecursiveOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy between capabilities, by way of this machine.

    They may be of different services. SOURCE and TARGET are locations; see get and put.
    """
    from capstore.tools import transfers
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(transfers.cp(locate(source), locate(target), recursive=recursive, quiet=quiet))


@app.command(
    epilog=block(
        "Examples",
        "capstore mv @uris/-/draft.txt @uris/-/final.txt",
        "capstore mv --exchange @uris/-/current @uris/-/next",
    )
)
def mv(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A location with a path.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A location.")],
    no_replace: Annotated[
        bool, typer.Option("--no-replace", "-n", help="Fail if TARGET is there.")
    ] = False,
    exchange: Annotated[bool, typer.Option("--exchange", help="Let both change places.")] = False,
) -> None:
    """Move or rename within one volume, atomically.

    Into TARGET if it is a directory (not with --exchange), else to the name at its end.
    """
    from capstore.tools import transfers
    from capstore.tools.console import run
    from capstore.tools.location import locate

    if no_replace and exchange:
        raise typer.BadParameter("--no-replace and --exchange exclude each other")
    run(transfers.mv(locate(source), locate(target), no_replace=no_replace, exchange=exchange))
