"""The keys of a job that say which model is trained and with which weights: base, adapter, LoRA, quantization, kernels.

`ModelKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from llmforge.config.base import PLAIN_NAME, FreeValue, StrictModel
from llmforge.config.prompt_format import GenerationConfig
from llmforge.config.run_reference import RunReference

LoraInit = Annotated[
    str,
    Field(
        pattern=r"^(gaussian|olora|orthogonal|pissa(_niter_[0-9]+)?)$",
        examples=["gaussian", "olora", "orthogonal", "pissa", "pissa_niter_16"],
    ),
]
"""PEFT's names for initial adapter weights that need no data."""
_REFUSED_INITS = {
    "eva": "it needs a pass over the data before training",
    "corda": "it needs a pass over the data before training",
    "lora_ga": "it needs gradients over the data before training",
    "loftq": "it quantizes the base weights in a way that can neither be stored nor served",
    "mica": "it freezes half of the adapter, which a checkpoint of the trained weights would lack",
}


class HubModel(StrictModel):
    """Weights on the Hugging Face hub."""

    repo_id: Annotated[str, Field(min_length=1)]
    """Repository, as `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit. Default: the main branch."""


def _weights_kind(value: object) -> str:
    return "hub" if isinstance(value, dict | HubModel) else "uri"


Weights = Annotated[
    Annotated[Annotated[str, Field(min_length=1)], Tag("uri")] | Annotated[HubModel, Tag("hub")],
    Discriminator(_weights_kind),
]
"""Where weights lie: a local folder, `s3://` uri or `run:NAME`, or `{repo_id}` on the hub."""


WeightsKey = Literal["initial_base_model_ckpt_path", "initial_adapter_model_ckpt_path"]
WEIGHTS_KEYS: tuple[WeightsKey, ...] = ("initial_base_model_ckpt_path", "initial_adapter_model_ckpt_path")
"""The keys that say what a training starts from: base weights, then the adapter over them."""


class LoraConfig(StrictModel):
    """A low-rank adapter; the keys are those of PEFT's `LoraConfig`."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapter matrices."""
    lora_alpha: Annotated[int, Field(ge=1)] = 8
    """Scale of the adapter: its output is multiplied by `lora_alpha / r`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    target_modules: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the layers that get an adapter, one regular expression, or `all-linear`. Default: the linear layers of
    the model's family, `all-linear` for a family that is not known."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Names, or one regular expression, of layers that get none."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    modules_to_save: tuple[str, ...] | None = None
    """Further layers that are trained whole and saved with the adapter, such as `lm_head`."""
    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA)."""
    init_lora_weights: bool | LoraInit = True
    """How the adapter starts: true (no change to the base model), false (random, for tests), `gaussian`, `olora`,
    `orthogonal`, `pissa` or `pissa_niter_N`."""
    layers_to_transform: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Indices of the layers that get an adapter. Default: all."""
    layers_pattern: str | tuple[str, ...] | None = None
    """Name of the list of layers, where `layers_to_transform` is given and the name is unusual."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for single layers: name or regular expression to rank."""
    alpha_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other `lora_alpha` for single layers: name or regular expression to alpha."""
    target_parameters: tuple[str, ...] | None = None
    """Names of parameters that get an adapter where the layer is no linear module, as in mixtures of experts."""
    trainable_token_indices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Token ids whose embeddings are trained without training the whole embedding."""
    fan_in_fan_out: bool = False
    """The replaced layer stores its weight as (in, out), as GPT-2's `Conv1D` does."""
    lora_bias: bool = False
    """PEFT's bias of the adapter's second matrix. Allowed is false: it can be neither served nor, as a rule, merged."""
    ensure_weight_tying: bool = False
    """Where input and output share one matrix: train it once and keep it shared, for `modules_to_save`,
    `target_modules` and `trainable_token_indices`."""
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """PEFT's name for the kind of model."""

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _check_init(cls, value: object) -> object:
        if isinstance(value, str) and value in _REFUSED_INITS:
            raise ValueError(f"found {value!r}, which is not offered: {_REFUSED_INITS[value]}; use true")
        return value

    @property
    def changes_base(self) -> bool:
        """Whether the adapter starts with a part of the base weights, which is taken out of them."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(("pissa", "olora"))


class QuantizationConfig(StrictModel):
    """Base weights in few bits under a LoRA adapter (QLoRA), by bitsandbytes."""

    bits: Literal[4, 8] = 4
    """Bits per weight."""
    type: Literal["nf4", "fp4", "int8"] | None = None
    """Number format. Default: `nf4` for 4 bits, `int8` for 8."""
    double_quantization: bool = True
    """Quantize the scales as well (4 bits only)."""


class LigerKernelConfig(StrictModel):
    """Fused kernels of the Liger package."""

    enabled: bool = False
    """Use them."""
    kwargs: dict[str, FreeValue] = Field(default_factory=dict)
    """Arguments of Liger's patch function for the model, such as `rope: false`. With `fused_linear_cross_entropy: true`
    Liger computes the loss of the trained positions, in place of llmforge's own code for the same."""


