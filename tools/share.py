"""``capstore share``, ``shares``, ``renew``, ``rotate`` and ``revoke``."""

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
        "capstore share @uris/-/inbox --append-only --max-bytes 1GiB --uri-file inbox.uri",
        "capstore share @uris src --hide .git --hide '*.key' --expires 2h",
    )
)
def share(
    location: LocationArgument,
    path: PathArgument = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse changes.")] = False,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="End it so long from now: 30m, 2h, 7d.", show_default=False
        ),
    ] = None,
    append_only: Annotated[
        bool, typer.Option("--append-only", help="Only make new names, and append to files.")
    ] = False,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="How many bytes it may add, in all: 1GiB.", show_default=False
        ),
    ] = None,
    max_nodes: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many names it may add, in all.", show_default=False),
    ] = None,
    max_file_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="How long it may make a file.", show_default=False),
    ] = None,
    calls_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="More calls wait, or are refused as busy.", show_default=False
        ),
    ] = None,
    bytes_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Likewise, for what is read and written.", show_default=False
        ),
    ] = None,
    hide: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Names that are not there for it: .git, '*.key'; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Answer as if changes were made, and make none.")
    ] = False,
    traced: Annotated[
        bool,
        typer.Option("--traced", help="The audit records every call; the service has to have one."),
    ] = False,
    label: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What capstore shares calls it.", show_default=False),
    ] = "",
    uri_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the URI to FILE, with mode 0600, instead of stdout.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a new URI for a file, directory or store, with less authority.

    What is taken away stays so, whatever is shared from it again. It gives the node itself,
    whatever else takes its name, until it expires or is revoked: by itself (revoke NEW-URI), by its
    id (shares, revoke --id), or with the URI that it came from.

    --json: an object with uri, label, readOnly, expires (ISO 8601 in UTC, or null) and policy (what
    else is taken away).
    """
    from capstore.schema.errors import InvalidArgument
    from capstore.schema.sizes import parse_duration
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate
    from capstore.tools.terms import TermError, read_terms

    try:
        seconds = None if expires is None else parse_duration(expires)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
    if seconds == 0:
        raise typer.BadParameter("it would expire at once: --expires needs more than 0")
    typed = {
        "append-only": append_only,
        "max-bytes": max_bytes,
        "max-nodes": max_nodes,
        "max-file-bytes": max_file_bytes,
        "calls-per-second": calls_per_second,
        "bytes-per-second": bytes_per_second,
        "hide": hide,
        "dry-run": dry_run,
        "traced": traced,
    }
    try:
        more = read_terms(typed)
    except TermError as error:
        raise typer.BadParameter(f"--{error.key}: {error.message}") from error
    terms = sharing.Terms(read_only=read_only, seconds=seconds, label=label, more=more)
    run(sharing.share(locate(location, path), terms, json=json, uri_file=uri_file))


@app.command()
def shares(location: LocationArgument, json: JsonOption = False) -> None:
    """List what was saved below a URI, and what is saved below that.

    FROM is the ID that one was saved from, and AUTHORITY what it does not have of the authority of
    that one. Tokens are not shown: nobody knows them but who has the URI.

    --json: an array with id, label, kind, volume, readOnly, expires, policy (what else is taken
    away), created, lastUsed (ISO 8601 in UTC, or null), parent (the id that it was saved from),
    savedBy (the label of what whoever saved it had), rotations and anchor (whether it only counts
    for what is below it).
    """
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(sharing.shares(locate(location), json=json))


@app.command(
    epilog=block(
        "Examples",
        "capstore renew @uris --id 3 --expires 7d",
        "capstore renew @uris --id 3 --expires 2027-01-31",
    )
)
def renew(
    location: LocationArgument,
    reference_id: Annotated[
        int, typer.Option("--id", metavar="N", help="The one that shares lists.")
    ],
    expires: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="From now (30m, 2h, 7d), or a date; never: as long as what it was saved from.",
        ),
    ],
) -> None:
    """Give what was saved below a URI another time.

    It is given by who holds what it was saved from, never by itself, and never for longer than
    that lasts. Its URI stays the same, and what is open through it follows.
    """
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate
    from capstore.tools.times import NEVER, typed_time

    ends = 0 if expires == NEVER else typed_time(expires, "--expires")
    run(sharing.renew(locate(location), reference_id, ends))


@app.command(
    epilog=block(
        "Examples",
        "capstore rotate @inbox.uri --uri-file inbox.uri",
        "capstore rotate @uris --id 3",
    )
)
def rotate(
    location: LocationArgument,
    reference_id: Annotated[
        int | None,
        typer.Option("--id", metavar="N", help="The one that shares lists.", show_default=False),
    ] = None,
    uri_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write it to FILE, with mode 0600, instead.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a new URI in place of this one, or with --id of one that was saved below it.

    The old one is denied from now on. What was saved from it stays, and what is open through it
    until its connection ends: revoke ends those, too.

    --json: an object with uri and id.
    """
    from capstore.tools import sharing
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(sharing.rotate(locate(location), reference_id, json=json, uri_file=uri_file))


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
