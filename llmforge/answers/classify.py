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
from llmforge.answers.sampling import NOTHING_ASKED, Sampling
from llmforge.config.classifier import CLASSIFIER_FILE, Classification, Classifier
from llmforge.errors import ConfigError


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


def check_asked(classifier: Classifier | None, sampling: Sampling, threshold: float | None) -> None:
    """Raise `ConfigError` for what has no meaning for a model that is, or is not, a classifier."""
    if threshold is not None:
        _check_threshold(classifier, threshold)
    if classifier is None or sampling == NOTHING_ASKED:
        return
    asked = [f"{name} {value!r}" for name, value in vars(sampling).items() if value not in (None, ())]
    raise ConfigError(
        f"found {', '.join(asked)}, allowed with a classifier is none of these: it answers with one of its labels, by "
        "their probabilities, and draws nothing; leave them out"
    )


def _check_threshold(classifier: Classifier | None, threshold: float) -> None:
    found = f"threshold: found {threshold!r}"
    if not 0 < threshold < 1:
        raise ConfigError(f"{found}, allowed is a number above 0 and below 1: a probability; choose another")
    if classifier is None:
        raise ConfigError(
            f"{found}, allowed is none for a model that writes text: its checkpoint has no {CLASSIFIER_FILE}; leave it "
            "out, or name a run of task: classification"
        )
    if classifier.positive_label is None:
        raise ConfigError(
            f"{found} for the labels {', '.join(classifier.labels)}, allowed is none with more than two: the likeliest "
            "is the answer; leave it out, and decide by the probabilities"
        )


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
