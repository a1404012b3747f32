"""How this process's C library hands memory back to the kernel: reluctantly.

Invariants: nothing but speed depends on it; with another C library than glibc it does nothing.

A message of 256 KiB is allocated and freed for each read. By default glibc gives blocks of that
size back to the kernel at once, and each comes again page by page, zeroed: measured, that costs
several times what reading the file does. It is a setting of the whole process, so the command
makes it, and the library does not.
"""

from __future__ import annotations

import ctypes
import os

from capstore.schema.limits import MIB

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_TRIM_BYTES = 64 * MIB
# glibc takes no more than HEAP_MAX_SIZE / 2.
_MMAP_BYTES = 32 * MIB
# What glibc takes itself on 64 bits, when a ninth thread needs memory: then it reads from /sys how
# many processors there are.
_ARENAS_PER_PROCESSOR = 8


def keep_freed_memory() -> None:
    """Lets the allocator keep up to `_TRIM_BYTES` that were freed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS_PER_PROCESSOR * (os.cpu_count() or 1))