class ModelKeys(StrictModel):
    """Model and weights."""

    model_id: Annotated[str, Field(min_length=1)]
    """Hugging Face id or local folder: gives architecture, tokenizer and the defaults of the family."""
    initial_base_model_ckpt_path: Weights | None = None
    """Weights to start from instead: local folder, `s3://` uri, `{repo_id}`, or `run:NAME`, an earlier run in
    `output_dir` that trained all weights (its best checkpoint, or `run:NAME@CHECKPOINT`). `model_id` still gives the
    architecture, and the prompt format unless it is that of a `run:`."""
    initial_adapter_model_ckpt_path: Weights | None = None
    """LoRA adapter to continue from: local folder, `s3://` uri, `{repo_id}`, or `run:NAME`, an earlier run in
    `output_dir` that trained an adapter. The prompt format and the base weights of a `run:` are taken as well."""
    lora_config: LoraConfig | None = None
    """Train a LoRA adapter. Default: train all weights."""
    quantization: QuantizationConfig | None = None
    """Hold the base weights in 4 or 8 bits under the adapter (QLoRA)."""
    generation_config: GenerationConfig | None = None
    """Prompt format, stop tokens and sampling. Default: those of the model's family."""
    attention: Literal["auto", "flash_attention_2", "varlen", "sdpa_per_document", "flex", "sdpa", "eager"] = "auto"
    """Attention back end. `auto` takes the first that the model, the device and the installed packages allow, and says
    which: flash attention, torch's variable-length attention, SDPA one document after another, SDPA with a
    block-diagonal mask, `eager`. One that would let packed examples see each other is refused."""
    flash_attention_2: bool = True
    """Let `attention: auto` use the flash-attn package where it is installed."""
    embedding_scaling_technique: Literal["none", "linear"] = "none"
    """Stretch the position embedding for a `context_length` beyond the model's."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    liger_kernel: LigerKernelConfig | None = None
    """Fused kernels of the Liger package. Default: off."""
    custom_model_tag: Annotated[str, Field(pattern=PLAIN_NAME, max_length=64, examples=["support-bot"])] | None = None
    """Stands in the default `run_name` instead of the model's name."""

    @property
    def earlier_runs(self) -> dict[WeightsKey, RunReference]:
        """The runs that the job starts from, by the keys that name them: base weights first."""
        found = {key: RunReference.of(getattr(self, key)) for key in WEIGHTS_KEYS}
        return {key: reference for key, reference in found.items() if reference is not None}

    @field_validator(*WEIGHTS_KEYS)
    @classmethod
    def _check_reference(cls, weights: Weights | None) -> Weights | None:
        RunReference.of(weights)
        return weights

    @field_validator("model_id")
    @classmethod
    def _check_model_id(cls, model_id: str) -> str:
        if "://" in model_id:
            raise ValueError(
                f"found the uri {model_id!r}, allowed is a Hugging Face id (owner/name) or a local folder; "
                "for weights elsewhere use initial_base_model_ckpt_path"
            )
        return model_id
