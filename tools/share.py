"""``capstore share``, ``shares`` and ``revoke``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.parameters import JsonOption, LocationArgument, PathArgument, block

app = typer.Typer()


@app.command(
    epilog=block(
        "Examples",
        'capstore share @uris docs --read-only --label "for review"',
        "capstore share @uris/-/inbox --expires 2h --uri-file inbox.uri",
    )
)
def share(
    location: LocationArgument,
    path: PathArgument = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="No changes.")] = False,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="From now: 30m, 2h, 7d.", show_default=False),
    ] = None,
    label: Annotated[str, typer.Option(help="Shown by shares.", show_default=False)] = "",
    uri_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write it to FILE, with mode 0600, instead.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a new URI for a node, with less authority.

    It gives the node itself, whatever else takes its name, until it expires or is revoked: by
    itself (revoke NEW-URI), by its id (shares, revoke --id), or with the URI that it came from.

    --json: an object with uri, label, readOnly, expires (ISO 8601 in UTC, or null).
    """
    from capstore.schema.errors import InvalidArgument
    from capstore.schema.sizes import parse_duration
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    try:
        seconds = None if expires is None else parse_duration(expires)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
    if seconds == 0:
        raise typer.BadParameter("it would expire at once: --expires needs more than 0")
    terms = sharing.Terms(read_only=read_only, seconds=seconds, label=label)
    run(sharing.share(locate(location, path), terms, json=json, uri_file=uri_file))


@app.command()
def shares(location: LocationArgument, json: JsonOption = False) -> None:
    """List what was saved below a URI.

    --json: an array with id, label, kind, volume, readOnly, expires, created, lastUsed (ISO 8601
    in UTC, or null) and parent (the id that it was saved from).
    """
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(sharing.shares(locate(location), json=json))


@app.command(epilog=block("Examples", "capstore revoke @inbox.uri", "capstore revoke @uris --id 3"))
def revoke(
    location: LocationArgument,
    reference_id: Annotated[
        int | None,
        typer.Option("--id", metavar="N", help="The one that shares lists.", show_default=False),
    ] = None,
) -> None:
    """End a URI, or with --id one that was saved below it.

    Ends at once what was opened through it and every URI that was saved from it. The URI of a
    whole volume can be ended too: the service prints a new one at its next start.
    """
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(sharing.revoke(locate(location), reference_id))
