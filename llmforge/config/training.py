"""The keys of a job that say how it is trained: task, batch, schedule, optimizer, DeepSpeed, evaluation.

`TrainingKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from llmforge.config.base import FreeValue, StrictModel

LabelMetric = Literal["accuracy", "f1", "prauc"]
Task = Literal["instruction_tuning", "causal_lm", "classification", "preference_tuning"]
AtLeastOne = Annotated[int, Field(ge=1)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(StrictModel):
    """AdamW of torch."""

    type: Literal["adamw"] = "adamw"
    """Which optimizer."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the denominator."""
    weight_decay: WeightDecay = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    fused: bool = True
    """One kernel for all parameters; on CPUs as well, where a step takes a third of the time."""


class AdamW8bit(StrictModel):
    """AdamW with its state in 8 bits, by bitsandbytes: needs the extra `quantization`.

    Blocks of 256 numbers share a scale; with another number of devices they are others, so curves agree to within the
    rounding only.
    """

    type: Literal["adamw_8bit"]
    """Which optimizer."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the denominator."""
    weight_decay: WeightDecay = 0.0
    """Decoupled weight decay; not applied to biases and norms."""


class Adafactor(StrictModel):
    """Adafactor: the second moment as row and column sums of whole matrices, which only ZeRO stage 0 keeps whole.

    So it runs with `precision: fp32` alone. The learning rate means what it means for AdamW; it is not relative to the
    size of the weights.
    """

    type: Literal["adafactor"]
    """Which optimizer."""
    decay_rate: Annotated[float, Field(ge=-1, le=0)] = -0.8
    """Exponent of the decay of the second moment."""
    clip_threshold: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of an update."""
    weight_decay: WeightDecay = 0.0
    """Decoupled weight decay; not applied to biases and norms."""


class Sgd(StrictModel):
    """Stochastic gradient descent."""

    type: Literal["sgd"]
    """Which optimizer."""
    momentum: Decay = 0.0
    """Momentum."""
    nesterov: bool = False
    """Nesterov's momentum; needs `momentum`."""
    weight_decay: WeightDecay = 0.0
    """Weight decay, added to the gradient; not applied to biases and norms."""


def _optimizer_type(value: object) -> object:
    return value.get("type", "adamw") if isinstance(value, dict) else getattr(value, "type", "adamw")


OptimizerConfig = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[AdamW8bit, Tag("adamw_8bit")]
    | Annotated[Adafactor, Tag("adafactor")]
    | Annotated[Sgd, Tag("sgd")],
    Discriminator(_optimizer_type),
]
"""One optimizer, chosen by `type`."""


class DeepSpeedFile(StrictModel):
    """A DeepSpeed configuration in a file of its own."""

    config_path: Annotated[str, Field(min_length=1)]
    """Path of the JSON file, from the working directory."""


def _deepspeed_kind(value: object) -> str:
    is_file = isinstance(value, DeepSpeedFile) or (isinstance(value, dict) and "config_path" in value)
    return "file" if is_file else "inline"


DeepSpeed = Annotated[
    Annotated[DeepSpeedFile, Tag("file")] | Annotated[dict[str, FreeValue], Tag("inline")],
    Discriminator(_deepspeed_kind),
]
"""A file, or DeepSpeed's configuration itself."""


class CheckpointFrequency(StrictModel):
    """How often the model is evaluated and saved; the end of the run always is."""

    unit: Literal["epochs", "steps"] = "epochs"
    """What is counted."""
    frequency: AtLeastOne = 1
    """Every so many."""


class EarlyStopping(StrictModel):
    """End the run when the validation loss no longer falls."""

    patience: AtLeastOne = 3
    """Evaluations without improvement that end the run."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A loss must fall, or an accuracy rise, by more than this to count as better."""


class LogprobScaling(StrictModel):
    """Workers that compute the reference model's log-probabilities."""

    custom_resources: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Ray resources of each worker, beside a GPU, or a CPU where training uses no GPUs."""
    concurrency: AtLeastOne = 1
    """Number of workers."""
    batch_size: AtLeastOne = 1
    """Sequences per batch."""


REWARD_ACCURACY = "reward_accuracy"
"""Name of the measure that `best_by: accuracy` of a preference tuning means."""


class PreferenceTuningConfig(StrictModel):
    """Learning from pairs of a chosen and a rejected answer, or with kto from single answers, good and bad ones."""

    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto"] = "dpo"
    """Loss function; simpo and orpo need no reference model."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """How much the loss makes of a difference: with dpo and ipo the strength of the pull towards the reference model,
    with orpo the weight of the odds ratio, with kto how fast an answer is good or bad enough. Default: 0.1; 2 with
    simpo."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """With dpo: the share of the pairs that is taken to be labelled the wrong way round."""
    gamma: Annotated[float, Field(ge=0)] | None = None
    """With simpo: by how much the reward of the chosen answer is to be higher. Default: 1."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """With kto: factor of the loss of desirable answers. Together with their number it should outweigh that of the
    undesirable ones by 1 to 4/3."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """With kto: factor of the loss of undesirable answers."""
    reference: Literal["auto", "adapter_off", "precomputed"] = "auto"
    """Where the reference model's log-probabilities come from: from the base model in every step, by switching the
    adapter off, or from a frozen model, once, before the training. Default: `adapter_off` for a fresh adapter, unless
    `logprob_processor_scaling_config` is given; else `precomputed`."""
    best_by: Literal["loss", "accuracy"] = "loss"
    """Which evaluation is the best: the one with the lowest loss, or with the largest share of pairs whose chosen
    answer has the higher reward (with kto, of answers whose reward is on the right side). Decides which checkpoints are
    kept, and when `early_stopping` ends the run."""
    logprob_processor_scaling_config: LogprobScaling | None = None
    """Workers of their own for the reference model, which compute its log-probabilities before the training."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.loss in ("dpo", "ipo", "kto")


