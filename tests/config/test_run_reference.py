"""`run:NAME` in a job."""

from __future__ import annotations

import pytest

from llmforge.config.job import parse_job
from llmforge.config.run_reference import RunReference
from llmforge.errors import ConfigError

JOB = "model_id: a\ntrain_path: b\nlora_config: {}\n"


@pytest.mark.parametrize(
    ("text", "run", "checkpoint", "is_fixed"),
    [
        ("run:sft", "sft", "best", False),
        ("run:a-1.b_2@latest", "a-1.b_2", "latest", False),
        ("run:sft@step-00000120-3fa29c01", "sft", "step-00000120-3fa29c01", True),
    ],
)
def test_a_reference(text: str, run: str, checkpoint: str, is_fixed: bool) -> None:
    reference = RunReference.of(text)
    assert reference == RunReference(run, checkpoint)
    assert (str(reference), reference.is_fixed) == (text, is_fixed)


@pytest.mark.parametrize("address", [None, "runs/sft", "s3://bucket/run:a", "./run:a", "Run:a", 7])
def test_other_addresses(address: object) -> None:
    assert RunReference.of(address) is None


@pytest.mark.parametrize("address", ["run:", "run:a/b", "run:@best", "run:a@", "run:../a", "run:a b", "run:a@b@c"])
def test_what_begins_like_one_is_told_with_its_line(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_job(f"{JOB}initial_adapter_model_ckpt_path: '{address}'\n", "job.yaml")
    assert str(caught.value) == (
        f"job.yaml:4: initial_adapter_model_ckpt_path: found '{address}', allowed is run:NAME, the name of a run in"
        " output_dir, or run:NAME@CHECKPOINT with best, latest or the name of a checkpoint; a folder of such a name is"
        " written ./run:..."
    )


def test_the_runs_of_a_job_base_weights_first() -> None:
    text = f"{JOB}initial_adapter_model_ckpt_path: run:b\ninitial_base_model_ckpt_path: run:a@latest\n"
    assert list(parse_job(text, "job.yaml").job.earlier_runs.items()) == [
        ("initial_base_model_ckpt_path", RunReference("a", "latest")),
        ("initial_adapter_model_ckpt_path", RunReference("b")),
    ]
    assert parse_job(f"{JOB}initial_base_model_ckpt_path: {{repo_id: run:a}}\n", "job.yaml").job.earlier_runs == {}
