"""Training by the real engine in real ranks, without Ray: processes with gloo, DeepSpeed in each.

One call runs many cases in the same processes, since importing DeepSpeed takes most of the time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peft
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.config.activation_plan import LOGITS_AT_ONCE
from llmforge.config.batch_size import micro_batches_per_worker
from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.training import AdamW, OptimizerConfig, PreferenceTuningConfig
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.packing import pack
from llmforge.dataset.reference import write_reference
from llmforge.dataset.shards import SampleReader
from llmforge.models.attention import use_attention
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.engine import TrainingEngine
from llmforge.train.evaluate import evaluate
from llmforge.train.loop import seed_step
from llmforge.train.losses import NextTokenLoss
from llmforge.train.optim import build_optimizer
from llmforge.train.optimizer_state import OptimizerState
from llmforge.train.preference import PreferenceLoss
from llmforge.train.state import TrainerState, load_optimizer_state, save_optimizer_state
from tests.dataset.samples import join_examples, write_samples
from tests.train.processes import run_ranks

Precision = Literal["fp32", "bf16"]
Method = Literal["full", "tied", "lora", "lora on the head"]
Offloaded = Literal["offload_optimizer", "offload_param"]

VOCABULARY = 67
CONTEXT_LENGTH = 48
GLOBAL_BATCH = 4
SEED = 5


@dataclass(frozen=True)
class Case:
    """One training: how the same global batches are split, and by which means they are trained on."""

    num_workers: int = 1
    micro_batch_size: int = 1
    zero_stage: int = 0
    precision: Precision = "fp32"
    method: Method = "full"
    packed: bool = True
    dropout: float = 0.0
    num_steps: int = 3
    resume_at: int | None = None
    """Save after so many steps, throw everything away, and go on from what was saved."""
    resume_from: "Case | None" = None
    """Go on from what this case saved (by another number of workers)."""
    weight_decay: float = 0.1
    optimizer: OptimizerConfig | None = None
    """Default: AdamW."""
    by_documents: bool = True
    """Lay a micro-batch out in one row, for attention by documents."""
    offload: tuple[Offloaded, ...] = ()
    """What DeepSpeed keeps in the memory of the host."""
    hidden_size: int = 32
    rehearsed: bool = False
    """Take a step that changes nothing first, and forget it."""
    preference: PreferenceTuningConfig | None = None
    """Learn from pairs of answers, or with KTO from rated ones."""

    @property
    def accumulation(self) -> int:
        return micro_batches_per_worker(GLOBAL_BATCH, self.micro_batch_size, self.num_workers)

    @property
    def layout(self) -> Layout:
        compared = self.preference is not None
        rated = self.preference is not None and self.preference.loss == "kto"
        return Layout(self.by_documents, of_answers=compared, rated=rated, alone=compared and not self.packed)

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What a case computed; the same on every rank."""

    losses: list[float]
    grad_norms: list[float]
    evaluation: float
    weights: dict[str, torch.Tensor]
    measures: list[dict[str, float]]


def run_cases(cases: list[Case], folder: Path) -> dict[Case, Outcome]:
    """Run all cases, grouped by their number of workers, in the order of the list."""
    write_random_samples(folder)
    outcomes: dict[Case, Outcome] = {}
    for num_workers in sorted({case.num_workers for case in cases}, reverse=True):
        group = [case for case in cases if case.num_workers == num_workers]
        run_ranks(_run_all, num_workers, group, folder)
        for number, case in enumerate(group):
            outcomes[case] = torch.load(folder / f"outcome-{num_workers}-{number}.pt", weights_only=False)
    return outcomes


def write_random_samples(folder: Path) -> None:
    """22 examples of varied length with random masks, packed and not."""
    generator = np.random.default_rng(3)
    examples = []
    for _ in range(22):
        ids = generator.integers(0, VOCABULARY, generator.integers(5, CONTEXT_LENGTH + 1)).astype(np.int32)
        labels = np.where(generator.random(len(ids)) < 0.4, ids, np.int32(IGNORED_LABEL)).astype(np.int32)
        labels[0], labels[-1] = IGNORED_LABEL, ids[-1]
        examples.append(Example(ids, labels))
    packs = pack(np.array([len(example.input_ids) for example in examples]), CONTEXT_LENGTH)
    write_samples(folder / "packed.arrow", [join_examples([examples[i] for i in members]) for members in packs])
    write_samples(folder / "alone.arrow", [join_examples([example]) for example in examples])
    pairs = [examples[i : i + 2] for i in range(0, len(examples), 2)]
    packs = pack(np.array([sum(len(one.input_ids) for one in pair) for pair in pairs]), 2 * CONTEXT_LENGTH)
    _write_pairs(folder / "packed", pairs, list(packs))
    _write_pairs(folder / "alone", pairs, [[index] for index in range(len(pairs))])


def _write_pairs(path: Path, pairs: Sequence[list[Example]], packs: list[list[int]]) -> None:
    """Packs of pairs, and beside them the numbers of a reference model; the same pairs as rated answers and mismatched
    ones.
    """
    references = np.random.default_rng(4).uniform(-110, -60, (len(pairs), 2)).astype(np.float32)
    samples = [join_examples([example for index in members for example in pairs[index]]) for members in packs]
    write_samples(path.with_suffix(".pairs.arrow"), samples, is_paired=True)
    write_reference(path.with_suffix(".reference.arrow"), [references[members].ravel() for members in packs])
    labels = np.arange(len(pairs)) % 3 > 0
    rated = [
        replace(sample, are_desirable=np.repeat(labels[members], 2))
        for sample, members in zip(samples, packs, strict=True)
    ]
    write_samples(path.with_suffix(".rated.arrow"), rated, is_paired=True)


