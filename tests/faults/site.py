"""Where disturbed runs take place: an S3 server, the proxy before it, and a small job on real rows and a real model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boto3.session import Session

from tests.chaos_proxy import ChaosProxy
from tests.faults.driver_process import DriverProcess, driver_environment
from tests.faults.judge import Judge
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BUCKET = "faults"
NUM_ROWS = 60
NUM_RANKS = 2
PROMPT_FORMAT = {
    "bos": "<s>",
    "system": "{instruction}\n",
    "user": "Question: {instruction}\n",
    "assistant": "Answer: {instruction}</s>",
    "trailing_assistant": "Answer:",
}
REPOSITORY = Path(__file__).resolve().parent.parent.parent

Method = Literal["lora", "full"]


@dataclass(frozen=True)
class Material:
    """What must be on the machine already."""

    s3_server_bin: Path
    model: Path
    """A folder with a pretrained model; small, so that a step takes a fraction of a second."""
    rows: Path
    """A file of conversations, one a line."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and how often it saves."""

    num_steps: int = 240
    save_interval_steps: int = 8
    calm_seconds: float = 6.0
    """Once training goes on, the next disturbance comes within so long."""
    spares_first_save: bool = False
    """Nothing happens to a run that has no checkpoint yet, so that each failure has one to go on from."""


@dataclass(frozen=True)
class Site:
    """One for all runs of a campaign; runs do not share folders."""

    server: S3Server
    proxy: ChaosProxy
    client: S3Client
    """Goes straight to the server."""
    scratch: Path
    plan: Plan

    @property
    def temporary(self) -> Path:
        """TMPDIR of the drivers and their workers."""
        return self.scratch / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        """Of drivers with a Ray of their own."""
        return driver_environment(REPOSITORY, self.scratch, self.proxy.url, NUM_RANKS)

    def driver(
        self, run_name: str, method: Method, *, resume: bool, environment: Mapping[str, str] | None = None
    ) -> DriverProcess:
        """A driver of the run, not yet started."""
        arguments = [str(self.scratch / f"{method}.yaml"), f"run_name={run_name}", *(["--resume"] if resume else [])]
        return DriverProcess(arguments, environment or self.environment, self.scratch)

    def judge(self, run_name: str) -> Judge:
        return Judge(self.client, BUCKET, f"runs/{run_name}")


@contextmanager
def open_site(material: Material, plan: Plan) -> Iterator[Site]:
    """Everything on loopback ports and in one temporary folder, both gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="llmforge-faults-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        server = S3Server(material.s3_server_bin, scratch / "s3").start()
        try:
            client = Session(ACCESS_KEY, SECRET_KEY, region_name=REGION).client("s3", endpoint_url=server.url)
            client.create_bucket(Bucket=BUCKET)
            with material.rows.open(encoding="utf-8") as rows:
                (scratch / "train.jsonl").write_text("".join(islice(rows, NUM_ROWS)), encoding="utf-8")
            for method in ("lora", "full"):
                (scratch / f"{method}.yaml").write_text(json.dumps(_job(material, scratch, plan, method)))
            with ChaosProxy(server.port).running() as proxy:
                yield Site(server, proxy, client, scratch, plan)
            client.close()
        finally:
            server.stop()


def _job(material: Material, scratch: Path, plan: Plan, method: Method) -> dict[str, object]:
    """JSON is YAML too. Dropout is on, and a checkpoint holds what each of two ranks has of the optimizer."""
    lora = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    return {
        "model_id": str(material.model),
        "train_path": str(scratch / "train.jsonl"),
        "output_dir": f"s3://{BUCKET}/runs",
        "accelerator": "cpu",
        "num_devices": NUM_RANKS,
        "context_length": 512,
        "generation_config": {"prompt_format": PROMPT_FORMAT},
        "dataset": {"valid_fraction": 0.1},
        "lora_config": lora if method == "lora" else None,
        "deepspeed": {"zero_optimization": {"stage": 2 if method == "lora" else 3}},
        "max_steps": plan.num_steps,
        "train_batch_size_per_device": 1,
        "learning_rate": 1e-3,
        "checkpoint_and_evaluation_frequency": {"unit": "steps", "frequency": plan.save_interval_steps},
        "num_checkpoints_to_keep": 10_000,
        "max_failures": 10_000,
    }
