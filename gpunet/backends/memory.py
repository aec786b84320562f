"""Keeps the memory of freed arrays for the next ones.

glibc gives a large block back to the system when it is freed, and every page of the next one then costs a page fault:
about 1 µs per 4 KB, more than computing on it takes. A training step frees and allocates the same sizes over and over.
So the allocator is told to keep what is freed; what a process holds is then its peak. $GPUNET_KEEP_MEMORY=0 leaves
the allocator as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers that <malloc.h> gives them
_LARGEST = 32 << 20  # bytes; glibc takes no larger threshold, and for such blocks faults matter less


def keep() -> None:
    """Tell glibc's malloc to keep freed blocks; elsewhere, do nothing."""
    if os.environ.get("GPUNET_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 1 << 30)