def tiny_model(method: str = "full", dropout: float = 0.0, hidden_size: int = 32) -> LlamaForCausalLM | peft.PeftModel:
    """A Llama with random weights, the same at every call."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        attention_dropout=dropout if method == "full" else 0.0, tie_word_embeddings=method == "tied",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if method in ("full", "tied"):
        return model
    targets: str | list[str] = ["q_proj", "lm_head"] if method == "lora on the head" else "all-linear"
    lora = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora)


def _run_all(rank: int, cases: list[Case], folder: Path) -> None:
    LOGITS_AT_ONCE["cpu"] = 5 * VOCABULARY  # so that the output layer takes several chunks
    for number, case in enumerate(cases):
        outcome = _run(case, folder, rank)
        if rank == 0:
            torch.save(outcome, folder / f"outcome-{case.num_workers}-{number}.pt")


def _run(case: Case, folder: Path, rank: int) -> Outcome:
    reader = _reader(case, folder / ("packed" if case.packed else "alone"))
    batches = TrainingBatches(
        reader, micro_batch_size=case.micro_batch_size, sequences_per_step=GLOBAL_BATCH, rank=rank,
        num_workers=case.num_workers, seed=SEED, shuffle=True, layout=case.layout,
    )  # fmt: skip
    source = case.resume_from
    engine, step = build_engine(case), 0
    if source is not None:
        engine, step = _restored(case, folder / source.key), source.num_steps
    if case.rehearsed:
        engine.rehearse(next(iter(batches.step(0).micro_batches)))
    losses, grad_norms, measures = [], [], []
    while step < case.num_steps:
        if step == case.resume_at:
            _save(engine, folder / case.key, step)
            engine = _restored(case, folder / case.key)
        seed_step(SEED, step, rank)
        result = engine.step(batches.step(step), learning_rate=1e-3)
        losses.append(result.loss)
        grad_norms.append(result.grad_norm)
        measures.append(dict(result.measures))
        step += 1
    _save(engine, folder / case.key, step)
    validation = TrainingBatches(
        reader,
        micro_batch_size=2,
        sequences_per_step=2 * case.num_workers,
        rank=rank,
        num_workers=case.num_workers,
        layout=case.layout,
    )
    evaluation = evaluate(engine, validation)
    return Outcome(losses, grad_norms, evaluation.loss, _weights(engine), [*measures, dict(evaluation.measures)])


def _reader(case: Case, path: Path) -> SampleReader:
    if case.preference is None:
        return SampleReader([path.with_suffix(".arrow")])
    kind = ".rated.arrow" if case.layout.rated else ".pairs.arrow"
    return SampleReader([path.with_suffix(kind)], [path.with_suffix(".reference.arrow")])


def load_weights(folder: Path, method: Method) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint, by the names that the tiny model has for them."""
    if method == "full":
        return load_file(folder / "model.safetensors")
    adapter = load_file(folder / "adapter_model.safetensors")
    return {key.replace(".weight", ".default.weight"): tensor for key, tensor in adapter.items()}


def build_engine(case: Case, weights: dict[str, torch.Tensor] | None = None) -> TrainingEngine:
    """The tiny model, with these weights in place of its own, under the engine."""
    model = tiny_model(case.method, case.dropout, case.hidden_size)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    use_attention(base, "sdpa_per_document" if case.by_documents else "sdpa", device=torch.device("cpu"))
    optimizer = build_optimizer(model.parameters(), case.optimizer or AdamW(weight_decay=case.weight_decay), 1e-3)
    offload = {part: {"device": "cpu"} for part in case.offload}
    config = build_deepspeed_config(
        {"zero_optimization": offload}, zero_stage=case.zero_stage, micro_batch_size=case.micro_batch_size,
        gradient_accumulation_steps=case.accumulation, num_workers=case.num_workers, precision=case.precision,
        max_grad_norm=0.5, hidden_size=case.hidden_size,
    )  # fmt: skip
    loss = NextTokenLoss(model) if case.preference is None else PreferenceLoss(model, case.preference)
    return TrainingEngine(loss, optimizer, config, torch.device("cpu"))


def _weights(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    weights = [engine.weights(trainable_only=True)]
    dist.broadcast_object_list(weights, src=0)
    return weights[0]


def _save(engine: TrainingEngine, folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    optimizer_state = engine.optimizer_state()
    save_optimizer_state(optimizer_state, folder, engine.rank)
    weights = _weights(engine)
    if engine.rank == 0:
        torch.save(weights, folder / "weights.pt")
        state = TrainerState(step=step, num_updates=optimizer_state.num_updates)
        (folder / "state.json").write_text(state.model_dump_json())
    dist.barrier()


def _restored(case: Case, folder: Path) -> TrainingEngine:
    weights: dict[str, Any] = torch.load(folder / "weights.pt")
    state = TrainerState.model_validate_json((folder / "state.json").read_text())
    engine = build_engine(replace(case), weights)
    loaded: OptimizerState = load_optimizer_state(folder, state)
    engine.restore_optimizer_state(loaded)
    return engine
