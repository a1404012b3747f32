"""How this process's C library hands memory back to the kernel: reluctantly.

Invariants: nothing but speed depends on it; with another C library than glibc it does nothing.

A message of 256 KiB is allocated and freed for each read. By default glibc gives blocks of that
size back to the kernel at once, and each comes again page by page, zeroed: measured, that costs
several times what reading the file does. It is a setting of the whole process, so the command
makes it, and the library does not.

What is kept is bounded: each arena keeps that much, and glibc makes eight for a processor, one for
a thread. Python allocates under its lock, so threads hardly wait for each other's arena, and few
are enough.
"""

from __future__ import annotations

import ctypes

from capstore.schema.limits import MIB

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_TRIM_BYTES = 64 * MIB
# glibc takes no more than HEAP_MAX_SIZE / 2.
_MMAP_BYTES = 32 * MIB
# Without a bound glibc reads from /sys how many processors there are, when a ninth thread needs
# memory.
_ARENAS_MAX = 2


def keep_freed_memory() -> None:
    """Lets the allocator keep up to `_TRIM_BYTES` that were freed, `_ARENAS_MAX` times."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS_MAX)
