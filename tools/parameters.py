"""Arguments and options that several verbs share, and the registry of verbs.

Invariants: this module and those that declare verbs import nothing that takes time; a verb imports
what it needs when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

LocationArgument = Annotated[
    str, typer.Argument(metavar="LOCATION", help="URI[/-/PATH], @FILE[/-/PATH] or -.")
]
PathArgument = Annotated[
    str | None,
    typer.Argument(metavar="PATH", help="A path below LOCATION.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
RecursiveOption = Annotated[
    bool, typer.Option("--recursive", "-r", help="Directories too, with all below.")
]


def block(title: str, *lines: str) -> str:
    """A part of a help page that is not to be rewrapped, for a verb's epilog."""
    return "\n".join(("\b", f"{title}:", *(f"  {line}" for line in lines))) + "\n\n"
