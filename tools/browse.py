"""``capstore ls``, ``tree``, ``stat`` and ``cat``."""

from __future__ import annotations

from typing import Annotated

import typer

from capstore.tools.parameters import JsonOption, LocationArgument, PathArgument, block

app = typer.Typer()


@app.command(epilog=block("Examples", "capstore ls @uris", "capstore ls -l @uris/-/docs"))
def ls(
    location: LocationArgument,
    path: PathArgument = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Kind, size, time, target.")] = False,
    human: Annotated[bool, typer.Option("--human", help="Sizes with units.")] = False,
    json: JsonOption = False,
) -> None:
    """List a directory, in the order of the names' bytes.

    Every name is shown; control characters in names are escaped. -l shows d (directory), l
    (symbolic link), s (special) or - (file), then x if executable.

    --json: an array with name, kind, size, executable, modified, created (ISO 8601 in UTC, null
    if not recorded), provenance, nodeId, version, linkCount, and target of a symbolic link.
    """
    from capstore.tools import listing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(listing.ls(locate(location, path), listing.Style(long=long, human=human, json=json)))


@app.command()
def tree(
    location: LocationArgument,
    path: PathArgument = None,
    level: Annotated[
        int | None,
        typer.Option("--level", "-L", min=1, help="Go no deeper.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a directory and all below it.

    --json: an array of entries as in ls, each with its path in place of its name.
    """
    from capstore.tools import listing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(listing.tree(locate(location, path), level=level, json=json))


@app.command()
def stat(location: LocationArgument, path: PathArgument = None, json: JsonOption = False) -> None:
    """Show what is known of a node; of a symbolic link itself.

    --json: an object as in ls.
    """
    from capstore.tools import listing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(listing.stat(locate(location, path), json=json))


@app.command(epilog=block("Example", "capstore cat @uris notes/today.txt"))
def cat(location: LocationArgument, path: PathArgument = None) -> None:
    """Write the content of a file to stdout, as it is."""
    from capstore.tools import listing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(listing.cat(locate(location, path)))
