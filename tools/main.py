"""The ``capstore`` command: its verbs, and the edge at which every error becomes one line.

Invariants:

* Exit codes: 0 done, 1 the operation failed, 2 wrong usage, 130 interrupted, 143 terminated.
* Descriptors 0 to 2 are what the caller gave, or lead nowhere; nothing else is opened as one.
* A failure is one line on stderr, without a traceback and without a whole token in it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from capstore.schema.errors import StorageError, TransportError
from capstore.tools import browse, change, copy, limits, rotating, serve, share, store, top, watch
from capstore.tools.bench import command as bench
from capstore.tools.console import Failed, complain, drop_stdout, explained
from capstore.tools.fuzz import command as fuzz
from capstore.tools.image import command as image
from capstore.tools.parameters import block
from capstore.tools.prove import command as prove
from capstore.tools.walk import first_of

FAILED, USAGE, INTERRUPTED = 1, 2, 130

# The base of what typer raises for wrong usage; typer itself does not export it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="capstore",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_VERBS = (
    *(serve, rotating, browse, watch, copy, change, share, store),
    *(top, image, limits, bench, fuzz, prove),
)
for _verbs in _VERBS:
    app.add_typer(_verbs.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"capstore {version('capstore')}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=block(
        "Examples",
        "capstore serve --uri-file uris &",
        "capstore put -r src @uris",
        "capstore ls -l @uris/-/src",
        "capstore share @uris src --read-only --expires 2h",
    ),
)
def capstore(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Capability-based storage: files and directories that you can narrow, hand on and revoke.

    A LOCATION is a capability URI, @FILE (a file that holds one, mode 0600), @FILE#NAME (the one
    of the volume NAME) or - (one on stdin). A URI is a secret, and arguments can be seen by other
    users of the machine: prefer @FILE. A path below it is written behind it, LOCATION/-/a/b
    (percent-encoded in a URI), or as an argument of its own.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(USAGE)


def main() -> None:
    """The entry point of the command."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _start_over_with_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _run()
    try:
        sys.stdout.flush()
    except OSError:
        # It was reported, or nobody reads it; the interpreter would try again at its exit.
        drop_stdout()
    sys.exit(code)


def _run() -> int:
    """Runs what was typed; returns the exit code."""
    try:
        code = app(prog_name="capstore", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, Failed):
        return FAILED
    except UsageError as error:
        return _wrong_usage(error)
    except (StorageError, TransportError, OSError, BaseExceptionGroup) as error:
        return _failed(first_of(error))


def _failed(error: BaseException) -> int:
    if not isinstance(error, StorageError | TransportError | OSError):
        raise error
    complain(explained(error))
    return FAILED


def _wrong_usage(error: Exception) -> int:
    message = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "capstore"
    complain(f"{message.rstrip('.')} (see {command} --help)")
    return USAGE


def _start_over_with_standard_descriptors() -> NoReturn:
    """Runs the same command again, with those that were closed leading nowhere.

    The imports on the way here may have opened what took their numbers, and keeps it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            os.dup2(nowhere, number)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


if __name__ == "__main__":
    main()
