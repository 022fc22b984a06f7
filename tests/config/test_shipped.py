"""The jobs that come with llmforge: what is said of them, and whether they fit where they say that they run."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path

import pytest

from llmforge.cli.validate import run_validate
from llmforge.config.accelerators import find_accelerator
from llmforge.config.job import load_job
from llmforge.config.job_memory import ModelSizes, SequenceSizes, largest_batch, plan_job
from llmforge.config.memory_plan import GIB, TrainedModel, plan_state, read_sharding
from llmforge.config.model_shape import ModelShape
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.config.shipped import copy_shipped, find_shipped, shipped_folder, shipped_jobs
from llmforge.errors import ConfigError

FOLDER = shipped_folder()
PATHS = sorted(FOLDER.glob("*.yaml"))
LLAMA_8B = ModelShape("llama", 128256, 4096, 14336, 32, 32, 8, 128, ties_embeddings=False)
LLAMA_70B = ModelShape("llama", 128256, 8192, 28672, 80, 64, 8, 128, ties_embeddings=False)
MISTRAL_7B = ModelShape("mistral", 32768, 4096, 14336, 32, 32, 8, 128, ties_embeddings=False)
QWEN_7B = ModelShape("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, ties_embeddings=False)
GEMMA_9B = ModelShape("gemma2", 256000, 3584, 14336, 42, 16, 8, 256, ties_embeddings=True)
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": (LLAMA_8B, 8_030_261_248, 131072),
    "meta-llama/Llama-3.1-70B-Instruct": (LLAMA_70B, 70_553_706_496, 131072),
    "mistralai/Mistral-7B-Instruct-v0.3": (MISTRAL_7B, 7_248_023_552, 32768),
    "Qwen/Qwen2.5-7B-Instruct": (QWEN_7B, 7_615_616_512, 32768),
    "google/gemma-2-9b-it": (GEMMA_9B, 9_241_705_984, 8192),
}
"""Sizes by each model's `config.json`, the parameters that its page on the hub shows, and its longest sequence."""
MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
MIXTRAL_PARAMETERS = 46_702_792_704
PLANNED = re.compile(
    r"(?P<devices>\d+) GPUs? of (?P<gib>\d+) GiB \((?P<name>\S+)\),"
    r".* filled to (?P<planned>[\d.]+) GiB by the memory plan"
)
PLANNED_JOBS = [path for path in PATHS if " filled to " in path.read_text(encoding="utf-8")]
"""Those that say what they take by the memory plan."""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_shipped_job_is_valid(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert f"{path}: a valid job" in run_validate(str(path), [], schema_only=True)
    assert caplog.messages == []  # no old spelling, no repaired quotes


def test_the_list_says_what_each_is_for_and_what_it_needs() -> None:
    jobs = {job.name: job for job in shipped_jobs(FOLDER)}
    assert sorted(jobs) == [path.stem for path in PATHS]
    for job in jobs.values():
        assert 20 < len(job.summary) < 130 and job.summary.endswith("."), job.name
        assert len(job.needs) > 20 and job.needs.endswith("."), job.name
    quickstart = jobs["quickstart"]
    assert quickstart.summary == "The smallest whole job: all weights of a tiny Llama learn 48 capitals."
    assert quickstart.needs == "2 CPU cores and less than a minute; nothing is downloaded."
    assert (quickstart.method, quickstart.num_devices) == ("full", 2)
    assert (jobs["llama-3.1-70b-lora"].method, jobs["llama-3.1-70b-lora"].num_devices) == ("lora", 8)


@pytest.mark.parametrize("path", PLANNED_JOBS, ids=lambda path: path.stem)
def test_a_job_fits_the_gpus_that_it_names(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape, num_parameters, longest = MODELS[load_job(path).model_id]
    assert shape.num_parameters == num_parameters
    sizes = ModelSizes(shape, hidden_size=shape.hidden_size)
    facts = JobFacts(has_gpu=True, started_at=datetime(2026, 1, 1), model_context_length=longest, model=sizes)
    job = resolve_job(load_job(path), facts)
    assert job.context_length is not None and job.train_batch_size_per_device is not None
    every_token_trained = SequenceSizes(job.context_length, job.context_length)
    plan = plan_job(job, sizes, largest_batch(job, every_token_trained, job.train_batch_size_per_device))
    accelerator = find_accelerator(job.worker_resources)
    assert plan is not None and accelerator is not None
    assert plan.fits(accelerator.memory_gib)
    told = PLANNED.match(next(job.needs for job in shipped_jobs(FOLDER) if job.path == path))
    assert told is not None
    assert (int(told["devices"]), told["name"]) == (job.num_devices, accelerator.name)
    assert (float(told["gib"]), told["planned"]) == (accelerator.memory_gib, f"{plan.total_bytes / GIB:.1f}")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_weights_of_the_mixture_fit() -> None:
    """Its layers are not in the plan's table; the attention's adapters are those of Mistral 7B, which has the same."""
    job = load_job(FOLDER / "mixtral-8x7b-lora.yaml")
    assert job.model_id == MIXTRAL and job.lora_config is not None
    assert isinstance(job.deepspeed, dict) and isinstance(job.num_devices, int)
    num_trained = 32 * job.lora_config.r * 2 * ((4096 + 4096) + (4096 + 1024))
    model = TrainedModel(MIXTRAL_PARAMETERS + num_trained, num_trained, 2, has_fp32_gradients=True)
    parameters, *rest = plan_state(model, read_sharding(job.deepspeed, job.num_devices))
    accelerator = find_accelerator(job.worker_resources)
    assert accelerator is not None
    assert f"{parameters.num_bytes / GIB:.1f} GiB of each" in next(
        job.needs for job in shipped_jobs(FOLDER) if job.name == "mixtral-8x7b-lora"
    )
    assert parameters.num_bytes + sum(part.num_bytes for part in rest) < accelerator.memory_gib * GIB / 2


def test_a_job_is_copied_once(tmp_path: Path) -> None:
    file = copy_shipped("quickstart", tmp_path / "mine.yaml", FOLDER)
    assert file.read_bytes() == (FOLDER / "quickstart.yaml").read_bytes()
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"mine\.yaml: found a file here, which is not replaced"):
        copy_shipped("quickstart", file, FOLDER)
    assert file.read_text() == "mine"
    assert copy_shipped("quickstart.yaml", tmp_path, FOLDER) == tmp_path / "quickstart.yaml"
    with pytest.raises(ConfigError, match=r"nowhere/mine\.yaml: cannot be written: No such file or directory"):
        copy_shipped("quickstart", tmp_path / "nowhere" / "mine.yaml", FOLDER)


def test_a_name_that_is_nearly_right(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found lama-3\.1-8b-lora, .* \(did you mean llama-3\.1-8b-lora\?\)$"):
        find_shipped("lama-3.1-8b-lora", FOLDER)
    with pytest.raises(ConfigError, match=r"found xyz, allowed is the name of a job that `llmforge configs` lists$"):
        find_shipped("xyz", FOLDER)
    with pytest.raises(ConfigError, match="found no job here"):
        shipped_jobs(tmp_path)
