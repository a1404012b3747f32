"""``capstore top``: what a service does, live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.parameters import JsonOption, block

app = typer.Typer()


@app.command(
    epilog=block(
        "Examples",
        "capstore serve --metrics 127.0.0.1:9464 &",
        "capstore top",
        "capstore top http://127.0.0.1:9464/metrics",
        "capstore top --once --json | jq .callsPerSecond",
    )
)
def top(
    where: Annotated[
        str,
        typer.Argument(
            metavar="URL|unix:PATH|STATE",
            help="Where the metrics are, or the state directory of the service.",
        ),
    ] = "capstore-data",
    interval: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, max=3600.0, help="From one look to the next."),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, show that, and end.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a service does, until Ctrl-C: calls by method, how long they take, bytes, handles,
    connections.

    It reads the metrics of a service that was started with --metrics, not a capability: who holds
    one learns nothing of others by it. Rates are those between one look and the next. Who the
    busiest connections and references are is told on a unix socket only (docs/operating.md).

    --json: an object, with --once one, else one per line for each look.
    """
    from capstore.tools.console import run
    from capstore.tools.top_source import source_of
    from capstore.tools.top_view import watch

    run(watch(source_of(where, Path(where)), interval, once=once, json=json))
