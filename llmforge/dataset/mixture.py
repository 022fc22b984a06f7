"""How often each row of several sources is trained on in one epoch, so that the sources have the shares that are asked.

In: the source of every row, and the weights of the sources. Out: indexes of rows, those of a row that is repeated
several times. A row of a source is repeated as often as any other of it, but for a rest that is drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmforge.config.data import MixtureStrategy


def mix(
    sources: NDArray[np.int32], weights: Sequence[float | None], strategy: MixtureStrategy, seed: int
) -> NDArray[np.int64]:
    """Indexes into `sources`, grouped by source in order, each source as often as its weight says.

    `sources`: the number of the source of every row, shape (rows,). A source without a weight weighs its number of
    rows. `all_exhausted`: every row occurs at least once, those of one source exactly once; `first_exhausted`: no row
    occurs twice, and all rows of at least one source do. A source that has a row keeps at least one.
    """
    counts = np.bincount(sources, minlength=len(weights))
    shares = np.array([count if weight is None else weight for weight, count in zip(weights, counts, strict=True)])
    present = np.flatnonzero(counts)
    if len(present) == 0:
        return np.zeros(0, dtype=np.int64)
    ratios = counts[present] / shares[present]
    scale = ratios.max() if strategy == "all_exhausted" else ratios.min()
    chosen: list[NDArray[np.int64]] = []
    for source in present:
        rows = np.flatnonzero(sources == source)
        copies, rest = divmod(max(1, round(shares[source] * scale)), len(rows))
        drawn = np.random.default_rng([seed, int(source)]).permutation(len(rows))[:rest]
        chosen += [rows] * copies + [rows[np.sort(drawn)]]
    return np.concatenate(chosen)
