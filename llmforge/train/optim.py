"""Optimizer and learning rate: built from their sections of the job, knowing nothing of the engine."""

import math
from collections.abc import Iterable
from typing import Literal

import torch

from llmforge.config.training import AdamW, OptimizerConfig
from llmforge.errors import ConfigError

Schedule = Literal["cosine", "linear", "constant"]


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; matrices decay, biases and norms do not."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not isinstance(config, AdamW):
        raise ConfigError(f"optimizer.type: {config.type} is not supported yet; use adamw")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=config.fused if config.fused is not None else torch.cuda.is_available(),
    )


def scheduled_learning_rate(
    step: int, *, peak: float, schedule: Schedule, num_warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of step `step`, counted from 1: a pure function, so a resumed run needs no scheduler state.

    Rises linearly and reaches `peak` at step `num_warmup_steps`; then stays, or falls to zero along a line or a half
    cosine (Loshchilov and Hutter, "SGDR", 2017) which would touch zero one step after the last.
    """
    if step <= num_warmup_steps:
        return peak * step / num_warmup_steps
    progress = (step - 1 - num_warmup_steps) / max(1, max_steps - num_warmup_steps)
    match schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
