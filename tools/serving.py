"""A service as a process: opening what it serves, saying that it is ready, stopping on a signal.

Invariants:

* Nothing is on stdout before everything listens; then there is all of it, in one write.
* The first SIGTERM or SIGINT stops in order: doors, connections, volumes, state.  A second one has
  its default effect.
* No URI is logged.  A volume that holds the service's own secrets is refused.
* What is shared from the start is settled before anyone can connect.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import typer

from capstore.backers.overlay_spec import OCI, leaves
from capstore.backers.spec import open_backer
from capstore.backers.spec_text import Spec
from capstore.backers.workers import in_worker
from capstore.images.durable import replace_file
from capstore.schema.errors import Denied, InternalError, StorageError
from capstore.service.listening import keep_tls_buffers_small
from capstore.service.server import Served, Service, start
from capstore.service.shares import StandingShare
from capstore.service.state import StateDirectory
from capstore.tools.confine import Sandbox, confine, reached
from capstore.tools.console import drop_stdout
from capstore.tools.observing import ObserveOptions, observed, open_observers

log = logging.getLogger("capstore.serve")

VOLUME_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_NAMED = re.compile(r"(?P<name>[^=:,/]*)=(?P<spec>.*)", re.DOTALL)
_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>\d{1,5})")
# How long a worker goes on computing when the loop has something to do; Python's own is ten times
# that.
_SWITCH_SECONDS = 0.0005
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


# Opens what is served, by name; archives keep their indices in the directory, and what was opened
# is closed by the stack.
Opener = Callable[[Path, AsyncExitStack], Awaitable[dict[str, Served]]]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What was typed, or stands in a configuration; `opener` opens the volumes of that one."""

    volumes: Sequence[str]
    listen: Sequence[str]
    state: Path
    uri_file: Path | None
    log_level: str
    opener: Opener | None = None
    shares: Sequence[StandingShare] | None = None
    # What the volumes that `opener` opens are made of.
    leaves: Sequence[Spec] = ()
    sandbox: Sandbox = Sandbox.OFF
    observe: ObserveOptions = field(default_factory=ObserveOptions)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket to listen on."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address to listen on, with TLS."""

    host: str
    port: int


Address = UnixAddress | TcpAddress


# What was typed ----------------------------------------------------------------------------------


def parse_volumes(texts: Sequence[str]) -> dict[str, str]:
    """Specifications by name.  Raises a usage error, and `InvalidArgument` for a specification."""
    volumes: dict[str, str] = {}
    for text in texts:
        match = _NAMED.fullmatch(text)
        name, spec = (match["name"], match["spec"]) if match else (_default_name(text), text)
        if not VOLUME_NAME.fullmatch(name):
            raise typer.BadParameter(
                f'"{name}" cannot name a volume (letters, digits, ".", "_", "-"): write NAME=SPEC'
            )
        if name in volumes:
            raise typer.BadParameter(f'two volumes are called "{name}": write NAME=SPEC')
        volumes[name] = spec
    return volumes


def _default_name(spec_text: str) -> str:
    spec = Spec.parse(spec_text)
    if not spec.argument:
        return spec.scheme
    return Path(spec.argument).resolve().name or spec.scheme


def parse_address(text: str) -> Address:
    """An address to listen on.  Raises a usage error."""
    if text.startswith("unix:") and text != "unix:":
        return UnixAddress(Path(text.removeprefix("unix:")))
    match = _TCP.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise typer.BadParameter(f'"{text}" is no address: unix:PATH or HOST:PORT')
    return TcpAddress(match["v6"] or match["host"], int(match["port"]))


def absolute_address(text: str) -> str:
    """An address as it was typed, wherever the process works."""
    path = text.removeprefix("unix:")
    return f"unix:{Path(path).absolute()}" if path and path != text else text


