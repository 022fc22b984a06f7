"""The judge, on checkpoints that are whole, damaged, lost and other than they should be."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.faults.judge import Judge, Problem

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow

STATE = {"step": 5, "seen_trained_tokens": 70, "evaluations": [{"step": 5, "loss": 2.5}], "num_updates": 5.0}
FILES = {
    "adapter_model.safetensors": b"weights",
    "optimizer/rank-00001.safetensors": b"moments",
    "trainer_state.json": json.dumps(STATE).encode(),
    "README.md": b"text",
}
CONTENT = {
    "adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    "optimizer/rank-00001.safetensors": hashlib.sha256(b"moments").hexdigest(),
    "trainer_state.json": '{"step": 5, "seen_trained_tokens": 70, "evaluations": [{"step": 5, "loss": 2.5}]}',
}
FOLDER = "runs/a/checkpoints"
NAME = "step-00000005-aa"


@pytest.fixture
def judge(s3_client: S3Client, s3_bucket: str) -> Judge:
    return Judge(s3_client, s3_bucket, "runs/a", expected={5: CONTENT})


def store(judge: Judge, name: str = NAME, step: int = 5) -> None:
    records = [
        {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in FILES.items()
    ]
    manifest = {"files": records, "metadata": {"step": step, "committed_at": f"2026-11-21T00:00:0{step}Z"}}
    for path, data in {**FILES, "manifest.json": json.dumps(manifest).encode()}.items():
        put(judge, path, data, name)


def put(judge: Judge, path: str, data: bytes, name: str = NAME) -> None:
    judge.client.put_object(Bucket=judge.bucket, Key=f"{FOLDER}/{name}/{path}", Body=data)


def delete(judge: Judge, path: str) -> None:
    judge.client.delete_object(Bucket=judge.bucket, Key=f"{FOLDER}/{NAME}/{path}")


def test_whole_checkpoints(judge: Judge) -> None:
    assert judge.look().newest is None
    store(judge)
    sight = judge.look()
    assert sight.problems == ()
    assert sight.newest is not None
    assert (sight.newest.name, sight.newest.step, sight.newest.content) == (NAME, 5, CONTENT)
    store(judge, "step-00000006-bb", step=6)
    put(judge, "README.md", b"a checkpoint that is not complete", name="step-00000007-bb")
    judge.announced.add(NAME)
    newest = judge.look(again=True).newest
    assert newest is not None and newest.name == "step-00000006-bb"


def test_files_that_changed_or_are_gone(judge: Judge) -> None:
    store(judge)
    put(judge, "README.md", b"tex")
    delete(judge, "optimizer/rank-00001.safetensors")
    first, second = judge.look().problems
    assert first.kind == second.kind == "half visible"
    assert first.text.startswith(f"{NAME}/optimizer/rank-00001.safetensors: found None, the manifest says ")
    assert second.text.startswith(f"{NAME}/README.md: found (3, ")
    sight = judge.look()
    assert (sight.newest, sight.problems) == (None, ())  # told once


def test_bytes_that_change_later_are_seen_by_the_last_look(judge: Judge) -> None:
    store(judge)
    judge.look()
    put(judge, "README.md", b"tex!")
    assert judge.look().problems == ()
    assert [problem.kind for problem in judge.look(again=True).problems] == ["half visible"]


def test_a_manifest_that_is_cut(judge: Judge) -> None:
    store(judge)
    put(judge, "manifest.json", b'{"files": [')
    (problem,) = judge.look().problems
    assert problem.kind == "half visible"
    assert problem.text.startswith(f"{NAME}/manifest.json: cannot be read: ")


def test_checkpoints_that_are_gone(judge: Judge) -> None:
    store(judge)
    judge.look()
    judge.announced.add("step-00000004-aa")
    delete(judge, "manifest.json")
    assert judge.look().problems == (
        Problem("lost", "step-00000004-aa: was complete, and is not any more"),
        Problem("lost", f"{NAME}: was complete, and is not any more"),
    )


def test_another_content_than_that_of_the_undisturbed_run(judge: Judge) -> None:
    judge.expected = {5: {**CONTENT, "adapter_model.safetensors": "other", "optimizer/rank-00002.safetensors": "more"}}
    store(judge)
    paths = "adapter_model.safetensors, optimizer/rank-00002.safetensors"
    assert judge.look().problems == (Problem("diverged", f"{NAME}: not those of the undisturbed run: {paths}"),)
