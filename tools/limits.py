"""``capstore limits``."""

from __future__ import annotations

from typing import Annotated

import typer

from capstore.tools.parameters import JsonOption

app = typer.Typer()


@app.command()
def limits(
    location: Annotated[
        str | None,
        typer.Argument(
            metavar="LOCATION",
            help="A URI or @FILE: show those of its service.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show every limit of this version, or of a service.

    What is over one is refused, waits or is cut off, as REASON and the documents have it.

    --json: an array of objects with name and value, and of this version also unit and reason.
    """
    from capstore.schema.limits import LIMITS
    from capstore.tools.console import out_json_list, out_table, run
    from capstore.tools.listing import limits_of
    from capstore.tools.location import locate

    if location is not None:
        served = run(limits_of(locate(location)))
        if json:
            out_json_list({"name": name, "value": value} for name, value in served.items())
        else:
            out_table(("LIMIT", "VALUE"), ((name, str(value)) for name, value in served.items()))
        return
    if json:
        out_json_list(
            {"name": each.name, "value": each.value, "unit": each.unit, "reason": each.reason}
            for each in LIMITS
        )
    else:
        rows = ((each.name, str(each.value), each.unit, each.reason) for each in LIMITS)
        out_table(("LIMIT", "VALUE", "UNIT", "REASON"), rows)
