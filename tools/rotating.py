"""``capstore rotate-key``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.parameters import block

app = typer.Typer()


@app.command(
    "rotate-key",
    epilog=block(
        "Examples",
        "capstore rotate-key --state /srv/state --keep-old-until 30d",
        "capstore rotate-key --state /srv/state",
    ),
)
def rotate_key(
    state: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="What serve --state names; no service may be running with it.",
        ),
    ],
    keep_old_until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Serve URIs with the old key until then: 30d from now, or a date.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Give a service another TLS key, for its next start.

    URIs hold the fingerprint of the key. With --keep-old-until those that were handed out work
    until then, and so do those with older keys as was said for them; without it, none of them.
    Their tokens stay valid: with the new fingerprint in front they work on.

    Prints a line FINGERPRINT<TAB>TIME for each key that is served: the new one (TIME is "-"), then
    the old ones.
    """
    from capstore.service.state import StateDirectory
    from capstore.tools.console import out, utc_text
    from capstore.tools.times import typed_time

    until = 0 if keep_old_until is None else typed_time(keep_old_until, "--keep-old-until")
    directory = StateDirectory.open(state)
    try:
        keys = directory.rotate_service_key(until)
    finally:
        directory.close()
    for key in (keys.current, *keys.old):
        out(f"{key.fingerprint}\t{utc_text(key.until) if key.until else '-'}")
