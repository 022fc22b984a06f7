"""The loss of a micro-batch of labelled rows, and the logits of their labels for whoever evaluates.

In: a `Batch` whose trained tokens are labels. Out: the cross entropy of these tokens over the whole vocabulary, so that
the model writes a label of its own accord too, and how many rows have the label that is the likeliest of all labels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel

from llmforge.models.liger import FusedLoss
from llmforge.train.batches import Batch
from llmforge.train.losses import Computed, NextTokenLoss, weighted_cross_entropy

ACCURACY = "accuracy"


@dataclass(frozen=True)
class LabelLogits:
    """What a model says of the labels of some rows."""

    logits: torch.Tensor
    """Of every label, in float32; shape (rows, labels)."""
    targets: torch.Tensor
    """Ids of the tokens that were to be chosen; shape (rows,)."""


class ClassificationLoss(NextTokenLoss):
    """Cross entropy of every label times the weight of its row, summed, and the weights of those that are found."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        token_ids: Sequence[int],
        fused_loss: FusedLoss | None = None,
    ) -> None:
        """`token_ids` are those of the labels."""
        super().__init__(model, fused_loss)
        self.measure_names = (ACCURACY,)
        self._token_ids = tuple(token_ids)
        self._collected: list[LabelLogits] | None = None

    @contextmanager
    def collecting(self) -> Iterator[list[LabelLogits]]:
        """Within this context the list is filled with what the model says of every batch."""
        self._collected = []
        try:
            yield self._collected
        finally:
            self._collected = None

    def forward(self, batch: Batch) -> Computed:
        """The sum, a scalar in float32, and the sum of the measure."""
        columns = torch.tensor(self._token_ids, device=batch.targets.device)
        if self.uses_own_logits:
            logits = self.own_logits(batch)
            of_labels = logits.detach()[:, columns].float()
            loss = weighted_cross_entropy(logits, batch.targets, batch.weights)
        else:
            hidden = self.hidden_states(batch)
            of_labels = self.head(hidden, batch.targets, None, columns=columns)
            loss = self.head(hidden, batch.targets, batch.weights)
        is_found = (columns[of_labels.argmax(dim=1)] == batch.targets).double()
        if self._collected is not None:
            self._collected.append(_of_rows(of_labels, batch))
        return loss, (is_found if batch.weights is None else is_found * batch.weights).sum().view(1)


def gather_label_logits(collected: Sequence[LabelLogits]) -> LabelLogits:
    """Those of all ranks on every rank, on the CPU, in an order that does not depend on who had which rows."""
    own = [(one.logits.cpu(), one.targets.cpu()) for one in collected]
    ranks: list[list[tuple[torch.Tensor, torch.Tensor]]] = [own] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    logits = torch.cat([logits for rank in ranks for logits, _ in rank])
    targets = torch.cat([targets for rank in ranks for _, targets in rank])
    for column in reversed(range(logits.shape[1])):
        order = logits[:, column].argsort(stable=True)
        logits, targets = logits[order], targets[order]
    order = targets.argsort(stable=True)
    return LabelLogits(logits[order], targets[order])


def _of_rows(of_labels: torch.Tensor, batch: Batch) -> LabelLogits:
    """Without the position that stands in where nothing is trained, whose weight is 0."""
    if batch.weights is None:
        return LabelLogits(of_labels, batch.targets)
    is_row = batch.weights > 0
    return LabelLogits(of_labels[is_row], batch.targets[is_row])
