"""Memory that a training step frees and the next one takes again should not go back to the system in between."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
LARGEST = 32 * 2**20  # what it accepts for M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """For this process, from now on: freed memory stays at hand; False where the C library is not GNU's.

    As it comes, the library gives freed tensors back after each backward pass, and the next step pays a page fault for every 4 KiB of
    them: 3 to 5 % of a step on a CPU (docs/log.md). The process never holds more than it once needed at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
