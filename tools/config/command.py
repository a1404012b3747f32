"""What ``capstore serve --config`` makes of a file: its problems, or the options it stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import typer

from capstore.service.server import Served
from capstore.tools.config.document import BYTES_MAX
from capstore.tools.config.load import Config, ConfigError, load
from capstore.tools.confine import Sandbox
from capstore.tools.console import complain
from capstore.tools.observing import ObserveOptions
from capstore.tools.serving import ServeOptions, absolute_address

__all__ = ["configured"]

_USAGE = 2


def configured(
    file: Path,
    listen: Sequence[str],
    state: Path | None,
    uri_file: Path | None,
    log_level: str | None,
    *,
    observe: ObserveOptions,
    sandbox: Sandbox,
) -> ServeOptions:
    """The options that `file` stands for; what was typed, if anything, stands before what it says.

    From here on the process works in the folder of the file.  Prints all that is wrong with the
    file, a line each, and exits with code 2.  Raises OSError, and a usage error for what was typed.
    """
    with file.open("rb") as stream:
        raw = stream.read(BYTES_MAX + 1)
    file = file.absolute()
    state = state and state.absolute()
    uri_file = uri_file and uri_file.absolute()
    listen = [absolute_address(text) for text in listen]
    os.chdir(file.parent)
    try:
        config = load(raw, file, state=state, uri_file=uri_file, observe=observe, sandbox=sandbox)
    except ConfigError as error:
        for problem in error.problems:
            complain(f"{file.name}:{problem}")
        raise typer.Exit(_USAGE) from error
    config.observe.check()
    return ServeOptions(
        volumes=(),
        listen=listen or config.listen,
        state=config.state,
        uri_file=config.uri_file,
        log_level=log_level or config.log_level,
        opener=lambda cache, opening: _open(config, cache, opening),
        shares=config.shares,
        leaves=config.leaves,
        sandbox=config.sandbox,
        observe=config.observe,
    )


async def _open(config: Config, cache: Path, opening: AsyncExitStack) -> dict[str, Served]:
    # The formats take their time to import, and looking for problems needs none of them.
    from capstore.tools.config.opening import open_served

    return await open_served(config, cache, opening)
