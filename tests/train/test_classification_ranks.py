"""A classifier in real ranks with real DeepSpeed: neither the split nor the stage of ZeRO changes what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from llmforge.config.batch_size import micro_batches_per_worker
from llmforge.config.classifier import Classifier
from llmforge.config.deepspeed import build_deepspeed_config
from llmforge.config.training import AdamW, ClassifierConfig
from llmforge.dataset.example import IGNORED_LABEL, Example
from llmforge.dataset.packing import pack
from llmforge.dataset.shards import SampleReader
from llmforge.metrics.labels import LabelEvaluation
from llmforge.models.attention import use_attention
from llmforge.train.batches import Layout, TrainingBatches
from llmforge.train.classification import ClassificationLoss
from llmforge.train.classifier_files import ClassifierFiles
from llmforge.train.engine import TrainingEngine
from llmforge.train.label_evaluation import evaluate_classifier
from llmforge.train.optim import build_optimizer
from tests.dataset.samples import join_examples, write_samples
from tests.train.processes import run_ranks
from tests.train.ranks import CONTEXT_LENGTH, GLOBAL_BATCH, SEED, VOCABULARY, tiny_model

pytestmark = pytest.mark.slow

LABELS = (3, 11)
NUM_ROWS = 23
CONFIG = ClassifierConfig(label_tokens=("safe", "unsafe"), positive_label="unsafe", threshold="auto")
START = Classifier(labels=("safe", "unsafe"), token_ids=LABELS, positive_label="unsafe")


@dataclass(frozen=True)
class Case:
    """One training, and its evaluation before and behind it."""

    num_workers: int = 1
    zero_stage: int = 0
    packed: bool = True
    method: str = "full"
    num_steps: int = 3


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    accuracies: list[float]
    before: dict[str, float]
    after: dict[str, float]
    eval_loss: float


PLAIN, ADAPTER = Case(), Case(method="lora on the head")
OTHERS = {
    Case(num_workers=2): PLAIN,
    Case(num_workers=2, zero_stage=3): PLAIN,
    Case(num_workers=2, zero_stage=3, method="lora on the head"): ADAPTER,
}
ALONE = Case(num_workers=2, packed=False, num_steps=0)
"""Another set of sequences, so that steps differ; what is evaluated does not."""


def examples() -> list[Example]:
    """Prompts of which the last token tells the label, most of the time."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(NUM_ROWS):
        ids = generator.integers(20, VOCABULARY, generator.integers(3, 20)).astype(np.int32)
        label = LABELS[int(ids[-1] % 2 if generator.random() < 0.8 else generator.integers(2))]
        ids = np.append(ids, np.int32(label))
        found.append(Example(ids, np.where(np.arange(len(ids)) == len(ids) - 1, ids, IGNORED_LABEL).astype(np.int32)))
    return found


def run_case(rank: int, cases: list[Case], folder: Path) -> None:
    for case in cases:
        outcome = _outcome(rank, case, folder)
        if rank == 0:
            torch.save(outcome, folder / f"{_name(case)}.pt")


def _outcome(rank: int, case: Case, folder: Path) -> Outcome:
    reader = SampleReader([folder / ("packed.arrow" if case.packed else "alone.arrow")])
    layout = Layout(by_documents=True)
    batches, validation = (
        TrainingBatches(
            reader,
            micro_batch_size=size,
            sequences_per_step=sequences,
            rank=rank,
            num_workers=case.num_workers,
            seed=SEED,
            layout=layout,
        )
        for size, sequences in ((1, GLOBAL_BATCH), (2, 2 * case.num_workers))
    )
    engine = _engine(case)
    files = ClassifierFiles(folder / _name(case))
    if rank == 0:
        files.folder.mkdir()
    before = evaluate_classifier(engine, validation, START, CONFIG, files)
    results = [engine.step(batches.step(index), learning_rate=1e-2) for index in range(case.num_steps)]
    after = evaluate_classifier(engine, validation, START, CONFIG, files)
    return Outcome(
        [result.loss for result in results],
        [result.measures["accuracy"] for result in results],
        dict(before.measures),
        dict(after.measures),
        after.loss,
    )


def _engine(case: Case) -> TrainingEngine:
    model = tiny_model(case.method)
    use_attention(getattr(model, "base_model", model), "sdpa_per_document", device=torch.device("cpu"))
    config = build_deepspeed_config(
        {}, zero_stage=case.zero_stage, micro_batch_size=1, num_workers=case.num_workers, precision="fp32",
        gradient_accumulation_steps=micro_batches_per_worker(GLOBAL_BATCH, 1, case.num_workers), max_grad_norm=1.0,
        hidden_size=32,
    )  # fmt: skip
    optimizer = build_optimizer(model.parameters(), AdamW(), 1e-2)
    return TrainingEngine(ClassificationLoss(model, LABELS), optimizer, config, torch.device("cpu"))


def _name(case: Case) -> str:
    return f"{case.num_workers}-{case.zero_stage}-{case.packed}-{case.method.replace(' ', '-')}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    packs = pack(np.array([len(one.input_ids) for one in examples()]), CONTEXT_LENGTH)
    write_samples(folder / "packed.arrow", [join_examples([examples()[i] for i in members]) for members in packs])
    write_samples(folder / "alone.arrow", [join_examples([one]) for one in examples()])
    cases = [PLAIN, ADAPTER, *OTHERS, ALONE]
    for num_workers in (1, 2):
        run_ranks(run_case, num_workers, [case for case in cases if case.num_workers == num_workers], folder)
    return folder


def outcome(case: Case, folder: Path) -> Outcome:
    loaded: Outcome = torch.load(folder / f"{_name(case)}.pt", weights_only=False)
    return loaded


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_the_split_does_not_matter(case: Case, folder: Path) -> None:
    found, expected = outcome(case, folder), outcome(OTHERS[case], folder)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.accuracies == pytest.approx(expected.accuracies)
    assert found.eval_loss == pytest.approx(expected.eval_loss, rel=1e-5)
    assert found.after == pytest.approx(expected.after, rel=1e-4)
    assert found.losses[-1] < found.losses[0]


def test_every_row_is_measured_once_packed_or_not(folder: Path) -> None:
    found, expected = outcome(ALONE, folder), outcome(PLAIN, folder)
    assert found.before == pytest.approx(expected.before, rel=1e-4)
    evaluation = LabelEvaluation.model_validate_json((folder / _name(ALONE) / "classifier_evaluation.json").read_text())
    assert sum(map(sum, evaluation.confusion)) == NUM_ROWS
    classifier = Classifier.model_validate_json((folder / _name(ALONE) / "classifier.json").read_text())
    assert (classifier.temperature, classifier.threshold) == (found.before["temperature"], found.before["threshold"])


def test_the_measures_are_those_of_a_plain_model(folder: Path) -> None:
    model = tiny_model("full").eval()
    with torch.no_grad():
        last = [model(input_ids=torch.tensor([one.input_ids[:-1].tolist()])).logits[0, -1] for one in examples()]
    logits = torch.stack(last)[:, list(LABELS)].double()
    targets = [LABELS.index(int(one.input_ids[-1])) for one in examples()]
    found = outcome(PLAIN, folder).before
    probabilities = torch.softmax(logits / found["temperature"], dim=1)[:, 1].numpy()
    decided = probabilities >= found["threshold"]
    assert found["prauc"] == pytest.approx(average_precision_score(targets, probabilities), rel=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, decided))
    assert found["f1"] == pytest.approx(f1_score(targets, decided))
