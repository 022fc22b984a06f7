"""The loss of a micro-batch of answers that are compared: chosen ones with rejected ones, or each with a number.

In: a `Batch` with `Answers`. Out: a sum over pairs or answers, and what is measured of them. The losses themselves,
functions of the log-probabilities of whole answers, are in `preference_losses.py` and `rated_losses.py`.

The log-probability of an answer needs all of its tokens before its gradient is known, so the output layer is passed
twice: first without gradients, for the sums `s`, from which follow the loss `L(s)` and its gradient `dL/ds` by
autograd on the small vector. Then `OutputLoss` computes the cross entropy with `-dL/ds` of the answer as the weight of
each of its tokens, whose gradient is that of `L`. No matrix of tokens x vocabulary exists at any time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from llmforge.config.training import PreferenceTuningConfig
from llmforge.train.batch_answers import Answers
from llmforge.train.batches import Batch
from llmforge.train.losses import Computed, NextTokenLoss
from llmforge.train.preference_losses import PairScores, measure_names, measure_pairs, pair_losses
from llmforge.train.rated_losses import (
    RATED_SUMS,
    RatedScores,
    log_ratio_total,
    measure_rated,
    rated_losses,
    rated_means,
)


class AnswerScorer(NextTokenLoss):
    """Log-probabilities of answers; of a batch without answers, the loss of next tokens."""

    def answer_sums(self, batch: Batch, answers: Answers) -> torch.Tensor:
        """Of every answer, summed over its tokens, without a gradient; shape (answers,)."""
        with torch.no_grad():
            if self.uses_own_logits:
                return answers.sums(-_losses_of(self.own_logits(batch), batch))
            return self.sums_of(self.hidden_states(batch), batch, answers)

    def sums_of(self, hidden: torch.Tensor, batch: Batch, answers: Answers) -> torch.Tensor:
        """The same of hidden states of the trained positions."""
        with torch.no_grad():
            return answers.sums(-self.head(hidden, batch.targets, None, each=True))


class PreferenceLoss(AnswerScorer):
    """The loss of every pair or rated answer, summed; of a batch without them, the loss of next tokens."""

    def __init__(self, model: PreTrainedModel | PeftModel, config: PreferenceTuningConfig) -> None:
        """`config` with its defaults filled in."""
        super().__init__(model)
        self._config = config
        self.has_reference_point = config.loss == "kto"
        self.measure_names = RATED_SUMS if self.has_reference_point else measure_names(config)

    def means(self, sums: Sequence[float], weight: float) -> dict[str, float]:
        """Over pairs or rated answers, of which there are as many as the weight says."""
        return rated_means(sums, weight) if self.has_reference_point else super().means(sums, weight)

    def forward(self, batch: Batch) -> Computed:
        """The sum, a scalar in float32, and the sums of the measures; of mismatched answers what makes up the reference
        point.
        """
        answers = batch.answers
        if answers is None:
            return super().forward(batch)
        reference = self._reference(batch, answers)
        if self.has_reference_point and batch.reference_point is None:
            assert reference is not None
            return log_ratio_total(self.answer_sums(batch, answers), reference, answers.num_tokens)
        if self.uses_own_logits:
            return self._scored(answers.sums(-_losses_of(self.own_logits(batch), batch)), batch, reference)
        hidden = self.hidden_states(batch)
        sums = self.sums_of(hidden, batch, answers)
        if not torch.is_grad_enabled():
            return self._scored(sums, batch, reference)
        loss, measures = self._scored(sums.requires_grad_(), batch, reference)
        (gradient,) = torch.autograd.grad(loss, sums)
        same_gradient = self.head(hidden, batch.targets, answers.to_tokens(-gradient))
        return loss.detach() + (same_gradient - same_gradient.detach()), measures

    def _scored(
        self, sums: torch.Tensor, batch: Batch, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss with its gradient by the sums, and the measures."""
        answers = batch.answers
        assert answers is not None
        if batch.reference_point is not None:
            assert reference is not None
            return self._rated(sums, reference, answers, batch.reference_point)
        scores = PairScores(
            *_split(sums), *_split(answers.num_tokens), *((None, None) if reference is None else _split(reference))
        )
        with torch.no_grad():
            measures = measure_pairs(scores, self._config)
        return pair_losses(scores, self._config).sum(), measures

    def _rated(
        self, sums: torch.Tensor, reference: torch.Tensor, answers: Answers, reference_point: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of rated answers; where there are none there are no labels either."""
        labels = answers.num_tokens.bool() if answers.are_desirable is None else answers.are_desirable
        scores = RatedScores(sums, reference, labels, reference_point)
        with torch.no_grad():
            measures = measure_rated(scores, self._config)
        return rated_losses(scores, self._config).sum(), measures

    def _reference(self, batch: Batch, answers: Answers) -> torch.Tensor | None:
        """Log-probabilities by the reference model, where the loss has one; shape (answers,)."""
        if not self._config.needs_reference:
            return None
        if self._config.reference == "precomputed":
            assert answers.reference is not None or len(answers.num_tokens) == 0
            return torch.zeros_like(answers.num_tokens) if answers.reference is None else answers.reference
        with self._adapter_off():
            return self.answer_sums(batch, answers)

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
