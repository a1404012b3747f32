"""What ``capstore serve`` is asked to tell of itself: the audit and the metrics.

Invariants: what cannot be opened keeps the service from starting.  The file in the state directory
that says where the metrics are is there as long as they are.  An option of the command and a key of
``capstore.toml`` that mean the same have the same name.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from capstore.backers.workers import in_worker
from capstore.images.durable import replace_file
from capstore.schema.limits import MIB

if TYPE_CHECKING:
    from capstore.service.audit import Audit, Sink
    from capstore.service.metrics import Metrics
    from capstore.service.observing import Observers

__all__ = ["METRICS_NOTE", "ObserveOptions", "check_glob", "observed", "open_observers"]

# The file in the state directory that holds the address of the metrics.
METRICS_NOTE: Final = "metrics"
KEEP_MAX: Final = 1000
_SIZE_MAX_DEFAULT: Final = 64 * MIB
_KEEP_DEFAULT: Final = 8


@dataclass(frozen=True, slots=True)
class ObserveOptions:
    """What was asked for; what is None, empty or false was not said.

    `audit` is a path or "-" for stderr, `metrics` an address; a file of the audit has at most
    `size_max` bytes, 0 is no bound.
    """

    audit: str | None = None
    calls: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    names: bool = False
    required: bool = False
    size_max: int | None = None
    keep: int | None = None
    metrics: str | None = None
    anywhere: bool = False

    @property
    def file(self) -> Path | None:
        """The file of the audit."""
        return None if self.audit in (None, "-") else Path(str(self.audit)).absolute()

    @property
    def folders(self) -> list[Path]:
        """The directories in which files are made while the service runs."""
        return [] if self.file is None else [self.file.parent]

    def before(self, other: ObserveOptions) -> ObserveOptions:
        """These, and where nothing is said here what `other` says."""
        return replace(other, **{name: getattr(self, name) for name in self._said()})

    def _said(self) -> list[str]:
        """The fields that say something."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        # 0 says something, and is equal to False.
        return [
            name for name, value in values.items() if value not in (None, ()) and value is not False
        ]

    def conflicts(self, dashes: str) -> Iterator[tuple[str, str]]:
        """What does not go together: the name of an option, and why; `dashes` are what stands
        before such a name where it is said."""
        if self.audit is None:
            for name in self._said():
                if name in _AUDIT_OPTIONS:
                    message = f"what is audited is said beside {dashes}audit"
                    yield _AUDIT_OPTIONS[name], message
        if self.metrics is not None and not self.anywhere and _is_reachable(self.metrics):
            message = (
                f'everybody who reaches "{self.metrics}" could read the metrics: '
                f"take 127.0.0.1 or unix:PATH, or say {dashes}metrics-anywhere"
            )
            yield "metrics", message

    def check(self) -> None:
        """Raises a usage error."""
        for glob in self.calls:
            check_glob(glob)
        for name, message in self.conflicts("--"):
            raise typer.BadParameter(message, param_hint=f"'--{name}'")


# The options that say something of the audit, by the field of `ObserveOptions`.
_AUDIT_OPTIONS: Final = {
    "calls": "audit-calls",
    "only": "audit-only",
    "names": "audit-names",
    "required": "audit-required",
    "size_max": "audit-max-bytes",
    "keep": "audit-keep",
}


def _is_reachable(text: str) -> bool:
    """Whether others than who is on this machine reach an address.  Raises a usage error."""
    from capstore.service.metrics_endpoint import is_loopback
    from capstore.tools.serving import TcpAddress, parse_address

    address = parse_address(text)
    return isinstance(address, TcpAddress) and not is_loopback(address.host)


def check_glob(glob: str) -> None:
    """Raises a usage error for a glob that no method fits: it would leave out what was meant."""
    from fnmatch import fnmatchcase

    from capstore.service.decisions import ROWS

    methods = [f"{interface}.{method}" for interface, method in ROWS]
    methods += [f"Broken.{method}" for _, method in ROWS]
    if not any(fnmatchcase(method, glob) for method in methods):
        raise typer.BadParameter(f'no method fits "{glob}": write as in Directory.* or *.read')


async def open_observers(options: ObserveOptions) -> Observers | None:
    """Opens what is asked for; None for nothing.  Raises as `AuditFile`."""
    from capstore.service.metrics import Metrics
    from capstore.service.observing import Observers

    if options.audit is None and options.metrics is None:
        return None
    audit = await _audit(options) if options.audit is not None else None
    return Observers(audit, Metrics() if options.metrics is not None else None)


async def _audit(options: ObserveOptions) -> Audit:
    from capstore.service.audit import Audit, Only, Selection
    from capstore.service.audit_file import AuditFile, AuditStream

    sink: Sink
    if (path := options.file) is None:
        sink = AuditStream(sys.stderr.fileno())
    else:
        size_max = _SIZE_MAX_DEFAULT if options.size_max is None else options.size_max
        keep = options.keep or _KEEP_DEFAULT
        sink = await in_worker(lambda: AuditFile(path, size_max=size_max, keep=keep))
    selection = Selection(options.calls or ("*",), frozenset(map(Only, options.only)))
    return Audit(sink, selection, names=options.names, required=options.required)


@asynccontextmanager
async def observed(
    options: ObserveOptions, observers: Observers | None, state: Path
) -> AsyncIterator[None]:
    """While inside, the metrics can be read, and SIGHUP has the audit's file opened anew.

    Raises as `Endpoint.listen_tcp`, and OSError."""
    if observers is None:
        yield
        return
    async with AsyncExitStack() as stack:
        if observers.audit is not None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, observers.audit.reopen)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
        if observers.metrics is not None and options.metrics is not None:
            await _serve_metrics(options.metrics, observers.metrics, state, stack)
        yield


async def _serve_metrics(text: str, metrics: Metrics, state: Path, stack: AsyncExitStack) -> None:
    from capstore.service.metrics_endpoint import Endpoint
    from capstore.tools.serving import UnixAddress, parse_address

    address = parse_address(text)
    if isinstance(address, UnixAddress):
        endpoint = await Endpoint.listen_unix(metrics, address.path)
    else:
        endpoint = await Endpoint.listen_tcp(metrics, address.host, address.port)
    stack.push_async_callback(endpoint.close)
    note = state / METRICS_NOTE
    await in_worker(lambda: replace_file(note, f"{endpoint.url}\n".encode()))
    stack.callback(_remove, note)


def _remove(note: Path) -> None:
    with suppress(OSError):
        note.unlink()
