"""Layers that pause before and after each call, so that an overlay can be met at each of them.

Every node that an overlay gets of such a layer pauses, too (`tests.contract.faults`); what the
layer is given is its own again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from capstore.backers.layer import Layer, Upper
from capstore.backers.node import DirectoryNode, FileNode, Volume
from capstore.schema.errors import StorageIOError
from tests.contract.faults import DelayedDirectory, DelayedFile, Delays

T = TypeVar("T")


class Broken(StorageIOError):
    """What a layer says whose call is to fail."""


class Moments(Delays):
    """Counts calls of layers while somebody is `watched`, and has one of them be the last: he is
    cancelled behind it, or it fails."""

    def __init__(self) -> None:
        self.count = 0
        # Whether a call has failed.
        self.has_failed = False
        self._last = 0
        self._fails = False
        self._victim: asyncio.Task[None] | None = None

    async def around(self, call: Awaitable[T]) -> T:
        """Pauses behind the call only: in front of it all is as behind the one before."""
        if self._victim is None:
            return await call
        self.count += 1
        if self.count == self._last and self._fails:
            getattr(call, "close", lambda: None)()
            self.has_failed = True
            raise Broken("as it was to be")
        number = self.count
        result = await call
        if number == self._last and self._victim is not None:
            self._victim.cancel()
        await asyncio.sleep(0)
        return result

    async def watched(self, work: Awaitable[None], last: int = 0, *, fails: bool = False) -> None:
        """Does `work`, and has the call number `last` be the last one."""

        async def run() -> None:
            await work

        self.count, self._last, self._fails, self.has_failed = 0, last, fails, False
        self._victim = asyncio.create_task(run())
        try:
            await self._victim
        except asyncio.CancelledError:
            pass
        except (AssertionError, Broken):
            # The model has no layers that fail.
            if not self.has_failed:
                raise
        finally:
            self._victim = None


def _plain(what: Any) -> Any:
    return what._inner if isinstance(what, DelayedDirectory | DelayedFile) else what


def _slow(name: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: SlowLayer, *arguments: Any, **options: Any) -> Any:
        call = getattr(self.inner, name)(*map(_plain, arguments), **options)
        found = await self.delays.around(call)
        if isinstance(found, DirectoryNode):
            return DelayedDirectory(found, self.delays)
        return DelayedFile(found, self.delays) if isinstance(found, FileNode) else found

    return method


class SlowLayer(Layer):
    """A layer that pauses."""

    def __init__(self, inner: Layer, delays: Delays) -> None:
        self.inner = inner
        self.delays = delays

    @property
    def volume(self) -> Volume:
        return self.inner.volume

    @property
    def root(self) -> DirectoryNode:
        return DelayedDirectory(self.inner.root, self.delays)

    @property
    def redirects(self) -> bool:
        """Whether an upper layer has them."""
        inner = self.inner
        assert isinstance(inner, Upper)
        return inner.redirects

    def holds(self, name: str) -> bool:
        return self.inner.holds(name)


def _slowed(name: str, *layers: type) -> type:
    """`SlowLayer` with all that such layers do, for there is one thing to be done for each."""
    methods = {
        method: _slow(method)
        for layer in layers
        for method, function in vars(layer).items()
        if inspect.iscoroutinefunction(function)
    }
    return type(name, (SlowLayer, *layers[1:]), methods)


_SlowLower = _slowed("SlowLower", Layer)
_SlowUpper = _slowed("SlowUpper", Layer, Upper)


def slow_lower(layer: Layer, delays: Delays) -> Layer:
    """A lower layer that pauses."""
    slow: Layer = _SlowLower(layer, delays)
    return slow


def slow_upper(layer: Upper, delays: Delays) -> Upper:
    """An upper layer that pauses."""
    slow: Upper = _SlowUpper(layer, delays)
    return slow
