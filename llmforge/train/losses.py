"""The loss of a micro-batch: a language model and its cross entropy as one module.

In: a `Batch`. Out: a sum over trained tokens, in nats. Sums, not means: the engine divides by the trained tokens of
the global batch (by their weights, where messages have some), so that the split into micro-batches and workers does
not matter. One module, because DeepSpeed gathers partitioned weights around the modules that it is given. It knows
nothing of ranks.

The output layer sees trained positions only, in chunks, and its backward pass is done chunk by chunk within the
forward pass, while the logits are there: no matrix of tokens x vocabulary exists at any time, and nothing is computed
twice. The idea is that of Liger's fused linear cross entropy (Hsu et al. 2024, "Liger Kernel"), here for any output
layer: tied or not, with an adapter or a bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from deepspeed.utils import set_z3_leaf_module
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from llmforge.config.activation_plan import LOGITS_AT_ONCE
from llmforge.errors import ModelError
from llmforge.models.liger import FusedLoss
from llmforge.train.batches import Batch

Computed = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""A loss, or a loss and beside it what was measured, both summed."""


class NextTokenLoss(torch.nn.Module):
    """Cross entropy of every trained token given what stands before it in its own example, times its weight, summed."""

    def __init__(self, model: PreTrainedModel | PeftModel, fused_loss: FusedLoss | None = None) -> None:
        """`fused_loss` is Liger's, where a job asks for it. Raises `ModelError` where the model cannot have it."""
        super().__init__()
        self.model = model
        config = self._base.config.get_text_config()
        layer, scale = self._base.get_output_embeddings(), logit_scaling(config)
        self.head = OutputLoss(layer, config.vocab_size, scale)
        if fused_loss is not None:
            self.head.use(fused_loss)
        self.uses_own_logits = False
        """Whether the model computes its logits itself, all at once, and not `head`."""
        self.measure_names: tuple[str, ...] = ()
        """What is measured beside the loss, in the order in which it is summed."""
        self.has_reference_point = False
        """Whether it compares with a number of the whole global batch, which must be given to it with every batch."""

    @property
    def _base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    def means(self, sums: Sequence[float], weight: float) -> dict[str, float]:
        """What is measured, by names, from the sums over a global batch and the denominator of its loss."""
        return {name: total / weight for name, total in zip(self.measure_names, sums, strict=True)}

    def forward(self, batch: Batch) -> Computed:
        """The sum, a scalar in float32."""
        if self.uses_own_logits:
            return weighted_cross_entropy(self.own_logits(batch), batch.targets, batch.weights)
        return cast(torch.Tensor, self.head(self.hidden_states(batch), batch.targets, batch.weights))

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """What the output layer is given at the trained positions; shape (positions, hidden size)."""
        hidden: torch.Tensor = self._base.get_decoder()(**_inputs(batch)).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, batch.positions)

    def own_logits(self, batch: Batch) -> torch.Tensor:
        """As the model itself computes them at the trained positions; shape (positions, vocabulary)."""
        if batch.documents is None:
            return cast(torch.Tensor, self._base(**_inputs(batch)).logits.flatten(0, 1)[batch.positions])
        return cast(torch.Tensor, self._base(**_inputs(batch), logits_to_keep=batch.positions).logits[0])


def _inputs(batch: Batch) -> dict[str, Any]:
    documents = {} if batch.documents is None else batch.documents.arguments
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False, **documents}


