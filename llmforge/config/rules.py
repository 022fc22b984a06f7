"""Rules between the keys of a job.

A rule judges a job whose single values are right, and yields what is wrong. It names the keys it reads, so that it is
left out where one of them is already known to be faulty: a rule must not complain about a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from llmforge.config.finding import Finding
from llmforge.config.keys import JobKeys

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
    if lora is not None and lora.layers_pattern is not None and lora.layers_to_transform is None:
        yield Finding(("lora_config", "layers_pattern"), "needs layers_to_transform; add it, or remove this key")


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


def _mixture(job: JobKeys) -> Iterator[Finding]:
    for index, source in enumerate(job.valid_sources):
        if source.weight is not None:
            key = ("valid_path", index, "weight")
            yield Finding(key, "weights are for training data: validation takes every row once; remove the key")


def _precision(job: JobKeys) -> Iterator[Finding]:
    if job.precision == "fp16" and job.accelerator == "cpu":
        yield Finding(("precision",), "found fp16 with accelerator cpu, allowed on CPUs: fp32, bf16, auto")


def _flash_attention(job: JobKeys) -> Iterator[Finding]:
    if job.attention == "flash_attention_2" and not job.flash_attention_2:
        yield Finding(("attention",), "found flash_attention_2, but flash_attention_2 is false; remove one of them")


RULES: tuple[Rule, ...] = (
    Rule(("packing", "padding"), _packing_or_padding),
    Rule(("quantization", "lora_config"), _quantization),
    Rule(("initial_adapter_model_ckpt_path", "lora_config"), _adapter),
    Rule(("lora_config",), _lora_layers),
    Rule(("task", "classifier_config", "preference_tuning_config"), _task),
    Rule(("task", "dataset"), _trained_turns),
    Rule(("valid_path", "dataset", "early_stopping", "eval_first"), _validation_data),
    Rule(("valid_path",), _mixture),
    Rule(("precision", "accelerator"), _precision),
    Rule(("attention", "flash_attention_2"), _flash_attention),
)
