"""Where a run stands: the little that must be remembered beside weights and optimizer state."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from llmforge.config.base import StrictModel
from llmforge.train.optimizer_state import OptimizerState

STATE_FILE = "trainer_state.json"
OPTIMIZER_FOLDER = "optimizer"


class Evaluation(StrictModel):
    """One evaluation of the run."""

    # Strict JSON has no NaN: as a string it comes back as what it was.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    step: int
    loss: float
    """Mean over the trained tokens of the validation data, in nats; not finite where training has diverged."""
    score: float | None = None
    """Where something else than the loss says which evaluation is best: higher is better."""

    @property
    def rank(self) -> float:
        """Lower is better; infinite where training has diverged."""
        rank = self.loss if self.score is None else -self.score
        return rank if math.isfinite(self.loss) and math.isfinite(rank) else math.inf


class TrainerState(BaseModel):
    """Saved in every checkpoint as `trainer_state.json`."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    """Steps done. The position in the data, the learning rate and the random numbers of a step all follow from it."""
    seen_trained_tokens: int = 0
    evaluations: list[Evaluation] = []
    num_updates: float = 0
    """Updates that the optimizer counted (fewer than steps where fp16 overflowed)."""
    loss_scaler: dict[str, float] = {}

    @property
    def best_evaluation(self) -> Evaluation | None:
        """The one with the lowest rank and a finite loss; of equals the later, whose checkpoint is the one that is
        kept.
        """
        finite = [evaluation for evaluation in self.evaluations if math.isfinite(evaluation.loss)]
        return min(reversed(finite), key=lambda evaluation: evaluation.rank, default=None)

    def is_evaluated(self) -> bool:
        """Whether the weights of this very step were evaluated."""
        return bool(self.evaluations) and self.evaluations[-1].step == self.step

    def has_stopped_improving(self, patience: int, min_delta: float) -> bool:
        """Whether the last `patience` evaluations all failed to be better by more than `min_delta` than the best
        before.
        """
        ranks = [evaluation.rank for evaluation in self.evaluations]
        if len(ranks) <= patience:
            return False
        return min(ranks[-patience:]) >= min(ranks[:-patience]) - min_delta


def save_optimizer_state(state: OptimizerState, folder: Path, rank: int) -> None:
    """Write one rank's share; a rank without a share writes nothing."""
    if state.tensors:
        (folder / OPTIMIZER_FOLDER).mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, folder / OPTIMIZER_FOLDER / f"rank-{rank:05d}.safetensors")


def load_optimizer_state(folder: Path, trainer_state: TrainerState) -> OptimizerState:
    """All ranks' shares of a checkpoint folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((folder / OPTIMIZER_FOLDER).glob("rank-*.safetensors")):
        shares: Mapping[str, torch.Tensor] = load_file(path)
        tensors.update(shares)
    return OptimizerState(tensors, trainer_state.num_updates, trainer_state.loss_scaler)
