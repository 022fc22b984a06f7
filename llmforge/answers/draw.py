"""Drawing the next token: sampling with random numbers of its own for every row of a batch.

In: a `Sampling` with the job's values in it. Out: arguments for `generate` of transformers. Its own sampling draws for
all rows from the one generator of the process, so an answer depends on its neighbours and on everything else that
draws; here a row and its seed decide alone. The most probable token of `logits + Gumbel noise` is a draw from the
softmax of the logits (Gumbel 1954; Maddison et al. 2014), which makes it the greedy search of transformers.
"""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmforge.answers.sampling import Sampling, row_seed

_LEAST_NOISE = 1e-38
"""Exponential noise may come out as 0, whose logarithm is none."""


def generate_arguments(sampling: Sampling, device: torch.device, rows: Sequence[int] = (0,)) -> dict[str, object]:
    """How `generate` takes tokens for a batch; `rows` tell the answers of one seed apart.

    Without a seed the numbers come from torch's own generator of this process.
    """
    if sampling.temperature == 0:
        return {"do_sample": False}
    seed = int(torch.randint(2**63 - 1, ())) if sampling.seed is None else sampling.seed
    generators = [torch.Generator(device).manual_seed(row_seed(seed, row)) for row in rows]
    processors = LogitsProcessorList([*_warpers(sampling), GumbelNoise(generators)])
    return {"do_sample": False, "logits_processor": processors}


class GumbelNoise(LogitsProcessor):  # type: ignore[misc] # transformers is untyped here
    """Adds noise to logits (rows, vocabulary), every row from its own generator."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next token with noise in them."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.clamp_(min=_LEAST_NOISE).log_()


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    """In the order of transformers."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature or 0))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers
