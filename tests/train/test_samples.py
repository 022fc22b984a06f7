"""Answers in the middle of a training, in real ranks: those of the model as it stands, and without a trace in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import peft
import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmforge.answers.answer_format import AnswerFormat
from llmforge.answers.sampling import Sampling
from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.prompt_format import GenerationConfig as JobGeneration
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.training import AdamW
from llmforge.dataset.shards import SampleReader
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ModelError
from llmforge.metrics.samples import Sample
from llmforge.models.attention import use_attention
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.engine import TrainingEngine, start_deepspeed
from llmforge.train.loop import seed_step
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer
from llmforge.train.samples import Asked, Sampler
from tests.prompt.tokenizers import byte_tokenizer
from tests.train.processes import run_ranks
from tests.train.ranks import write_random_samples

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NUM_WORKERS, NUM_STEPS, MOST_TOKENS, CONTEXT = 2, 2, 8, 48
END = "<|end|>"
FORMAT = PromptFormat(system="{instruction}\n", user="{instruction}>", assistant=f"{{instruction}}{END}")
PROMPTS = ["a", "What is the capital?", "b" * (CONTEXT - MOST_TOKENS - 1), "two\nlines", "ö"]
Kind = Literal["llama", "lora", "gpt2"]


@dataclass(frozen=True)
class Case:
    """One training of three steps."""

    kind: Kind
    zero_stage: int
    prompts: tuple[str, ...] = tuple(PROMPTS)
    is_asked: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a training gave: its answers at each step, and the weights that they were made with."""

    losses: list[float]
    samples: list[list[Sample]]
    weights: list[dict[str, torch.Tensor]]


ASKED = [
    *(Case("llama", stage) for stage in (0, 2, 3)),
    *(Case("lora", stage) for stage in (1, 3)),
    # The second rank has none to answer, and a table of positions that ends where the prompt and its answer end.
    Case("gpt2", 3, (PROMPTS[2],)),
]


def _model(kind: Kind) -> PreTrainedModel:
    torch.manual_seed(1)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, attn_pdrop=0.1, initializer_range=0.3
        )
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, attention_dropout=0.1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _adapted(base: PreTrainedModel) -> peft.PeftModel:
    lora = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(base, lora)


def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer([END]), eos_token=END)


def _asked(case: Case) -> Asked:
    tokenizer = _tokenizer()
    answer_format = AnswerFormat(
        prompt_format=FORMAT,
        generation=JobGeneration(prompt_format=FORMAT),
        encoder=SegmentTokenizer(tokenizer.backend_tokenizer.to_str()),
        context_length=CONTEXT,
        decoder=tokenizer,
        end_of_sequence_ids=frozenset({tokenizer.eos_token_id}),
    )
    messages = [[{"role": "user", "content": prompt}] for prompt in case.prompts]
    return Asked(answer_format, messages, Sampling(max_tokens=MOST_TOKENS, temperature=0.0))


def _train(case: Case, folder: Path, rank: int) -> Outcome:
    base = _model(case.kind)
    base.generation_config = GenerationConfig(do_sample=True, repetition_penalty=9.0)  # as a publisher may prefer
    published, attention = base.generation_config, base.config._attn_implementation
    by_documents = case.kind != "gpt2"
    model = _adapted(base) if case.kind == "lora" else base
    use_attention(base, "sdpa_per_document" if by_documents else "sdpa", device=CPU)
    trained_with = base.config._attn_implementation
    model.gradient_checkpointing_enable()
    config = build_deepspeed_config(
        None, zero_stage=case.zero_stage, micro_batch_size=1, gradient_accumulation_steps=2, num_workers=NUM_WORKERS,
        precision="fp32", max_grad_norm=0.5, hidden_size=32,
    )  # fmt: skip
    engine = TrainingEngine(NextTokenLoss(model), build_optimizer(model.parameters(), AdamW(), 1e-2), config, CPU)
    num_tokens = [0]
    sampler = Sampler(engine, attention, _asked(case), lambda: num_tokens.append(0))
    batches = TrainingBatches(
        SampleReader([folder / ("packed.arrow" if by_documents else "alone.arrow")]), micro_batch_size=1,
        sequences_per_step=2 * NUM_WORKERS, rank=rank, num_workers=NUM_WORKERS, layout=Layout(by_documents),
    )  # fmt: skip
    outcome = Outcome([], [], [])
    for step in range(NUM_STEPS + 1):
        if case.is_asked:
            outcome.samples.append(sampler(step))
            assert base.config._attn_implementation == trained_with and base.generation_config is published
        outcome.weights.append(engine.weights(trainable_only=True))
        if step < NUM_STEPS:
            seed_step(5, step, rank)
            outcome.losses.append(engine.step(batches.step(step), 1e-2).loss)
    assert bool(num_tokens[1:]) == case.is_asked
    return outcome


