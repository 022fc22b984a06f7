"""The sequences of a micro-batch, chosen where the job leaves them open, and how many a step takes: arithmetic.

Larger batches keep a device busy; three things speak against them: tokens beyond which nothing is gained, an epoch of
few steps, and memory.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_SEQUENCES = 16
MAX_TOKENS = 16_384
"""Of one micro-batch on one device."""
MIN_STEPS_PER_EPOCH = 25
"""Fewer, and the default of `min_update_steps` would repeat the data more than four times."""


def micro_batches_per_worker(sequences_per_step: int, micro_batch_size: int, num_workers: int) -> int:
    """How many micro-batches each worker takes in a step, so that all together have room for its sequences."""
    return -(-sequences_per_step // (micro_batch_size * num_workers))


def choose_batch_size(
    sequence_tokens: int, steps_per_epoch: Callable[[int], int], find_shortage: Callable[[int], str | None]
) -> tuple[int, str]:
    """(sequences per micro-batch, a power of two, and the reason, to stand behind it).

    `steps_per_epoch` of a size; `find_shortage` says what memory a size would lack, None where it fits or that is not
    known.
    """
    size, reason = MAX_SEQUENCES, ", the most that is taken unasked"
    while size > 1:
        if size * sequence_tokens > MAX_TOKENS:
            against: str | None = f"hold {size * sequence_tokens:,} tokens, more than {MAX_TOKENS:,}"
        elif steps_per_epoch(size) < MIN_STEPS_PER_EPOCH:
            against = f"leave an epoch {steps_per_epoch(size)} steps, fewer than {MIN_STEPS_PER_EPOCH}"
        else:
            against = find_shortage(size)
        if against is None:
            break
        reason = f"; {size} would {against}"
        size //= 2
    return size, reason
