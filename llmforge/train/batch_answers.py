"""The answers of a batch that are compared: which trained token belongs to which of them.

In: samples whose examples are pairs, or rated or mismatched answers. Out: `Answers`, small tensors beside those of
the batch. It does not know how the tokens are laid out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.shards import Sample


@dataclass(frozen=True)
class Answers:
    """The answers in their order, of pairs each chosen one before its rejected one."""

    answer_of: torch.Tensor
    """Which answer each trained token belongs to; one that stands in where nothing is trained belongs to none, and has
    the number behind the last. Shape (trained tokens,)."""
    place_of: torch.Tensor
    """Which of the trained tokens of its answer each one is, counted from 0; shape (trained tokens,)."""
    num_tokens: torch.Tensor
    """Trained tokens of each answer, in float32; shape (answers,)."""
    longest: int
    """Trained tokens of the longest answer, at least 1."""
    reference: torch.Tensor | None = None
    """Their log-probabilities by the reference model, where these were computed beforehand; shape (answers,)."""
    are_desirable: torch.Tensor | None = None
    """Of rated answers what their labels say; shape (answers,)."""

    def by(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Answers":
        """With every tensor moved."""
        return Answers(
            move(self.answer_of),
            move(self.place_of),
            move(self.num_tokens),
            self.longest,
            None if self.reference is None else move(self.reference),
            None if self.are_desirable is None else move(self.are_desirable),
        )

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the trained tokens, added up over each answer, in float32; shape (answers,).

        By a table with a row for each answer: adding up by index has no fixed order on a GPU, and a run would not
        resume exactly.
        """
        count = len(self.num_tokens)
        table = torch.zeros(count + 1, self.longest, device=values.device)
        return table.index_put((self.answer_of, self.place_of), values.float()).sum(dim=1)[:count]

    def to_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """For each trained token the value of its answer, 0 where it has none; shape (trained tokens,)."""
        return torch.cat([values, values.new_zeros(1)])[self.answer_of]


def answers_of(samples: Sequence[Sample]) -> Answers:
    """Of samples with answers that are compared, perhaps none."""
    nothing = np.zeros(0, dtype=np.int64)
    lengths = np.concatenate([nothing, *(sample.example_lengths for sample in samples)])
    labels = np.concatenate([nothing, *(sample.labels for sample in samples)])
    answer_of = np.repeat(np.arange(len(lengths)), lengths)[labels != IGNORED_LABEL]
    num_tokens = np.bincount(answer_of, minlength=len(lengths))
    place_of = np.arange(len(answer_of)) - np.repeat(np.cumsum(num_tokens) - num_tokens, num_tokens)
    references = [sample.reference for sample in samples if sample.reference is not None]
    labels_of_answers = [sample.are_desirable for sample in samples if sample.are_desirable is not None]
    nobody, first = np.full(1, len(lengths)), np.zeros(1, dtype=np.int64)
    return Answers(
        torch.from_numpy(answer_of if len(answer_of) else nobody),
        torch.from_numpy(place_of if len(place_of) else first),
        torch.from_numpy(num_tokens.astype(np.float32)),
        max(1, int(num_tokens.max(initial=0))),
        torch.from_numpy(np.concatenate(references)) if references else None,
        torch.from_numpy(np.concatenate(labels_of_answers)) if labels_of_answers else None,
    )
