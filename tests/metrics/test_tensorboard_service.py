"""Event files as TensorBoard itself reads them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from llmforge.errors import LoggerError
from llmforge.metrics.services import Measured, RunFacts
from llmforge.metrics.tensorboard_service import TensorboardService

FACTS = RunFacts("run-1", {"lora_config.r": 8, "model_id": "a/b", "max_steps": None}, {"run": "s3://bucket/run-1"})


def records(*steps: int) -> list[Measured]:
    return [Measured(step, 1000.0 + step, {"train/loss": step / 8}) for step in steps]


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    """The first driver got to step 4 and left a checkpoint of step 2."""
    stored: list[Path] = []
    first = TensorboardService(tmp_path, FACTS, stored.append)
    first.begin(0)
    first.log([Measured(0, 999.0, {"eval/loss": 2.5}), *records(1, 2, 3, 4)])
    first.link({"latest_checkpoint": "s3://bucket/run-1/checkpoints/step-2"})
    assert stored == list(tmp_path.iterdir())
    first.finish("failed")
    second = TensorboardService(tmp_path, FACTS)
    second.begin(2)
    second.log(records(3, 4, 5))
    second.finish("finished")

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, step / 8) for step in (1, 2, 3, 4, 5)
    ]
    assert [(event.step, event.wall_time, event.value) for event in events.Scalars("eval/loss")] == [(0, 999.0, 2.5)]
    assert events.Tensors("status")[-1].tensor_proto.string_val == [
        b"| key | value |\n|---|---|\n| status | finished |"
    ]
    (link,) = [event.tensor_proto.string_val[0] for event in events.Tensors("links")][1:2]
    assert b"| run | s3://bucket/run-1 |" in link
    assert b"| latest_checkpoint | s3://bucket/run-1/checkpoints/step-2 |" in link
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    params = parse_session_start_info_plugin_data(content).hparams
    assert (params["lora_config.r"].number_value, params["model_id"].string_value) == (8, "a/b")
    assert set(params) == {"lora_config.r", "model_id"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoggerError, match=r"tensorboard: .*file: its files cannot be written or stored"):
        TensorboardService(tmp_path / "file", FACTS)
