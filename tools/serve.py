"""``capstore serve``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.parameters import block

app = typer.Typer()


class LogLevel(StrEnum):
    """What is worth a line on stderr."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class AuditKind(StrEnum):
    """What a call has to be to be audited."""

    changes = "changes"
    failures = "failures"
    refusals = "refusals"
    traced = "traced"


@app.command(
    epilog=block(
        "Volumes",
        "memory:[FILE]    in memory; FILE is where it is loaded from and saved to",
        "dir:PATH[,ro]    a directory of this machine",
        "wf1:PATH[,create][,size=64MiB][,ro]  a CAPOSWF1 image: a crash-safe tree",
        "st1:PATH[,create][,size=64MiB][,ro]  a CAPOSST1 image: a store of objects",
        "ro1:PATH         a CAPOSRO1 image",
        "tar:PATH         a tar archive, also gz, bz2, xz and zst",
        "cpio:PATH        a cpio archive, also compressed",
        "fat:PATH[,part=N]  a FAT12, FAT16 or FAT32 image; partition N of a disk",
        "pyfs:URL[,ro]    any PyFilesystem2 filesystem: zip://a.zip, ftp://...",
        "oci:PATH         a layer of a container image: an archive or a directory",
        "overlay:UPPER+LOWER+...[,lower=writable-files]  a writable layer on others",
        "mounts:/=SPEC,/tmp=SPEC  one tree out of several",
    )
    + block(
        "Examples",
        "capstore serve",
        "capstore serve work=dir:/srv/work scratch=memory:,max-bytes=1GiB",
        "capstore serve dir:/srv/work,ro --listen 0.0.0.0:4000 --uri-file uris",
        "capstore serve dir:/srv/work --sandbox --audit /var/log/capstore/audit",
        "capstore serve --config capstore.toml",
    )
)
def serve(
    volumes: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=SPEC", show_default=False, help="Volumes to serve."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="unix:PATH|HOST:PORT",
            help="Where to listen; may be repeated. HOST:PORT is TLS. Default: unix:STATE/socket.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keys and saved references (mode 0700). Default: capstore-data.",
            show_default=False,
        ),
    ] = None,
    uri_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the URIs to FILE too, with mode 0600.", show_default=False
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="What is logged on stderr. Default: info.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Serve what this file describes (docs/config.md).",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is wrong with the file; open nothing.")
    ] = False,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="Write a line of JSON for each call (docs/operating.md); - is stderr.",
            show_default=False,
        ),
    ] = None,
    audit_calls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Audit only these methods: Directory.*, *.read; may be repeated.",
            show_default=False,
        ),
    ] = None,
    audit_only: Annotated[
        list[AuditKind] | None,
        typer.Option(
            metavar="KIND",
            help="Audit only calls of this kind: changes, failures, refusals or traced; "
            "may be repeated.",
            show_default=False,
        ),
    ] = None,
    audit_names: Annotated[
        bool, typer.Option("--audit-names", help="Audit the names of entries, too.")
    ] = False,
    audit_required: Annotated[
        bool,
        typer.Option("--audit-required", help="Refuse calls while the audit cannot be written."),
    ] = False,
    audit_max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Begin a new file of the audit at this size; 0 is never. Default: 64MiB.",
            show_default=False,
        ),
    ] = None,
    audit_keep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help="How many old files of the audit are kept. Default: 8.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="unix:PATH|HOST:PORT",
            help="Where Prometheus and capstore top read metrics, without TLS: 127.0.0.1:9464.",
            show_default=False,
        ),
    ] = None,
    metrics_anywhere: Annotated[
        bool,
        typer.Option(
            "--metrics-anywhere", help="Let the HOST of --metrics be one that other machines reach."
        ),
    ] = False,
    sandbox: Annotated[
        bool,
        typer.Option(
            "--sandbox",
            help="Once all is open, give up privileges, other files than the volumes, and "
            "connecting to others.",
        ),
    ] = False,
    require_sandbox: Annotated[
        bool,
        typer.Option(
            "--require-sandbox", help="As --sandbox; refuse to start where some of it is missing."
        ),
    ] = False,
) -> None:
    """Serve volumes until SIGTERM or Ctrl-C.

    When it is ready it prints a line NAME<TAB>URI for each volume and address. Each URI is a
    secret that gives the whole volume.

    Without SPEC it makes and serves a tree, "files", in the image STATE/files.wf1, and a store of
    objects, "objects", in STATE/objects.st1. NAME is the last part of the path, or the scheme.

    With --sandbox it goes on without what it does not need any more (docs/security.md).

    With --config the file says what is served, and paths in it are relative to its folder; the
    other options stand before what it says.
    """
    from capstore.tools.confine import Sandbox
    from capstore.tools.console import out, run
    from capstore.tools.observing import ObserveOptions
    from capstore.tools.serving import ServeOptions, absolute_address, serve_until_told

    level = log_level.value if log_level is not None else None
    confined = Sandbox.of(wanted=sandbox, required=require_sandbox)
    observe = ObserveOptions(
        # A configuration is read in its own folder.
        audit=audit if audit in (None, "-") else str(Path(str(audit)).absolute()),
        calls=tuple(audit_calls or ()),
        only=tuple(kind.value for kind in audit_only or ()),
        names=audit_names,
        required=audit_required,
        size_max=None if audit_max_bytes is None else _size(audit_max_bytes),
        keep=audit_keep,
        metrics=absolute_address(metrics) if metrics else None,
        anywhere=metrics_anywhere,
    )
    if config is None:
        if check:
            raise typer.BadParameter("--check is of a file: --config FILE")
        folder = state or Path("capstore-data")
        options = ServeOptions(
            volumes or [],
            listen or [],
            folder,
            uri_file,
            level or "info",
            sandbox=confined,
            observe=observe,
        )
        run(serve_until_told(options))
        return
    from capstore.tools.config.command import configured

    if volumes:
        raise typer.BadParameter("what is served is said by --config or by NAME=SPEC, not both")
    options = configured(
        config, listen or [], state, uri_file, level, observe=observe, sandbox=confined
    )
    if check:
        out(f"{config}: ok")
    else:
        run(serve_until_told(options))


def _size(text: str) -> int:
    """Bytes.  Raises a usage error."""
    from capstore.schema.errors import InvalidArgument
    from capstore.schema.sizes import parse_size

    try:
        return parse_size(text)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="'--audit-max-bytes'") from error
