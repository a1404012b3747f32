"""``capstore rm``, ``mkdir`` and ``sync``."""

from __future__ import annotations

from typing import Annotated

import typer

from capstore.tools.parameters import (
    LocationArgument,
    PathArgument,
    QuietOption,
    RecursiveOption,
    block,
)

app = typer.Typer()


@app.command(epilog=block("Examples", "capstore rm @uris/-/old.txt", "capstore rm -r @uris build"))
def rm(
    location: LocationArgument,
    path: PathArgument = None,
    recursive: RecursiveOption = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="No error if it is not there.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Remove a file or link, with -r also a directory."""
    from capstore.tools import changes
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(changes.rm(locate(location, path), recursive=recursive, force=force, quiet=quiet))


@app.command(epilog=block("Example", "capstore mkdir -p @uris a/b/c"))
def mkdir(
    location: LocationArgument,
    path: PathArgument = None,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="Those above it too; no error if it is there.")
    ] = False,
) -> None:
    """Make a directory."""
    from capstore.tools import changes
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(changes.mkdir(locate(location, path), parents=parents))


@app.command()
def sync(location: LocationArgument, path: PathArgument = None) -> None:
    """Return when a node and all below it are durable."""
    from capstore.tools import changes
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(changes.sync(locate(location, path)))
