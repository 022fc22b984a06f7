"""Floating point operations of a training step: the formulas, for the estimate before a run as for the run's metrics.

In: the weights that a token is multiplied with, and what a step works on. Out: operations. It needs no torch.

A weight takes 2 operations for each token in the forward pass, 2 for the gradient of the layer's input, and 2 for its
own gradient, which a frozen weight does not have (Kaplan et al. 2020, "Scaling laws for neural language models",
section 2.1). Attention multiplies each pair of tokens twice in the forward pass and four times in the backward pass
(Chowdhery et al. 2022, "PaLM", appendix B), and half of the pairs only, since no token sees a later one. Look-ups in
the input embedding are none. Norms, activations and the softmax are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Weights of linear layers that a token is multiplied with; biases are none."""

    frozen: int = 0
    trained: int = 0

    def operations(self, num_forward_passes: int = 1) -> int:
        """For one token, forward and backward."""
        frozen, trained = passes(num_forward_passes)
        return frozen * self.frozen + trained * self.trained


@dataclass(frozen=True)
class StepTokens:
    """What a step works on, over all ranks, padding not counted; of a mean token, the same divided by the tokens."""

    num_tokens: float
    num_trained_tokens: float
    """Those whose logits are computed."""
    num_token_pairs: float
    """Squares of the lengths of the documents, added up: no document sees another."""


@dataclass(frozen=True)
class NeededOperations:
    """Operations of one step."""

    operations: float
    """That the model needs."""
    operations_6n: float
    """The usual estimate of training all weights: 6 x parameters x tokens."""


@dataclass(frozen=True)
class StepOperations:
    """What decides how many operations a step of a model takes."""

    decoder: Weights
    """Of all layers; of experts, as many as a token goes through."""
    head: Weights
    """Of the output layer."""
    num_layers: int
    """Those with attention."""
    attention_width: int
    """Heads x size of a head."""
    num_parameters: int
    """All that a token may meet, embeddings and adapters included; of experts, as many as it goes through."""

    def of_step(self, num_tokens: int, num_trained_tokens: int, num_token_pairs: int) -> NeededOperations:
        """Of a step that works on so many; see `StepTokens`."""
        return NeededOperations(
            operations=self.needed(StepTokens(num_tokens, num_trained_tokens, num_token_pairs)),
            operations_6n=6.0 * self.num_parameters * num_tokens,
        )

    def needed(self, step: StepTokens, *, num_forward_passes: int = 1) -> float:
        """Operations of a forward and a backward pass, the output layer's at trained positions only.

        Gradient checkpointing computes the layers' forward pass a second time: that takes time, and is
        `num_forward_passes=2`, but the model does not need it.
        """
        return (
            step.num_tokens * self.decoder.operations(num_forward_passes)
            + step.num_trained_tokens * self.head.operations()
            + step.num_token_pairs * self.attention_operations(num_forward_passes)
        )

    def attention_operations(self, num_forward_passes: int = 1) -> float:
        """For one pair of tokens of a document, those counted that do not see each other."""
        return attention_passes(num_forward_passes) * self.num_layers * self.attention_width / 2


def passes(num_forward_passes: int) -> tuple[int, int]:
    """Operations for one token of a frozen and of a trained weight."""
    return 2 * num_forward_passes + 2, 2 * num_forward_passes + 4


def attention_passes(num_forward_passes: int) -> int:
    """Operations of one layer for one pair of tokens and one number of a head."""
    return 4 * num_forward_passes + 8
