"""Labels of many prompts in batches against one plain pass of `transformers` each; what has no meaning is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from llmforge.answers.asked import check_asked
from llmforge.answers.batch import BatchLimits, Prompt, in_halves
from llmforge.answers.classify import classify_prompts
from llmforge.answers.sampling import Sampling
from llmforge.config.classifier import Classifier
from llmforge.errors import ConfigError
from tests.small_models import PROMPTS, SIZES

TWO = Classifier(labels=("safe", "unsafe"), token_ids=(5, 17), positive_label="unsafe", threshold=0.3, temperature=2.5)
THREE = Classifier(labels=("a", "b", "c"), token_ids=(40, 3, 22))
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
    "table of positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=29, initializer_range=0.5)
    ),
}


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[kind]().eval()
    model.generation_config = GenerationConfig()
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("classifier", [TWO, THREE], ids=["two", "three"])
def test_labels_are_those_of_one_plain_pass(kind: str, classifier: Classifier) -> None:
    """One of the prompts is as long as the table of positions allows."""
    model = model_of(kind)
    prompts = [Prompt(ids, 1, index) for index, ids in enumerate(PROMPTS)]
    for limits in (BatchLimits(), BatchLimits(num_rows=2), BatchLimits(num_tokens=40)):
        batches = list(classify_prompts(model, classifier, prompts, None, limits))
        assert all(limits.num_rows is None or len(batch) <= limits.num_rows for batch in batches)
        found = {one.index: one.classification for batch in batches for one in batch}
        assert sorted(found) == list(range(len(PROMPTS)))
        for index, ids in enumerate(PROMPTS):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1, list(classifier.token_ids)]
            expected = (logits / classifier.temperature).softmax(dim=0).tolist()
            assert list(found[index].probabilities) == list(classifier.labels)
            assert list(found[index].probabilities.values()) == pytest.approx(expected, abs=1e-5)
            likeliest = max(range(len(expected)), key=expected.__getitem__)
            by_rule = int(expected[1] >= 0.3) if classifier is TWO else likeliest
            assert found[index].label == classifier.labels[by_rule]


def test_a_threshold_instead_of_the_classifiers_own() -> None:
    model, prompts = model_of("llama"), [Prompt(ids, 1, index) for index, ids in enumerate(PROMPTS)]
    for threshold in (0.05, 0.5, 0.95):
        for batch in classify_prompts(model, TWO, prompts, threshold, BatchLimits()):
            for one in batch:
                is_positive = one.classification.probabilities["unsafe"] >= threshold
                assert one.answer.text == one.classification.label == ("unsafe" if is_positive else "safe")
                assert (one.answer.num_tokens, one.answer.is_complete) == (1, True)


def test_a_batch_for_which_the_memory_does_not_suffice_is_halved() -> None:
    asked: list[int] = []

    def answer(part: list[Prompt]) -> list[int]:
        asked.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return [prompt.index for prompt in part]

    prompts = [Prompt([1], 1, index) for index in range(5)]
    assert in_halves(prompts, answer) == [0, 1, 2, 3, 4]
    assert asked == [5, 2, 3, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_halves([Prompt([1], 1, 0)], lambda part: answer(part * 3))


@pytest.mark.parametrize(
    ("classifier", "sampling", "threshold", "found"),
    [
        (
            None,
            Sampling(),
            0.7,
            "threshold: found 0.7, allowed is none for a model that writes text: its checkpoint has no "
            "classifier.json; leave it out, or name a run of task: classification",
        ),
        (
            THREE,
            Sampling(),
            0.7,
            "threshold: found 0.7 for the labels a, b, c, allowed is none with more than two: the likeliest is the "
            "answer; leave it out, and decide by the probabilities",
        ),
        (
            TWO,
            Sampling(),
            1.0,
            "threshold: found 1.0, allowed is a number above 0 and below 1: a probability; choose another",
        ),
        (
            TWO,
            Sampling(temperature=0, max_tokens=4, stop=("x",)),
            None,
            "found max_tokens 4, temperature 0, stop ('x',), allowed with a classifier is none of these: it answers "
            "with one of its labels, by their probabilities, and draws nothing; leave them out",
        ),
    ],
)
def test_what_has_no_meaning(
    classifier: Classifier | None, sampling: Sampling, threshold: float | None, found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_asked(classifier, sampling, threshold)
    assert str(caught.value) == found


def test_what_has_a_meaning() -> None:
    check_asked(TWO, Sampling(), 0.7)
    check_asked(TWO, Sampling(), None)
    check_asked(THREE, Sampling(), None)
    check_asked(None, Sampling(temperature=0.5), None)
