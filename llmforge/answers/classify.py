"""Labels for many prompts together: one pass over each batch, and no token is drawn.

In: prompts as token ids, and the `Classifier` of the model. Out: a `Classification` for each. It depends on its prompt
alone (beyond the rounding of the device).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from llmforge.answers.batch import (
    Answer,
    BatchLimits,
    Prompt,
    in_halves,
    left_padded,
    plan_batches,
    tokens_that_fit,
)
from llmforge.config.classifier import Classification, Classifier


@dataclass(frozen=True)
class Classified:
    """What was found for one prompt."""

    index: int
    """Its place in the input."""
    classification: Classification

    @property
    def answer(self) -> Answer:
        """The label as a model's answer, of one token."""
        found = self.classification
        return Answer(self.index, found.label, 1, is_complete=True, probabilities=found.probabilities)


def classify_prompts(
    model: PreTrainedModel,
    classifier: Classifier,
    prompts: Sequence[Prompt],
    threshold: float | None,
    limits: BatchLimits,
) -> Iterator[list[Classified]]:
    """The labels of one batch after the other, those of the longest prompts first; `threshold` as in `Classifier`."""

    def classify(batch: list[Prompt]) -> list[Classified]:
        return _classify(model, classifier, batch, threshold)

    limits = BatchLimits(limits.num_rows, limits.num_tokens or tokens_that_fit(model))
    for batch in plan_batches(prompts, limits, mixes_rooms=True):
        yield in_halves(batch, classify)


def _classify(
    model: PreTrainedModel, classifier: Classifier, batch: list[Prompt], threshold: float | None
) -> list[Classified]:
    input_ids, mask = left_padded([prompt.ids for prompt in batch])
    output = model.generate(  # its first step knows the positions and masks of every family
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=1,
        do_sample=False,
        use_cache=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    logits: list[list[float]] = output.logits[0][:, list(classifier.token_ids)].tolist()
    return [
        Classified(prompt.index, classifier.classify(row, threshold)) for prompt, row in zip(batch, logits, strict=True)
    ]
