"""Large tensors reuse memory the process already has, instead of asking the kernel for fresh pages at every step.

glibc returns large freed blocks at once and requests them again, page by page, each page zeroed: at 450M parameters and
a micro-batch of 32 that was a million page faults and 30 % of a training step on a virtual machine. The loop and the
evaluation of whole splits call `keep_freed_memory` once; nothing else depends on it.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's names for its parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for reuse until the process ends. False where the C library has no such setting (not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def held_bytes() -> int:
    """Freed memory that the process keeps for reuse; 0 where the C library does not say (not glibc 2.33 or later)."""
    if not sys.platform.startswith("linux"):
        return 0
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _MallocInfo
    return int(mallinfo2().fordblks)


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]
