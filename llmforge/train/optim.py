"""Optimizer and learning rate: built from their sections of the job, knowing nothing of the engine."""

import importlib
import math
from collections.abc import Iterable
from typing import Literal

import torch
import transformers

from llmforge.config.training import Adafactor, AdamW, AdamW8bit, OptimizerConfig, Sgd
from llmforge.errors import ConfigError

Schedule = Literal["cosine", "linear", "constant"]


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; matrices decay, biases and norms do not.

    Raises ConfigError where the package of the optimizer is not there.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    decaying = [parameter for parameter in trainable if parameter.dim() >= 2]
    others = [parameter for parameter in trainable if parameter.dim() < 2]
    parts = ((decaying, config.weight_decay), (others, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in parts if members]
    match config:
        case AdamW():
            return torch.optim.AdamW(groups, lr=learning_rate, betas=config.betas, eps=config.eps, fused=config.fused)
        case AdamW8bit():
            return _adamw_8bit(groups, config, learning_rate)
        case Adafactor():
            # Not torch's, whose rate is a share of the weights' size: this one's rate means what it means for AdamW.
            adafactor: torch.optim.Optimizer = transformers.Adafactor(
                groups,
                lr=learning_rate,
                decay_rate=config.decay_rate,
                clip_threshold=config.clip_threshold,
                scale_parameter=False,
                relative_step=False,
            )
            return adafactor
        case Sgd():
            return torch.optim.SGD(groups, lr=learning_rate, momentum=config.momentum, nesterov=config.nesterov)


def _adamw_8bit(groups: list[dict[str, object]], config: AdamW8bit, learning_rate: float) -> torch.optim.Optimizer:
    try:
        optimizers = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise ConfigError(
            f"optimizer.type: found adamw_8bit, but bitsandbytes cannot be imported ({error}); allowed without it: "
            "adamw, adafactor, sgd; install llmforge[quantization] on every node, or choose another optimizer"
        ) from error
    optimizer: torch.optim.Optimizer = optimizers.AdamW8bit(
        groups, lr=learning_rate, betas=config.betas, eps=config.eps
    )
    return optimizer


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
