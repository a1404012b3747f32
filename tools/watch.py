"""``capstore watch``: what becomes of a directory, as it happens."""

from __future__ import annotations

import typer

from capstore.tools.parameters import JsonOption, LocationArgument, PathArgument, block

app = typer.Typer()


@app.command(
    epilog=block(
        "Examples",
        "capstore watch @uris/-/inbox",
        "capstore watch --json @uris inbox | jq -r 'select(.kind == \"created\").name'",
    )
)
def watch(location: LocationArgument, path: PathArgument = None, json: JsonOption = False) -> None:
    """Tell of each change of a directory's entries, one per line, until interrupted.

    A line is created, removed or modified and the name; overflow, alone, means that changes were
    left out: list again. What is below is not told, nor what others do, beside the service, to a
    host directory. It fails when the URI is revoked or expires, or the directory is removed.

    --json: an object per line, with kind, name and nodeId; in an overflow these are "" and 0.
    """
    from capstore.tools import watching
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(watching.watch(locate(location, path), json=json))
