"""Labels from the engine, among answers of text: small random models, real steps, `transformers` as the reference."""

from __future__ import annotations

import queue

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmforge.answers.sampling import Sampling
from llmforge.answers.stops import Stops
from llmforge.config.classifier import Classifier
from llmforge.inference.server.answer import AnswerRules, Piece
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.generation import Generation, Labelling
from llmforge.inference.server.transformers_engine import TransformersEngine
from tests.inference.server.running import running
from tests.small_models import PROMPTS, SIZES

LABELS = Classifier(labels=("no", "yes"), token_ids=(5, 17), positive_label="yes", threshold=0.3, temperature=2.5)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


class Asked:
    """A request, for a label or for text in which every token is its number."""

    def __init__(self, prompt: list[int], *, is_label: bool, threshold: float | None = None) -> None:
        self.prompt = prompt
        self.pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        no_stops = Stops(frozenset(), (), ())
        rules = AnswerRules(no_stops, lambda ids: "".join(f"{i} " for i in ids), (0,), "", 1 if is_label else 6)
        labelling = Labelling(LABELS, threshold) if is_label else None
        sampling = Sampling(temperature=0)
        self.generation = Generation(prompt, rules, self.pieces.put, sampling, num_top=2, labelling=labelling)

    def next(self) -> Piece:
        piece = self.pieces.get(timeout=60)
        assert piece is not None, "the engine has ended"
        return piece


@pytest.mark.parametrize(
    "limits",
    [EngineLimits(), EngineLimits(max_concurrency=2, prefill_tokens=7), EngineLimits(prefill_tokens=1)],
    ids=["one pass", "some at once, long prompts in pieces", "token by token"],
)
def test_labels_among_texts(model: PreTrainedModel, limits: EngineLimits) -> None:
    asked = [Asked(prompt, is_label=index % 3 != 2) for index, prompt in enumerate(PROMPTS)]
    engine = TransformersEngine(model, limits)
    engine.submit([one.generation for one in asked])
    with running(engine):
        for one in asked:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([one.prompt])).logits[0, -1]
            piece = one.next()
            if one.generation.labelling is None:
                assert piece.text == f"{int(logits.argmax())} "
                while piece.finish_reason is None:
                    piece = one.next()
                assert piece.probabilities is None
                continue
            expected = (logits[[5, 17]] / 2.5).softmax(dim=0).tolist()
            assert piece.probabilities == pytest.approx(dict(zip(("no", "yes"), expected, strict=True)), abs=1e-5)
            assert piece.text == ("yes" if expected[1] >= 0.3 else "no")
            assert (piece.num_tokens, piece.finish_reason) == (1, "stop")
            (score,) = piece.scores
            logprobs = logits.log_softmax(dim=0)
            assert score.token_id == (17 if piece.text == "yes" else 5)
            assert score.logprob == pytest.approx(float(logprobs[score.token_id]), abs=1e-4)
            assert [token for token, _ in score.top] == logprobs.topk(2).indices.tolist()
    assert engine.num_running == engine.num_waiting == 0


def test_each_request_has_its_own_threshold(model: PreTrainedModel) -> None:
    thresholds = (0.01, 0.5, 0.99)
    asked = [Asked(prompt, is_label=True, threshold=threshold) for prompt in PROMPTS for threshold in thresholds]
    engine = TransformersEngine(model, EngineLimits())
    engine.submit([one.generation for one in asked])
    with running(engine):
        pieces = [one.next() for one in asked]
    for piece, threshold in zip(pieces, thresholds * len(PROMPTS), strict=True):
        assert piece.probabilities is not None
        assert piece.text == ("yes" if piece.probabilities["yes"] >= threshold else "no")
    assert {piece.text for piece in pieces} == {"no", "yes"}


def test_labels_share_passes_over_the_model(model: PreTrainedModel) -> None:
    """Six of ten tokens fit into one; a long prompt is read in pieces; nothing is read twice."""
    prompts = [list(range(10))] * 40 + [list(range(60)) * 2] + [list(range(10))] * 40
    asked = [Asked(prompt, is_label=True) for prompt in prompts]
    passes: list[torch.Size] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    engine = TransformersEngine(model, EngineLimits(prefill_tokens=64))
    engine.submit([one.generation for one in asked])
    with running(engine):
        assert len({one.next().text for one in asked}) > 0
    hook.remove()
    one_side = [torch.Size([6, 10])] * 6 + [torch.Size([4, 10])]
    assert passes[:7] == passes[-7:] == one_side
    assert [shape[0] for shape in passes[7:-7]] == [1] * len(passes[7:-7])
    assert sum(shape[1] for shape in passes[7:-7]) == 120


def test_a_pass_that_fails_leaves_nobody_waiting(model: PreTrainedModel) -> None:
    """The model knows no such token."""
    asked = [Asked([1, 2], is_label=True), Asked([999], is_label=True), Asked([3], is_label=True)]
    engine = TransformersEngine(model, EngineLimits())
    engine.submit([one.generation for one in asked])
    ended = engine.start()
    assert [one.pieces.get(timeout=60) for one in asked] == [None, None, None]
    assert isinstance(ended.exception(timeout=60), IndexError)
    engine.stop()
