"""The weights of an export: loaded, merged, written in shards, read again, and compared.

In: the files of a checkpoint, its job, and prompts as ids. Out: weights, `config.json` and `generation_config.json` in
a folder, and a `WeightProof`. Everything happens on the CPU, and one model is in memory at a time.
"""

import gc
import hashlib
import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llmforge.config.job import JobConfig
from llmforge.errors import ModelError
from llmforge.export.merge import merge_adapter, relative_error
from llmforge.export.stopping import ServedGeneration, hugging_face_generation, mark_ends
from llmforge.models.adapter_files import load_adapter
from llmforge.models.folder import model_folder
from llmforge.models.load import DTYPES, Precision, load_base_model

_LOG = logging.getLogger(__name__)

ExportDtype = Literal["bf16", "fp16", "fp32", "same"]
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}
"""Largest relative error of the logits of a prompt. In 16 bits every weight is rounded, and so is every result."""


@dataclass(frozen=True)
class WeightProof:
    """How the written weights were compared with those of the checkpoint."""

    num_prompts: int
    num_tensors: int
    """Read again from the files, with the same SHA-256 as in memory."""
    largest_error: float
    """Relative, over the logits of a prompt."""
    tolerance: float
    precision: Precision
    """Of the written weights."""

    def describe(self) -> str:
        """One line."""
        return (
            f"logits of {self.num_prompts} prompts differ from the checkpoint's by at most {self.largest_error:.1e} "
            f"(allowed in {self.precision}: {self.tolerance:.0e}); {self.num_tensors} tensors read again, all equal"
        )


def write_weights(
    checkpoint: Path,
    job: JobConfig,
    folder: Path,
    *,
    precision: Precision,
    served: ServedGeneration,
    max_shard_size: str,
    prompts: Sequence[Sequence[int]],
    cache_folder: Path,
) -> WeightProof:
    """Write a whole model that answers by itself. Raises `ModelError` where it does not compute what the run's does."""
    model = _trained_model(checkpoint, job, cache_folder)
    expected = prompt_logits(model, prompts)
    if isinstance(model, PeftModel):
        model = merge_adapter(model, DTYPES[precision])
    model = model.to(DTYPES[precision])
    model.generation_config = hugging_face_generation(served)
    mark_ends(model.config, served)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for shard in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", shard)  # safetensors lets nobody else read them
    written = fingerprints(model)
    del model
    gc.collect()
    read = load_base_model(folder, folder, precision=precision)
    _compare_tensors(written, fingerprints(read), folder)
    error = largest_error(prompt_logits(read, prompts), expected)
    proof = WeightProof(len(prompts), len(written), error, TOLERANCES[precision], precision)
    if not error <= proof.tolerance:
        raise ModelError(
            f"the exported weights do not compute what the checkpoint's do: their logits differ by {error:.1e}, "
            f"allowed in {precision} is {proof.tolerance:.0e}; nothing was left at the target. Export with --dtype "
            "fp32, or the adapter alone with --adapter"
        )
    return proof


@torch.no_grad()
def prompt_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits of every position of each prompt, shape (tokens, vocabulary), without what moves all of them."""
    model = model.eval()
    found = [model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float() for ids in prompts]
    return [logits - logits.mean(-1, keepdim=True) for logits in found]


def largest_error(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """The largest relative error of a prompt; infinite where something is no number."""
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    return max((error if math.isfinite(error) else math.inf for error in errors), default=math.inf)


def fingerprints(model: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor."""
    return {name: _sha256(tensor) for name, tensor in model.state_dict().items()}


def base_folder(job: JobConfig, cache_folder: Path) -> Path:
    """The folder of the base model whose weights an adapter was trained on."""
    return model_folder(job.initial_base_model_ckpt_path or job.model_id, with_weights=True, cache_folder=cache_folder)


def _trained_model(checkpoint: Path, job: JobConfig, cache_folder: Path) -> PreTrainedModel:
    precision = cast(Precision, job.precision)
    if job.method == "full":
        return load_base_model(checkpoint, checkpoint, precision=precision)
    if job.quantization is not None:
        _LOG.warning(
            "export: the adapter was trained on a base model in %d bits and is merged into the same model in %s, "
            "because merged weights are not quantized: answers may differ slightly from those of the run",
            job.quantization.bits,
            precision,
        )
    architecture = model_folder(job.model_id, with_weights=job.initial_base_model_ckpt_path is None)
    base = load_base_model(architecture, base_folder(job, cache_folder), precision=precision)
    return cast(PreTrainedModel, load_adapter(base, checkpoint, is_trainable=False))


def _compare_tensors(written: dict[str, str], read: dict[str, str], folder: Path) -> None:
    differing = sorted(name for name in written.keys() | read.keys() if written.get(name) != read.get(name))
    if differing:
        raise ModelError(
            f"{folder.name}: {len(differing)} of {len(written)} tensors read from the shards differ from those in "
            f"memory, the first is {differing[0]}; nothing was left at the target. Check the disk, and export again"
        )


def _sha256(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().cpu().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
