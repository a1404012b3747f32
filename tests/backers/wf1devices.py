"""Devices that count, and that wait where a test wants them to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from capstore.backers.wf1 import Wf1Volume
from capstore.images.device import BlockDevice
from capstore.images.devices import MemoryDevice
from capstore.images.faults import CountdownDevice, RecordingDevice
from capstore.images.wf1_open import format_wf1


def formatted(size: int | None = None) -> MemoryDevice:
    device = MemoryDevice()
    format_wf1(device, size=size)
    return device


async def over(device: BlockDevice) -> Wf1Volume:
    return await Wf1Volume.over(lambda: device)


class GatedDevice(RecordingDevice):
    """Waits in a flush while that gate is closed, and in one read after `catch_read` until its
    gate is opened; nothing in it is ever at hand.

    `flushes` counts those that began; `waiting` is set when something has come to a gate.
    """

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.flushes = 0
        self.flush_gate = threading.Event()
        self.read_gate = threading.Event()
        self.waiting = threading.Event()
        self.flush_gate.set()
        self._catches_read = False

    def catch_read(self) -> None:
        """Has the next read wait."""
        self.waiting.clear()
        self.read_gate.clear()
        self._catches_read = True

    def _pass(self, gate: threading.Event) -> None:
        if not gate.is_set():
            self.waiting.set()
            assert gate.wait(30)

    def flush(self) -> None:
        self.flushes += 1
        self._pass(self.flush_gate)
        super().flush()

    def read_into(self, offset: int, view: memoryview) -> None:
        caught, self._catches_read = self._catches_read, False
        if caught:
            self._pass(self.read_gate)
        super().read_into(offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds, which has to be soon."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


__all__ = ["CountdownDevice", "GatedDevice", "MemoryDevice", "formatted", "over", "until"]
