"""The loss of a micro-batch of pairs: how much likelier a model finds the chosen answers than the rejected ones.

In: a `Batch` with `AnswerPairs`. Out: a sum over pairs, and what is measured of them. The losses themselves, functions
of the log-probabilities of whole answers, are in `preference_losses.py`.

The log-probability of an answer needs all of its tokens before its gradient is known, so the output layer is passed
twice: first without gradients, for the sums `s`, from which follow the loss `L(s)` and its gradient `dL/ds` by
autograd on the small vector. Then `OutputLoss` computes the cross entropy with `-dL/ds` of the answer as the weight of
each of its tokens, whose gradient is that of `L`. No matrix of tokens x vocabulary exists at any time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from llmforge.config.training import PreferenceTuningConfig
from llmforge.train.answer_pairs import AnswerPairs
from llmforge.train.batches import Batch
from llmforge.train.losses import Computed, NextTokenLoss
from llmforge.train.preference_losses import PairScores, measure_names, measure_pairs, pair_losses


class AnswerScorer(NextTokenLoss):
    """Log-probabilities of answers; of a batch without pairs, the loss of next tokens."""

    def answer_sums(self, batch: Batch, pairs: AnswerPairs) -> torch.Tensor:
        """Of every answer, summed over its tokens, without a gradient; shape (answers,)."""
        with torch.no_grad():
            if self.uses_own_logits:
                return pairs.sums(-_losses_of(self.own_logits(batch), batch))
            return self.sums_of(self.hidden_states(batch), batch, pairs)

    def sums_of(self, hidden: torch.Tensor, batch: Batch, pairs: AnswerPairs) -> torch.Tensor:
        """The same of hidden states of the trained positions."""
        with torch.no_grad():
            return pairs.sums(-self.head(hidden, batch.targets, None, each=True))


class PreferenceLoss(AnswerScorer):
    """The loss of every pair, summed; of a batch without pairs, the loss of next tokens."""

    def __init__(self, model: PreTrainedModel | PeftModel, config: PreferenceTuningConfig) -> None:
        """`config` with its defaults filled in."""
        super().__init__(model)
        self._config = config
        self.measure_names = measure_names(config)

    def forward(self, batch: Batch) -> Computed:
        """The sum, a scalar in float32, and the sums of the measures."""
        pairs = batch.pairs
        if pairs is None:
            return super().forward(batch)
        reference = self._reference(batch, pairs)
        if self.uses_own_logits:
            return self._scored(pairs.sums(-_losses_of(self.own_logits(batch), batch)), pairs, reference)
        hidden = self.hidden_states(batch)
        sums = self.sums_of(hidden, batch, pairs)
        if not torch.is_grad_enabled():
            return self._scored(sums, pairs, reference)
        loss, measures = self._scored(sums.requires_grad_(), pairs, reference)
        (gradient,) = torch.autograd.grad(loss, sums)
        same_gradient = self.head(hidden, batch.targets, pairs.to_tokens(-gradient))
        return loss.detach() + (same_gradient - same_gradient.detach()), measures

    def _scored(
        self, sums: torch.Tensor, pairs: AnswerPairs, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss with its gradient by the sums, and the measures."""
        scores = PairScores(
            *_split(sums), *_split(pairs.num_tokens), *((None, None) if reference is None else _split(reference))
        )
        with torch.no_grad():
            measures = measure_pairs(scores, self._config)
        return pair_losses(scores, self._config).sum(), measures

    def _reference(self, batch: Batch, pairs: AnswerPairs) -> torch.Tensor | None:
        """Log-probabilities by the reference model, where the loss has one; shape (answers,)."""
        if not self._config.needs_reference:
            return None
        if self._config.reference == "precomputed":
            assert pairs.reference is not None or len(pairs.num_tokens) == 0
            return torch.zeros_like(pairs.num_tokens) if pairs.reference is None else pairs.reference
        with self._adapter_off():
            return self.answer_sums(batch, pairs)

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        """The model as it was before it had an adapter, without dropout."""
        assert isinstance(self.model, PeftModel)
        was_training = self.model.training
        self.model.eval()
        self.model.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self.model.base_model.enable_adapter_layers()
            self.model.train(was_training)


def _losses_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross entropy of every trained token, in float32."""
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the chosen and those of the rejected answers."""
    return values[0::2], values[1::2]
