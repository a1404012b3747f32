"""What ``capstore serve`` is asked to tell of itself: the audit and the metrics.

Invariants: what cannot be opened keeps the service from starting.  The file in the state directory
that says where the metrics are is there as long as they are.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from capstore.backers.workers import in_worker
from capstore.images.durable import replace_file

if TYPE_CHECKING:
    from capstore.service.audit import Audit, Sink
    from capstore.service.metrics import Metrics
    from capstore.service.observing import Observers

__all__ = ["METRICS_NOTE", "ObserveOptions", "observed", "open_observers"]

# The file in the state directory that holds the address of the metrics.
METRICS_NOTE: Final = "metrics"


@dataclass(frozen=True, slots=True)
class ObserveOptions:
    """What was typed: `audit` is a path, "-" for stderr or None; `metrics` an address or None."""

    audit: str | None = None
    calls: Sequence[str] = ()
    only: Sequence[str] = ()
    names: bool = False
    required: bool = False
    size_max: int = 0
    keep: int = 0
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

    def check(self) -> None:
        """Raises a usage error."""
        if self.audit is None and (self.calls or self.only or self.names or self.required):
            raise typer.BadParameter("what is audited is said beside --audit FILE")
        for glob in self.calls:
            _check_glob(glob)
        if self.metrics is not None:
            self._check_metrics(self.metrics)

    def _check_metrics(self, text: str) -> None:
        from capstore.service.metrics_endpoint import is_loopback
        from capstore.tools.serving import TcpAddress, parse_address

        address = parse_address(text)
        if not isinstance(address, TcpAddress) or self.anywhere or is_loopback(address.host):
            return
        raise typer.BadParameter(
            f'everybody who reaches "{text}" could read the metrics: '
            "take 127.0.0.1 or unix:PATH, or say --metrics-anywhere"
        )


def _check_glob(glob: str) -> None:
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
        size_max, keep = options.size_max, options.keep
        sink = await in_worker(lambda: AuditFile(path, size_max=size_max, keep=keep))
    selection = Selection(tuple(options.calls) or ("*",), frozenset(map(Only, options.only)))
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