def _train_all(rank: int, folder: Path) -> None:
    start_deepspeed(CPU)
    cases = {case: _train(case, folder, rank) for asked in ASKED for case in (asked, _silent(asked))}
    if rank == 0:
        torch.save(cases, folder / "outcomes.pt")


def _silent(case: Case) -> Case:
    return Case(case.kind, case.zero_stage, case.prompts, is_asked=False)


def _expected(case: Case, weights: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Each prompt alone, by plain `transformers`, from the weights as a checkpoint holds them."""
    base = _model(case.kind)
    model = _adapted(base) if case.kind == "lora" else base
    assert model.load_state_dict(weights, strict=False).unexpected_keys == []
    tokenizer = _tokenizer()
    answers = []
    for prompt in case.prompts:
        ids = torch.tensor([tokenizer.encode(f"{prompt}>")])
        output = model.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MOST_TOKENS,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )  # fmt: skip
        tokens = output[0, ids.shape[1] :].tolist()
        is_stopped = tokens[-1] == tokenizer.eos_token_id
        answers.append((tokenizer.decode(tokens[:-1] if is_stopped else tokens), "stop" if is_stopped else "length"))
    return answers


class Full(LlamaForCausalLM):  # type: ignore[misc] # transformers is untyped here
    """A model for which the memory does not suffice."""

    def forward(self, *_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@dataclass(frozen=True)
class Alone:
    """What the sampler asks of an engine, by one rank."""

    module: PreTrainedModel
    is_partitioned: bool = False
    num_workers: int = 1
    rank: int = 0


def test_a_lack_of_memory_ends_the_run_and_says_what_to_do() -> None:
    model = Full(_model("llama").config).train()
    sampler = Sampler(cast(TrainingEngine, Alone(model)), "sdpa", _asked(Case("llama", 0)))
    with pytest.raises(ModelError) as caught:
        sampler(3)
    assert str(caught.value) == (
        "evaluation.prompts: out of memory while they were answered (up to 40 tokens each, and 8 of the answer; "
        "CUDA out of memory. Tried to allocate 2.00 GiB.); shorten the longest, lower evaluation.max_tokens, or remove "
        "the key, and go on with --resume"
    )
    assert model.training


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Outcome]:
    folder = tmp_path_factory.mktemp("ranks")
    write_random_samples(folder)
    run_ranks(_train_all, NUM_WORKERS, folder)
    found: dict[Case, Outcome] = torch.load(folder / "outcomes.pt", weights_only=False)
    return found


@pytest.mark.parametrize("case", ASKED, ids=str)
def test_answers_are_those_of_the_weights_as_they_stand(case: Case, outcomes: dict[Case, Outcome]) -> None:
    outcome = outcomes[case]
    for step, (samples, weights) in enumerate(zip(outcome.samples, outcome.weights, strict=True)):
        assert [(sample.step, sample.prompt) for sample in samples] == [(step, i) for i in range(len(case.prompts))]
        assert [sample.messages for sample in samples] == [[{"role": "user", "content": p}] for p in case.prompts]
        assert [(sample.answer, sample.finish_reason) for sample in samples] == _expected(case, weights)
    assert len({samples[0].answer for samples in outcome.samples}) > 1  # it has learnt something meanwhile


@pytest.mark.parametrize("case", ASKED, ids=str)
def test_a_training_with_answers_is_bit_identical_to_one_without(case: Case, outcomes: dict[Case, Outcome]) -> None:
    asked, silent = outcomes[case], outcomes[_silent(case)]
    assert asked.losses == silent.losses
    for one, other in zip(asked.weights, silent.weights, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(other[name], weight) for name, weight in one.items())