def refuse_own_secrets(spec_text: str, secrets: Sequence[Path]) -> None:
    """Raises `Denied` for a host directory, be it a part of what is composed, that holds one of
    `secrets`: whoever reads the volume would own the service."""
    for spec in leaves(spec_text):
        root = _host_directory(spec)
        for secret in secrets:
            if root is not None and secret.resolve().is_relative_to(root):
                raise Denied(
                    f'the volume "{spec_text}" would hold the secrets of the service itself '
                    f'("{secret}"): keep them elsewhere'
                )


def _host_directory(spec: Spec) -> Path | None:
    """The directory of this machine that all below is served of, if it is one."""
    path = spec.argument
    if spec.scheme == "pyfs":
        path = path.removeprefix("file://").removeprefix("osfs://")
    elif spec.scheme not in ("dir", OCI):
        return None
    if not path or "://" in path:
        return None
    return Path(path).expanduser().resolve()


# Running -----------------------------------------------------------------------------------------


async def serve_until_told(options: ServeOptions) -> None:
    """Serves until a signal.  Raises what keeps it from serving or from stopping cleanly."""
    volumes = parse_volumes(options.volumes)
    addresses = [parse_address(text) for text in options.listen]
    options.observe.check()
    _log_to_stderr(options.log_level)
    addresses = addresses or [UnixAddress(options.state / "socket")]
    serving = asyncio.create_task(_serve(options, volumes, addresses))
    _cancel_at_signal(serving)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()
    log.info("stopped")


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("capstore").setLevel(level.upper())
    # It warns of each answer that nobody takes any more: that is for peers to cause, and no news.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    sys.unraisablehook = _log_ignored


def _log_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """What Python can raise nowhere, as a line of the log."""
    if isinstance(ignored.exc_value, UnicodeDecodeError) and isinstance(ignored.object, bytes):
        # The ssl module, of the name that a ClientHello asks for: anybody may send that.
        log.info("a handshake asks for a name that is none")
    else:
        log.error("ignored in %r", ignored.object, exc_info=ignored.exc_value)


