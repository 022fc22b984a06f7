"""Folders of runs as training leaves them, without a model: any bytes for weights, and a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from llmforge.checkpoint.lineage import LINEAGE, Lineage, lineage_json
from llmforge.checkpoint.names import RESOLVED_JOB_FILE, checkpoint_name
from llmforge.checkpoint.run_end import RunEnd, write_end
from llmforge.checkpoint.store import CheckpointInfo, CheckpointStore
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.storage.base import join_uri, open_storage, write_bytes
from tests.prompt.formats import CHATML

ATTEMPT = "3fa29c01"
MODEL = "owner/model"
LORA = {"r": 4}


def job(output_dir: str | Path, **keys: object) -> JobConfig:
    """A job; `format` is its prompt format."""
    prompt_format = keys.pop("format", CHATML)
    generation = {} if prompt_format is None else {"generation_config": {"prompt_format": prompt_format}}
    given = {"model_id": MODEL, "train_path": "train.jsonl", "output_dir": str(output_dir)}
    return JobConfig.model_validate({**given, **generation, **keys})


def save_run(
    trained: JobConfig,
    losses: Sequence[float] = (2.0, 1.0, 1.5),
    *,
    lineage: Lineage = (),
    outcome: Literal["finished", "stopped"] | None = "finished",
) -> list[CheckpointInfo]:
    """The folder of a run with a checkpoint every 10 steps, by their validation losses."""
    storage = open_storage(join_uri(trained.output_dir, str(trained.run_name)))
    job_text = job_to_yaml(trained)
    write_bytes(storage, RESOLVED_JOB_FILE, job_text.encode())
    store = CheckpointStore(storage)
    infos = []
    for number, loss in enumerate(losses, start=1):
        name = checkpoint_name(10 * number, ATTEMPT)
        with TemporaryDirectory() as folder:
            _write_files(Path(folder), trained.method, number)
            Path(folder, RESOLVED_JOB_FILE).write_text(job_text)
            store.upload_rank(name, Path(folder), 0, 1, {"eval_loss": loss, LINEAGE: lineage_json(lineage)})
        infos.append(store.commit(name))
    if outcome is not None:
        write_end(storage, RunEnd(outcome=outcome, step=10 * len(losses)))
    return infos


def _write_files(folder: Path, method: str, number: int) -> None:
    names = ["model.safetensors"] if method == "full" else ["adapter_config.json", "adapter_model.safetensors"]
    (folder / "optimizer").mkdir()
    for name in [*names, "optimizer/rank-00000.safetensors"]:
        (folder / name).write_bytes(f"{name} {number}".encode())