@dataclass(frozen=True)
class LogitScaling:
    """What a model does to the result of its output layer: Gemma's soft cap, the factors of Granite and Cohere."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def logit_scaling(config: Any) -> LogitScaling:
    """As the configuration of a model says."""
    factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return LogitScaling(factor, getattr(config, "final_logit_softcapping", None))


class OutputLoss(torch.nn.Module):
    """An output layer and its cross entropy."""

    def __init__(self, layer: torch.nn.Module, vocab_size: int, scale: LogitScaling) -> None:
        super().__init__()
        self.layer = layer
        self._vocab_size = vocab_size
        self._scale = scale
        self._fused_loss: FusedLoss | None = None
        # ZeRO-3 then gathers all weights of the layer and its adapter around this module, once for all chunks.
        set_z3_leaf_module(self, True)
        set_z3_leaf_module(layer, True)

    def use(self, fused_loss: FusedLoss) -> None:
        """Leave the loss to another package wherever all weights are 1. Raises `ModelError` where it cannot have it."""
        if not isinstance(self.layer, torch.nn.Linear) or self._scale != LogitScaling():
            raise ModelError(
                "liger_kernel.kwargs: found fused_linear_cross_entropy, which takes a plain output layer only, without "
                "an adapter and without a scale or soft cap of its logits; remove it: llmforge's own loss takes any"
            )
        self._fused_loss = fused_loss

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of all tokens of the vocabulary, shape (positions, vocabulary); `hidden` (positions, hidden size)."""
        return self._scale(self.layer.forward(hidden))  # not called, so that no hook of ZeRO-3 runs for each chunk

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        *,
        each: bool = False,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross entropy times `weights`, summed, a scalar in float32; or without a gradient that of `each` position, or
        the logits of the tokens in `columns`, shape (positions, columns).

        `hidden` has shape (positions, hidden size), `targets` and `weights` (positions,).
        """
        if each:
            return self._each(hidden, targets)
        if columns is not None:
            return self._columns(hidden, columns)
        if self._fused_loss is not None and weights is None:
            return self._fused_loss(hidden, cast(torch.nn.Linear, self.layer), targets)
        trained = [parameter for parameter in self.layer.parameters() if parameter.requires_grad]
        if torch.is_grad_enabled() and (hidden.requires_grad or trained):
            return cast(torch.Tensor, _ChunkedLoss.apply(self, hidden, targets, weights, *trained))  # type: ignore[no-untyped-call]
        total = torch.zeros((), device=hidden.device)
        for part in self.chunks(len(targets), hidden.device):
            chunk_weights = None if weights is None else weights[part]
            total += weighted_cross_entropy(self.logits(hidden[part]), targets[part], chunk_weights)
        return total

    @torch.no_grad()
    def _each(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = self.chunks(len(targets), hidden.device)
        return torch.cat(
            [functional.cross_entropy(self.logits(hidden[p]).float(), targets[p], reduction="none") for p in parts]
        )

    @torch.no_grad()
    def _columns(self, hidden: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        parts = self.chunks(len(hidden), hidden.device)
        return torch.cat([self.logits(hidden[part])[:, columns].float() for part in parts])

    def chunks(self, num_positions: int, device: torch.device) -> list[slice]:
        """The positions of which logits are computed at one time."""
        size = max(1, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "gpu"] // self._vocab_size)
        return [slice(start, start + size) for start in range(0, num_positions, size)]


def weighted_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Summed, in float32. `logits` has shape (positions, vocabulary), the others (positions,)."""
    losses = functional.cross_entropy(logits.float(), targets, reduction="sum" if weights is None else "none")
    return losses if weights is None else (losses * weights).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients of the sum together with the sum; its backward pass only multiplies them."""

    @staticmethod
    def forward(
        ctx: Any,
        output: OutputLoss,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        *trained: torch.nn.Parameter,
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        sums: list[torch.Tensor] | None = None
        for part in output.chunks(len(targets), hidden.device):
            inputs = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = output.logits(inputs)
            chunk_weights = None if weights is None else weights[part]
            loss, logits_gradient = _loss_and_gradient(logits.detach(), targets[part], chunk_weights)
            total += loss
            gradients = torch.autograd.grad(logits, (inputs, *trained), logits_gradient)
            del logits, logits_gradient
            hidden_gradient[part] = gradients[0]
            # In fp32, so that the sum does not depend on where chunks end.
            if sums is None:
                sums = [gradient.float() for gradient in gradients[1:]]
            else:
                for total_gradient, gradient in zip(sums, gradients[1:], strict=True):
                    total_gradient += gradient
        ctx.save_for_backward(hidden_gradient)
        ctx.sums = [gradient.to(p.dtype) for gradient, p in zip(sums or [], trained, strict=True)]
        return total

    @staticmethod
    def backward(ctx: Any, *factors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (hidden_gradient,) = ctx.saved_tensors
        gradients, ctx.sums = ctx.sums, None
        return None, factors[0] * hidden_gradient, None, None, *(gradient.mul_(factors[0]) for gradient in gradients)


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss, and its gradient by the logits: softmax less the target, times the weight."""
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    at_target = (torch.arange(len(targets), device=targets.device), targets)
    losses = -log_probabilities[at_target]
    gradient = log_probabilities.exp_()
    gradient[at_target] -= 1
    if weights is not None:
        losses = losses * weights
        gradient *= weights[:, None]
    return losses.sum(), gradient.to(logits.dtype)
