"""What a run starts from, and that it keeps this when it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmforge.checkpoint.lineage import lineage_from
from llmforge.checkpoint.names import RESOLVED_JOB_FILE
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.errors import CheckpointError, ConfigError
from llmforge.storage.base import open_storage, write_bytes
from llmforge.train.start import with_start
from tests.checkpoint.run_folders import LORA, job, save_run

ADAPTER = "initial_adapter_model_ckpt_path"


def dpo(folder: Path, reference: str = "run:sft") -> JobConfig:
    return job(folder, run_name="dpo", lora_config=LORA, format=None, **{ADAPTER: reference})


@pytest.fixture
def sft(tmp_path: Path) -> str:
    """The address of the best checkpoint of a run of that name."""
    best = save_run(job(tmp_path, run_name="sft", lora_config=LORA), [2.0, 1.0])[1]
    return f"{tmp_path}/sft/checkpoints/{best.name}"


def test_a_new_run(sft: str, tmp_path: Path) -> None:
    started, lineage = with_start(dpo(tmp_path), resume=False)
    assert started.initial_adapter_model_ckpt_path == sft
    assert [(one.run, one.step, one.uri) for one in lineage] == [("sft", 20, sft)]


def test_an_address_is_told_as_well_and_checked_by_nobody(sft: str, tmp_path: Path) -> None:
    """So is its prompt format left to the job."""
    submitted = dpo(tmp_path, sft)
    assert with_start(submitted, resume=False) == (submitted, lineage_from([sft]))
    plain = job(tmp_path, run_name="plain")
    assert with_start(plain, resume=False) == (plain, ())


def test_a_run_that_goes_on_keeps_its_start(sft: str, tmp_path: Path) -> None:
    """Whatever the earlier one has become: a better one, or nothing."""
    started, lineage = with_start(dpo(tmp_path), resume=False)
    write_bytes(open_storage(f"{tmp_path}/dpo"), RESOLVED_JOB_FILE, job_to_yaml(started).encode())
    save_run(job(tmp_path, run_name="sft", lora_config=LORA), [2.0, 1.0, 0.5])
    assert with_start(dpo(tmp_path), resume=False)[0] != started
    assert with_start(dpo(tmp_path), resume=True) == (started, lineage)
    save_run(started, [0.7], lineage=lineage, outcome=None)
    shutil.rmtree(tmp_path / "sft")
    assert with_start(dpo(tmp_path), resume=True) == (started, lineage)
    with pytest.raises(CheckpointError, match="found no such run"):
        with_start(dpo(tmp_path), resume=False)


@pytest.mark.parametrize("other", ["run:other", "run:sft@step-00000010-3fa29c01"])
def test_another_start_is_another_run(other: str, sft: str, tmp_path: Path) -> None:
    started, _ = with_start(dpo(tmp_path), resume=False)
    write_bytes(open_storage(f"{tmp_path}/dpo"), RESOLVED_JOB_FILE, job_to_yaml(started).encode())
    with pytest.raises(ConfigError) as caught:
        with_start(dpo(tmp_path, other), resume=True)
    assert str(caught.value) == (
        f"{ADAPTER}: found {other}, but dpo has started from {sft}; a run that goes on (--resume) keeps its start. Name"
        " that one, or choose another run_name for a new run"
    )
    assert with_start(dpo(tmp_path, "run:sft@step-00000020-3fa29c01"), resume=True)[0] == started


def test_a_run_that_has_not_come_so_far_is_resolved_anew(sft: str, tmp_path: Path) -> None:
    assert with_start(dpo(tmp_path), resume=True) == with_start(dpo(tmp_path), resume=False)
