"""What the programs of `train.py` and `gpu.py` train on, and what they tell of it; it needs Python alone.

Every program runs in a process of its own, so that its peak of memory is its own, and is told by two files: a `Plan`
and the packed rows. A pack is a list of documents that share a sequence and must not see each other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

WARM_UP_STEPS = 2
"""Not counted: they lay out memory."""
LORA_RANK = 16
LORA_ALPHA = 32
MAX_GRAD_NORM = 1.0
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Document:
    """One conversation."""

    input_ids: list[int]
    labels: list[int]
    """-100 where no loss is taken, so also at the first token."""

    @property
    def num_trained_tokens(self) -> int:
        return sum(label != -100 for label in self.labels)


Pack = list[Document]


@dataclass(frozen=True)
class Plan:
    """One training."""

    model_folder: str
    """`config.json` and tokenizer; the weights are drawn at random where it has none."""
    num_steps: int
    sequences_per_step: int
    context_length: int
    precision: Literal["fp32", "bf16"] = "fp32"
    method: Literal["full", "lora"] = "full"
    device: Literal["cpu", "cuda", "meta"] = "cpu"
    threads: int = 1
    gradient_checkpointing: bool = False
    attention: str = "auto"
    """Of llmforge; the others take their own default."""


@dataclass
class StepLog:
    """What a program did, step by step."""

    seconds: list[float] = field(default_factory=list)
    """A clock's reading at the end of each step."""
    num_tokens: list[int] = field(default_factory=list)
    num_trained_tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    num_token_pairs: list[int] = field(default_factory=list)
    """Squares of the lengths of the documents, added up."""

    def add_batch(self, packs: Sequence[Pack]) -> None:
        """Note what a step works on."""
        documents = [document for pack in packs for document in pack]
        self.num_tokens.append(sum(len(document.input_ids) for document in documents))
        self.num_trained_tokens.append(sum(document.num_trained_tokens for document in documents))
        self.num_token_pairs.append(sum(len(document.input_ids) ** 2 for document in documents))


@dataclass(frozen=True)
class Result:
    """What a program did in the steps that count."""

    seconds: float
    num_tokens: int
    num_trained_tokens: int
    num_token_pairs: int
    last_loss: float
    peak_bytes: int
    """Of the GPU where there is one, else of the process that computes."""
    import_bytes: int = 0
    """What its imports alone take of it."""
    part_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of a step, in the median."""

    @classmethod
    def of(cls, log: StepLog, peak_bytes: int, import_bytes: int) -> "Result":
        """From the end of the last step of the warm-up on."""
        return cls(
            seconds=log.seconds[-1] - log.seconds[WARM_UP_STEPS - 1],
            num_tokens=sum(log.num_tokens[WARM_UP_STEPS : len(log.seconds)]),
            num_trained_tokens=sum(log.num_trained_tokens[WARM_UP_STEPS : len(log.seconds)]),
            num_token_pairs=sum(log.num_token_pairs[WARM_UP_STEPS : len(log.seconds)]),
            last_loss=log.losses[-1],
            peak_bytes=peak_bytes,
            import_bytes=import_bytes,
        )

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def trained_tokens_per_second(self) -> float:
        return self.num_trained_tokens / self.seconds


def write_plan(file: Path, plan: Plan) -> None:
    """As `read_plan` reads it."""
    file.write_text(json.dumps(asdict(plan)))


def read_plan(file: Path) -> Plan:
    """What `write_plan` wrote."""
    return Plan(**json.loads(file.read_text()))


def write_rows(file: Path, packs: Sequence[Pack]) -> None:
    """As `read_rows` reads them."""
    file.write_text(json.dumps([[asdict(document) for document in pack] for pack in packs]))


def read_rows(file: Path) -> list[Pack]:
    """What `write_rows` wrote."""
    return [[Document(**fields) for fields in pack] for pack in json.loads(file.read_text())]


def write_result(file: Path, result: Result) -> None:
    """As `read_result` reads it."""
    file.write_text(json.dumps(asdict(result)))


def read_result(file: Path) -> Result:
    """What `write_result` wrote."""
    return Result(**json.loads(file.read_text()))


def steps_of(packs: Sequence[Pack], plan: Plan) -> list[Sequence[Pack]]:
    """The packs of each step, from the first again after the last."""
    size = plan.sequences_per_step
    assert len(packs) >= size, "fewer sequences than a step takes"
    num_full = len(packs) // size
    return [packs[start * size : (start + 1) * size] for start in (step % num_full for step in range(plan.num_steps))]
