"""Rules between the keys of a job.

A rule judges a job whose single values are right, and yields what is wrong. It names the keys it reads, so that it is
left out where one of them is already known to be faulty: a rule must not complain about a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from llmforge.config.classifier_rules import find_classification_problems, find_label_problems
from llmforge.config.finding import Finding
from llmforge.config.keys import JobKeys

_KEYS_OF_LOSSES = {
    "label_smoothing": ("dpo",),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "reference": ("dpo", "ipo", "kto"),
    "logprob_processor_scaling_config": ("dpo", "ipo", "kto"),
}
_IMPLIED_TASK = {"classifier_config": "classification", "preference_tuning_config": "preference_tuning"}


@dataclass(frozen=True)
class Rule:
    """A check and the top-level keys that it reads."""

    reads: tuple[str, ...]
    check: Callable[[JobKeys], Iterator[Finding]]


def find_contradictions(job: JobKeys, faulty: Collection[str] = ()) -> list[Finding]:
    """What the rules find in a job, without those that read a faulty key."""
    return [finding for rule in RULES if not set(rule.reads) & set(faulty) for finding in rule.check(job)]


def _has_validation_data(job: JobKeys) -> bool:
    return job.valid_path is not None or job.dataset.valid_fraction is not None


def _packing_or_padding(job: JobKeys) -> Iterator[Finding]:
    if job.packing and job.padding is not None:
        yield Finding(("padding",), f"found {job.padding}, but packing is true: packs are not padded; remove one key")


def _quantization(job: JobKeys) -> Iterator[Finding]:
    if job.quantization is None:
        return
    if job.lora_config is None:
        yield Finding(("quantization",), "needs lora_config: weights in few bits cannot be trained; add it")
    if job.lora_config is not None and job.lora_config.changes_base:
        yield Finding(
            ("lora_config", "init_lora_weights"),
            f"found {job.lora_config.init_lora_weights}, which takes a part out of the base weights and does not fit "
            "beside quantization: what remains would be rounded anew, and the saved adapter would not make up for it; "
            "use true",
        )
    if job.quantization.bits == 8 and job.lora_config is not None and job.lora_config.use_dora:
        yield Finding(
            ("lora_config", "use_dora"),
            "found true, allowed with 8 bits is false: PEFT's DoRA loses the scales of such weights; use bits: 4, or "
            "remove the key",
        )
    if job.quantization.type is not None and (job.quantization.type == "int8") != (job.quantization.bits == 8):
        yield Finding(
            ("quantization", "type"),
            f"found {job.quantization.type} for {job.quantization.bits} bits, allowed: nf4, fp4 for 4 and int8 for 8",
        )


def _adapter(job: JobKeys) -> Iterator[Finding]:
    if job.initial_adapter_model_ckpt_path is not None and job.lora_config is None:
        yield Finding(
            ("initial_adapter_model_ckpt_path",),
            "needs lora_config: without it all weights are trained and no adapter; add lora_config, or remove this key",
        )


def _lora_layers(job: JobKeys) -> Iterator[Finding]:
    lora = job.lora_config
    if lora is None:
        return
    if lora.layers_pattern is not None and lora.layers_to_transform is None:
        yield Finding(("lora_config", "layers_pattern"), "needs layers_to_transform; add it, or remove this key")
    if isinstance(lora.target_modules, str) and lora.target_modules != "all-linear":
        for key in ("layers_to_transform", "layers_pattern"):
            if getattr(lora, key) is not None:
                yield Finding(
                    ("lora_config", key),
                    "cannot stand beside a regular expression in target_modules, which names the layers itself; remove "
                    "this key, or give target_modules as a list",
                )


def _lora_start(job: JobKeys) -> Iterator[Finding]:
    """What PEFT refuses of initial values, said before anything is loaded."""
    lora = job.lora_config
    if lora is None:
        return
    key, init = ("lora_config", "init_lora_weights"), lora.init_lora_weights
    if init == "orthogonal" and any(rank % 2 for rank in (lora.r, *lora.rank_pattern.values())):
        yield Finding(key, "found orthogonal, which needs even ranks (r, rank_pattern); choose one, or use true")
    if lora.changes_base and job.initial_adapter_model_ckpt_path is not None:
        yield Finding(key, f"found {init}, but initial_adapter_model_ckpt_path gives the initial values; remove it")
    if lora.changes_base and lora.fan_in_fan_out:
        yield Finding(key, f"found {init}, which is not offered for layers of fan_in_fan_out; use true")
    if lora.changes_base and lora.use_rslora and (lora.rank_pattern or lora.alpha_pattern):
        yield Finding(
            key,
            f"found {init}, which cannot be saved for the published base where use_rslora meets rank_pattern or "
            "alpha_pattern; remove one of them",
        )


def _lora_kinds(job: JobKeys) -> Iterator[Finding]:
    """What PEFT cannot do together, said before anything is loaded."""
    lora = job.lora_config
    if lora is None:
        return
    if lora.lora_bias:
        yield Finding(
            ("lora_config", "lora_bias"),
            "found true, allowed is false: such an adapter can be neither served by vLLM and its kind nor merged into "
            "layers that have no bias; remove the key",
        )
    if lora.target_parameters:
        for key in ("lora_dropout", "fan_in_fan_out", "use_dora"):
            if getattr(lora, key):
                yield Finding(
                    ("lora_config", key),
                    f"found {getattr(lora, key)}, but target_parameters adapts parameters without a layer of their "
                    "own, for which there is none; remove one of them",
                )
        if lora.changes_base:
            yield Finding(
                ("lora_config", "target_parameters"),
                f"cannot start with init_lora_weights {lora.init_lora_weights}; remove one of them",
            )


def _liger_losses(job: JobKeys) -> Iterator[Finding]:
    if job.liger_kernel is not None and job.liger_kernel.kwargs.get("cross_entropy"):
        yield Finding(
            ("liger_kernel", "kwargs", "cross_entropy"),
            "found true, allowed is false: it wants the full matrix of logits, which llmforge never makes; remove the "
            "key, or set fused_linear_cross_entropy",
        )
    if _fused_linear_cross_entropy(job) and job.preference_tuning_config is not None:
        yield Finding(
            ("liger_kernel", "kwargs", "fused_linear_cross_entropy"),
            "found true, allowed with preference_tuning_config is false: pairs are compared by llmforge's own loss, "
            "which makes no full matrix of logits either; remove the key",
        )


def _fused_linear_cross_entropy(job: JobKeys) -> bool:
    return job.liger_kernel is not None and bool(job.liger_kernel.kwargs.get("fused_linear_cross_entropy"))


def _task(job: JobKeys) -> Iterator[Finding]:
    given = {key: getattr(job, key) is not None for key in _IMPLIED_TASK}
    if all(given.values()):
        yield Finding(("classifier_config",), "cannot stand beside preference_tuning_config; remove one of them")
        return
    for key, task in _IMPLIED_TASK.items():
        if given[key] and job.task not in (None, task):
            yield Finding((key,), f"implies task {task}, but task is {job.task}; remove one of them")
        if job.task == task and not given[key]:
            yield Finding(("task",), f"found {task}, which needs {key}; add it")


def _preference(job: JobKeys) -> Iterator[Finding]:
    """Keys of other losses, and references that cannot be had."""
    config = job.preference_tuning_config
    if config is None:
        return
    key = "preference_tuning_config"
    for name, losses in _KEYS_OF_LOSSES.items():
        if getattr(config, name) != type(config).model_fields[name].default and config.loss not in losses:
            found = f"means nothing with loss {config.loss}, only with {', '.join(losses)}; remove it"
            yield Finding((key, name), found)
    if config.reference == "adapter_off":
        if config.logprob_processor_scaling_config is not None:
            found = "gives workers to a reference model, but reference is adapter_off; remove one of them"
            yield Finding((key, "logprob_processor_scaling_config"), found)
        why = without_reference_adapter(job)
        if why is not None:
            yield Finding((key, "reference"), f"found adapter_off, but {why}; set precomputed, or remove the key")


def without_reference_adapter(job: JobKeys) -> str | None:
    """Why the model without its adapter is not the one that the training starts from; None where it is."""
    lora = job.lora_config
    if lora is None:
        return "without lora_config there is no adapter"
    if job.initial_adapter_model_ckpt_path is not None:
        return "the training starts from an adapter (initial_adapter_model_ckpt_path), which belongs to the reference"
    if lora.changes_base:
        return f"init_lora_weights {lora.init_lora_weights} takes a part out of the base weights"
    if lora.bias != "none":
        return f"bias {lora.bias} trains biases of the base model, which cannot be switched off"
    return None


def _preference_rows(job: JobKeys) -> Iterator[Finding]:
    if job.preference_tuning_config is not None and job.dataset.over_length == "truncate":
        yield Finding(
            ("dataset", "over_length"),
            "found truncate, allowed with preference_tuning_config: drop, error (an answer that is cut is not the one "
            "that somebody has preferred)",
        )


def _trained_turns(job: JobKeys) -> Iterator[Finding]:
    if job.task == "causal_lm" and job.dataset.train_on == "last_turn":
        yield Finding(
            ("dataset", "train_on"),
            "found last_turn, but task causal_lm trains every token; set task: instruction_tuning, or remove this key",
        )


def _validation_data(job: JobKeys) -> Iterator[Finding]:
    if job.valid_path is not None and job.dataset.valid_fraction is not None:
        yield Finding(("dataset", "valid_fraction"), "cannot stand beside valid_path; remove one of them")
    remedy = "needs validation data; add valid_path or dataset.valid_fraction"
    if job.early_stopping is not None and not _has_validation_data(job):
        yield Finding(("early_stopping",), remedy)
    if job.eval_first and not _has_validation_data(job):
        yield Finding(("eval_first",), remedy)
    if job.evaluation is not None and not _has_validation_data(job):
        yield Finding(("evaluation",), remedy)


def _devices(job: JobKeys) -> Iterator[Finding]:
    if job.min_devices > job.max_devices:
        yield Finding(("num_devices", "min"), f"found {job.min_devices}, allowed is at most max: {job.max_devices}")


def _mixture(job: JobKeys) -> Iterator[Finding]:
    for index, source in enumerate(job.valid_sources):
        if source.weight is not None:
            key = ("valid_path", index, "weight")
            yield Finding(key, "weights are for training data: validation takes every row once; remove the key")


def _precision(job: JobKeys) -> Iterator[Finding]:
    if job.precision == "fp16" and job.accelerator == "cpu":
        yield Finding(("precision",), "found fp16 with accelerator cpu, allowed on CPUs: fp32, bf16, auto")


def _nesterov(job: JobKeys) -> Iterator[Finding]:
    if job.optimizer.type == "sgd" and job.optimizer.nesterov and job.optimizer.momentum == 0:
        yield Finding(("optimizer", "nesterov"), "needs momentum above 0; add optimizer.momentum, or remove this key")


def _flash_attention(job: JobKeys) -> Iterator[Finding]:
    if job.attention == "flash_attention_2" and not job.flash_attention_2:
        yield Finding(("attention",), "found flash_attention_2, but flash_attention_2 is false; remove one of them")


RULES: tuple[Rule, ...] = (
    Rule(("packing", "padding"), _packing_or_padding),
    Rule(("quantization", "lora_config"), _quantization),
    Rule(("initial_adapter_model_ckpt_path", "lora_config"), _adapter),
    Rule(("lora_config",), _lora_layers),
    Rule(("lora_config", "initial_adapter_model_ckpt_path"), _lora_start),
    Rule(("lora_config",), _lora_kinds),
    Rule(("liger_kernel", "preference_tuning_config"), _liger_losses),
    Rule(("task", "classifier_config", "preference_tuning_config"), _task),
    Rule(("preference_tuning_config", "lora_config", "initial_adapter_model_ckpt_path"), _preference),
    Rule(("preference_tuning_config", "dataset"), _preference_rows),
    Rule(("classifier_config",), find_label_problems),
    Rule(("classifier_config", "dataset", "valid_path"), find_classification_problems),
    Rule(("task", "dataset"), _trained_turns),
    Rule(("valid_path", "dataset", "early_stopping", "eval_first", "evaluation"), _validation_data),
    Rule(("valid_path",), _mixture),
    Rule(("num_devices",), _devices),
    Rule(("precision", "accelerator"), _precision),
    Rule(("optimizer",), _nesterov),
    Rule(("attention", "flash_attention_2"), _flash_attention),
)