def _cancel_at_signal(serving: asyncio.Task[None]) -> None:
    """Has the first signal cancel the task `serving`, and leaves a second one its effect."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            # Not KeyboardInterrupt for SIGINT: whoever asks twice does not want to wait.
            signal.signal(number, signal.SIG_DFL)
        log.info("stopping")
        serving.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)


async def _serve(
    options: ServeOptions, volumes: dict[str, str], addresses: Sequence[Address]
) -> None:
    if options.sandbox is not Sandbox.OFF:
        # What cannot be in it is told before anything is opened.
        reached(_leaves(options, volumes))
    own = (options.state, options.uri_file, options.observe.file)
    secrets = [path for path in own if path is not None]
    for spec in volumes.values():
        refuse_own_secrets(spec, secrets)
    raise_descriptor_limit()
    keep_tls_buffers_small()
    state = await in_worker(lambda: StateDirectory.open(options.state))
    async with AsyncExitStack() as opening:
        opening.callback(state.close)
        if options.opener is not None:
            served = await options.opener(options.state / "cache", opening)
        else:
            volumes = volumes or _own_volumes(options.state)
            served = await _opened(volumes, options.state / "cache", opening)
        # From here on the service closes them.
        observers = await open_observers(options.observe)
        running = start(served, state, software=_software(), observers=observers)
        opening.pop_all()
        async with running as service, observed(options.observe, observers, options.state):
            tokens = await _shared(service, options.shares)
            for address in addresses:
                await _listen(service, address)
            shared = [(label, uri) for label, token in tokens for uri in service.uris(token)]
            lines = "".join(f"{name}\t{uri}\n" for name, uri in service.owner_uris() + shared)
            if (file := options.uri_file) is not None:
                await in_worker(lambda: replace_file(file, lines.encode()))
            await _confine(options, volumes)
            _tell_what_stays(options, addresses)
            prefer_short_pauses()
            _announce(lines)
            await asyncio.Event().wait()


async def _shared(
    service: Service, shares: Sequence[StandingShare] | None
) -> list[tuple[str, str]]:
    """Labels and tokens of what is shared from the start; what cannot be is logged."""
    if shares is None:
        return []
    kept = await service.keep_shares(shares)
    for share, _, error in kept:
        if error is not None:
            log.error('"%s" is not shared: volume %s: %s', share.label, share.volume, error)
    return [(share.label, token) for share, token, _ in kept if token is not None]


async def _confine(options: ServeOptions, volumes: dict[str, str]) -> None:
    """From here on nothing is opened by a path but below what is served, nor can be in the sandbox.

    Raises as `confine`."""
    _load_what_comes_later()
    if options.sandbox is not Sandbox.OFF:
        await confine(
            _leaves(options, volumes),
            _own_folders(options),
            required=options.sandbox is Sandbox.REQUIRED,
        )


def _tell_what_stays(options: ServeOptions, addresses: Sequence[Address]) -> None:
    """Names the files of sockets that the sandbox keeps the service from removing."""
    if options.sandbox is Sandbox.OFF:
        return
    metrics = options.observe.metrics
    sockets = [*addresses, *([] if metrics is None else [parse_address(metrics)])]
    folders = [folder.resolve() for folder in _own_folders(options)]
    for address in sockets:
        if not isinstance(address, UnixAddress):
            continue
        parent = address.path.absolute().parent.resolve()
        if not any(parent.is_relative_to(folder) for folder in folders):
            log.info(
                "the socket %s stays behind at the stop: the sandbox leaves no right to remove it; "
                "the next start replaces it",
                address.path,
            )


def _own_folders(options: ServeOptions) -> list[Path]:
    """The directories that the service itself makes files in while it runs."""
    return [options.state, *options.observe.folders]


def _leaves(options: ServeOptions, volumes: dict[str, str]) -> list[Spec]:
    """What the volumes are made of."""
    return [*options.leaves, *(leaf for text in volumes.values() for leaf in leaves(text))]


def _load_what_comes_later() -> None:
    """Has the libraries load what they would look for in the middle of the work."""
    time.localtime()
    try:
        raise InternalError("")
    except InternalError as error:
        traceback.format_exception(error)


def prefer_short_pauses() -> None:
    """The loop has what it needs sooner than other threads would let it have it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What is there by now stays: collections of garbage need not look at it each time.
    gc.freeze()


def raise_descriptor_limit() -> None:
    """Takes as many descriptors as there may be: each open file of a client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _opened(
    volumes: dict[str, str], cache: Path, opening: AsyncExitStack
) -> dict[str, Served]:
    """Opens volumes by name; `opening` closes those that are open if another one fails."""
    served: dict[str, Served] = {}
    for name, spec in volumes.items():
        try:
            served[name] = await open_backer(spec, cache=cache)
        except StorageError as error:
            # A URL may hold a password.
            shown = spec if Spec.parse(spec).scheme != "pyfs" else "pyfs:..."
            where = f'volume "{name}" ({shown})'
            raise StorageError.of(error.code, f"{where}: {error.message}") from error
        opening.push_async_callback(served[name].close)
        log.info("volume %s is open", name)
    return served


def _own_volumes(state: Path) -> dict[str, str]:
    """What is served where nothing else is asked for, made at the first start."""
    folder = re.sub(r"([\\,])", r"\\\1", str(state))
    return {
        "files": f"wf1:{folder}/files.wf1,create",
        "objects": f"st1:{folder}/objects.st1,create",
    }


def _software() -> str:
    from importlib.metadata import version

    return f"capstore {version('capstore')}"


async def _listen(service: Service, address: Address) -> None:
    if isinstance(address, UnixAddress):
        await service.listen_unix(address.path)
        log.info("listening on the socket %s", address.path)
    else:
        await service.listen_tls(address.host, address.port)
        log.info("listening on %s:%d", address.host, address.port)


def _announce(lines: str) -> None:
    """Says that the service is ready."""
    try:
        sys.stdout.write(lines)
        sys.stdout.flush()
    except OSError:
        # Nobody wants the URIs any more; somebody may still hold saved ones.
        log.warning("stdout is closed: the URIs were not printed")
        drop_stdout()
