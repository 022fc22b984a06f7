"""The whole protocol against a real S3 server."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.checkpoint.names import attempt_of, checkpoint_name
from llmforge.checkpoint.store import CheckpointStore
from llmforge.errors import CheckpointError
from llmforge.storage.base import open_storage
from tests.checkpoint.saving import ATTEMPT, names, rank_files, save, upload
from tests.storage.failing_storage import FailingStorage, KilledError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.slow

LATER = "abcdef00"


def test_the_life_of_a_run(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs/r")
    store = CheckpointStore(storage)
    first, second = save(store, tmp_path, 20, eval_loss=1.0), save(store, tmp_path, 40, eval_loss=3.0)
    assert store.commit(first.name) == first
    # Killed while rank 1 uploads: the next start brings it to its end.
    with pytest.raises(KilledError):
        upload(CheckpointStore(FailingStorage(storage, 9)), tmp_path, 60)
    (left,) = store.unfinished()
    assert (left.step, left.world_size, left.uploaded_ranks) == (60, 2, frozenset({0}))
    third = save(store, tmp_path, 60)
    assert names(store) == [first.name, second.name, third.name]
    assert store.retain(1, [second.name]) == []
    # A flipped bit, a cut and a missing file.
    prefix = f"runs/r/checkpoints/{third.name}"
    s3_client.put_object(Bucket=s3_bucket, Key=f"{prefix}/engine/state-0.bin", Body=b"x" * 800)
    s3_client.put_object(Bucket=s3_bucket, Key=f"{prefix}/engine/state-1.bin", Body=b"cut")
    s3_client.delete_object(Bucket=s3_bucket, Key=f"{prefix}/model.safetensors")
    problems = store.verify(third)
    assert [problem.split(" ")[0] for problem in problems] == [
        "engine/state-0.bin:",
        "engine/state-1.bin:",
        "model.safetensors:",
    ]
    assert "SHA-256" in problems[0] and "3 bytes, not the 800" in problems[1] and problems[2].endswith(": missing")
    store.set_aside(third, "; ".join(problems))
    assert store.resolve("latest") == second
    fourth = save(store, tmp_path, 60, LATER)
    assert store.retain(1) == [second.name, third.name]
    assert names(store) == [first.name, fourth.name]
    assert {file.key.split("/")[1] for file in storage.list("checkpoints")} == {first.name, fourth.name}


def test_sweep_by_the_clock_of_the_server(s3_bucket: str, s3_client: S3Client, tmp_path: Path) -> None:
    """Open uploads in parts go as well; what is at work is left alone."""
    storage = open_storage(f"s3://{s3_bucket}/runs/r")
    store = CheckpointStore(storage)
    for attempt in (ATTEMPT, LATER):
        store.upload_rank(checkpoint_name(20, attempt), rank_files(tmp_path, 20, 0), 0, 2)
        key = f"runs/r/checkpoints/{checkpoint_name(20, attempt)}/weights"
        begun = s3_client.create_multipart_upload(Bucket=s3_bucket, Key=key)
        s3_client.upload_part(
            Bucket=s3_bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=os.urandom(5 << 20)
        )
    assert store.sweep(lambda attempt: False) == []
    assert store.sweep(lambda attempt: attempt == ATTEMPT) == [checkpoint_name(20, ATTEMPT)]
    (open_upload,) = s3_client.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert LATER in open_upload["Key"]
    assert [attempt_of(save.name) for save in store.unfinished()] == [LATER]
    # The clock shows whole seconds.
    assert store.sweep(lambda attempt: False, timedelta(seconds=-2)) == [checkpoint_name(20, LATER)]
    assert storage.list() == []
    with pytest.raises(CheckpointError, match="rank 0 has not uploaded"):
        store.commit(checkpoint_name(20, LATER))
