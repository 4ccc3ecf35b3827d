"""Large parents park in huge pages: a fork then copies one entry of the page table where it copied 512.

A small parent would lose by it, as a child that writes into a huge page first splits it.
"""

from __future__ import annotations

import re

MIN_BYTES = 32 << 20  # of memory that would gain by it
_HUGE = 2 << 20
_WORTH = 2 * _HUGE  # a mapping of this size holds a whole huge page, wherever it begins
_MADV_COLLAPSE = 25
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(\[heap\])?\n")


def collapse() -> int:
    """Puts the large mappings that are mostly this process' own into huge pages; returns how many pages that made.

    What is shared with a parent above stays as it is, shared. Kernels before 6.1 have no such call, and then nothing
    happens.
    """
    mappings = _own_mappings()
    if sum(end - start for start, end in mappings) < MIN_BYTES:
        return 0
    import ctypes  # only here: all other parents, and their forks, do without it

    madvise = ctypes.CDLL(None).madvise
    made = 0
    for start, end in mappings:
        for address in range(-(-start // _HUGE) * _HUGE, end - _HUGE + 1, _HUGE):
            made += madvise(ctypes.c_void_p(address), ctypes.c_size_t(_HUGE), _MADV_COLLAPSE) == 0
    return made


def _own_mappings() -> list[tuple[int, int]]:
    found = []
    try:
        with open("/proc/self/smaps") as file:
            mapping = 0, 0
            for line in file:
                if match := _MAPPING.fullmatch(line):
                    mapping = int(match[1], 16), int(match[2], 16)
                elif "-" in line.partition(" ")[0]:
                    mapping = 0, 0
                elif line.startswith("Private_Dirty:"):
                    size, private = mapping[1] - mapping[0], int(line.split()[1]) << 10
                    if size >= _WORTH and 2 * private >= size:
                        found.append(mapping)
    except OSError:  # no /proc
        pass
    return found
