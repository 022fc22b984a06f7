"""One rank raises while the others wait for it, in real workers of Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from llmforge.errors import ClusterError, DataError
from llmforge.train.channel import Event, Receiver
from llmforge.train.failures import FailureHandling, as_user_error

pytestmark = pytest.mark.slow


def fail_on_rank_1(config: dict[str, str]) -> None:
    """Rank 0 would wait for half an hour."""
    if dist.get_rank() == 1:
        raise {"bug": ValueError, "data": DataError}[config["kind"]]("row 7 has no end\nof text")
    dist.barrier()


def fit(kind: str, max_failures: int, folder: Path) -> tuple[TrainingFailedError, list[Event]]:
    """What a run of two such ranks ends with, and what was told meanwhile."""
    events: list[Event] = []
    with Receiver(events.append) as receiver:
        trainer = TorchTrainer(
            fail_on_rank_1,
            train_loop_config={"kind": kind},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=[FailureHandling(receiver.mailbox)],
            ),
        )
        with pytest.raises(TrainingFailedError) as caught:
            trainer.fit()
    return caught.value, events


def test_all_stop_with_the_message_of_the_rank_that_failed(shared_ray: None, tmp_path: Path) -> None:
    error, events = fit("bug", 0, tmp_path)
    assert events == [Event("failure", text="rank 1: ValueError: row 7 has no end")]
    told = as_user_error(error)
    assert isinstance(told, ClusterError)
    assert "the last time rank 1: ValueError: row 7 has no end\n" in str(told)
    assert "in fail_on_rank_1" in str(told)


def test_what_the_user_must_solve_is_not_tried_again(shared_ray: None, tmp_path: Path) -> None:
    error, events = fit("data", 1, tmp_path)
    assert events == []
    told = as_user_error(error)
    assert isinstance(told, DataError)
    assert str(told) == "row 7 has no end\nof text"