class ClassifierConfig(StrictModel):
    """Choosing one of several labels."""

    label_tokens: Annotated[tuple[str, ...], Field(min_length=2)]
    """Texts of the labels, what the last answer of a row consists of. One that is several tokens behind the prompt is
    added to the tokenizer."""
    positive_label: str | None = None
    """Of two labels the one that is looked for, to which `threshold`, `f1` and `prauc` refer. Default: the last."""
    eval_metrics: Annotated[tuple[LabelMetric, ...], Field(min_length=1)] = ("accuracy", "f1", "prauc")
    """What is measured on the validation data; `prauc` is the area under the curve of precision over recall. Of more
    than two labels `f1` and `prauc` are the mean over the labels, each against the rest."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = 0.5
    """Of two labels, decide for the positive one from this probability on; `auto` takes the one with the highest F1 on
    the validation data."""
    calibrate: bool = True
    """Divide logits by a temperature, measured on the validation data, so that probabilities come true as often as they
    say (Guo et al. 2017)."""
    best_by: Literal["loss"] | LabelMetric = "loss"
    """Which evaluation is the best: the one with the lowest loss, or with the highest value of a metric. Decides which
    checkpoints are kept, and when `early_stopping` ends the run."""


class TrainingKeys(StrictModel):
    """Training."""

    task: Task | None = None
    """What carries loss: every assistant turn (`instruction_tuning`), every token (`causal_lm`), the last assistant
    turn (`classification`, `preference_tuning`). Default: `instruction_tuning`, or what `classifier_config` or
    `preference_tuning_config` imply. (The closed original's default was `causal_lm`.)"""
    num_epochs: AtLeastOne | None = None
    """Passes over the training data. Default: enough for `min_update_steps`."""
    max_steps: AtLeastOne | None = None
    """Optimizer steps. With `num_epochs` as well, the run ends at whichever comes first."""
    min_update_steps: AtLeastOne = 100
    """Without `num_epochs` and `max_steps`: train for as many epochs as this many optimizer steps take."""
    train_batch_size_per_device: AtLeastOne | None = None
    """Sequences per micro-batch on each device. Default: measured, at most 16 sequences and 16,384 tokens; fewer where
    an epoch would have less than 25 steps, or where they would not fit into the named accelerator."""
    eval_batch_size_per_device: AtLeastOne = 1
    """Sequences per batch on each device in evaluation."""
    gradient_accumulation_steps: AtLeastOne = 1
    """Micro-batches per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Highest learning rate. Default: 1e-4 with `lora_config`, 1e-5 without."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up: falls to zero along a cosine or a line, or stays."""
    num_warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps in which the learning rate rises from zero."""
    optimizer: OptimizerConfig = AdamW()
    """Optimizer, chosen by `type`: `adamw`, `adamw_8bit`, `adafactor` or `sgd`."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Scale the gradient down to this norm; null for no limit."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the computation; `auto` is bf16 on GPUs and fp32 on CPUs."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of all random choices: order of the data, adapter, dropout."""
    deepspeed: DeepSpeed | None = None
    """DeepSpeed configuration: `{config_path: file.json}` or the configuration itself; `auto` values are filled in.
    Default: a ZeRO stage chosen from the sizes, printed with its reason."""
    checkpoint_and_evaluation_frequency: CheckpointFrequency = CheckpointFrequency()
    """How often the model is evaluated and saved."""
    num_checkpoints_to_keep: AtLeastOne = 1
    """Keep this many checkpoints, the best by validation loss (or by what `best_by` of the task's section names); the
    latest is never deleted."""
    eval_first: bool = False
    """Evaluate before the first step."""
    early_stopping: EarlyStopping | None = None
    """End the run when the validation loss no longer falls. Default: off."""
    preference_tuning_config: PreferenceTuningConfig | None = None
    """Learn from pairs of a chosen and a rejected answer, or from good and bad ones; implies
    `task: preference_tuning`."""
    classifier_config: ClassifierConfig | None = None
    """Learn to choose a label; implies `task: classification`."""
