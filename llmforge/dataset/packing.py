"""Which examples share one sequence.

In: the lengths of examples in their order, in tokens. Out: lists of their indexes, each list one pack of at most the
capacity. Best-fit decreasing within a window (Johnson, "Near-optimal bin packing algorithms", 1973), so memory is
bounded and the result depends on nothing but the lengths.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

WINDOW = 2048
"""Examples looked at together: enough for a token efficiency within a percent of packing everything at once."""


def pack(lengths: Sequence[int], capacity: int, window: int = WINDOW) -> Iterator[list[int]]:
    """Yield packs in the order of their first example. Every length must be between 1 and `capacity`."""
    for start in range(0, len(lengths), window):
        indexes = range(start, min(start + window, len(lengths)))
        packs: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, number of the pack), sorted
        for index in sorted(indexes, key=lambda i: (-lengths[i], i)):
            fit = bisect_left(room, (lengths[index], -1))
            if fit < len(room):
                left, number = room.pop(fit)
                packs[number].append(index)
            else:
                left, number = capacity, len(packs)
                packs.append([index])
            if left > lengths[index]:
                insort(room, (left - lengths[index], number))
        yield from sorted((sorted(members) for members in packs), key=lambda members: members[0])
