"""Pytest fixtures for tests that need Ray: one small instance for the whole session; named in `pytest_plugins`.

Also what such tests train on: a small pretrained model and real conversations of the material.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from llmforge.config.job import JobConfig
from llmforge.train.cluster import start_ray
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

NUM_CPUS = 2
NODE_API_KEY = "kn0wn-t0-the-n0des"
"""What servers on the nodes ask for, set where Ray is started and nowhere else."""
PROMPT_FORMAT = {
    "bos": "<s>",
    "system": "{instruction}\n",
    "user": "Question: {instruction}\n",
    "assistant": "Answer: {instruction}</s>",
    "trailing_assistant": "Answer:",
}
THIRD_PARTY_WARNINGS = (
    # Ray Data sets settings of its own that it calls deprecated; Ray Serve describes fields in an old way.
    *(
        f"ignore:`{name}` is deprecated:DeprecationWarning:ray.data.context"
        for name in ("use_push_based_shuffle", "use_polars", "use_arrow_tensor_v2")
    ),
    "ignore:Using extra keyword arguments on `Field` is deprecated:DeprecationWarning",
    # A socket that never had a connection, freed with the log record of some test that knows nothing of it; seen once.
    "ignore:unclosed <socket.*laddr=.'0.0.0.0', 0.>:ResourceWarning",
)

MakeJob = Callable[..., JobConfig]


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what Ray warns itself of."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def node_aws_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The AWS configuration file of the nodes of `shared_ray`, which start before any S3 server; absent at first."""
    return tmp_path_factory.mktemp("node") / "aws-config"


@pytest.fixture(scope="session")
def shared_ray(repository: Path, node_aws_config: Path) -> Iterator[None]:
    """A Ray instance of our own with two CPUs, started as llmforge starts one."""
    # The path of Ray's sockets is bounded, so its folder has a short name; what runs in another folder is never joined.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_TMPDIR", folder)
        environment.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": NUM_CPUS}))
        environment.setenv("PYTHONPATH", str(repository))
        environment.setenv("AWS_CONFIG_FILE", str(node_aws_config))
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("LLMFORGE_API_KEY", NODE_API_KEY)
        start_ray(verbose=False)
        environment.undo()
        yield
        ray.shutdown()


@pytest.fixture
def s3_on_nodes(shared_ray: None, s3_environment: S3Server, node_aws_config: Path) -> Iterator[S3Server]:
    """The S3 server, usable by this process and by the nodes of `shared_ray`."""
    node_aws_config.write_text(
        f"[default]\nregion = {REGION}\nendpoint_url = {s3_environment.url}\n"
        f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    yield s3_environment
    node_aws_config.unlink()


@pytest.fixture(scope="session")
def small_model(material: Path) -> Path:
    """A real pretrained Llama of 260 000 parameters, with a context of 512 tokens and a vocabulary of 512."""
    return material / "models" / "stories260K-hf"


@pytest.fixture(scope="session")
def real_rows(material: Path) -> list[str]:
    """The first lines of a real set of questions and answers, each a row of messages."""
    with (material / "data" / "chat" / "gsm8k-train.jsonl").open(encoding="utf-8") as file:
        return [next(file).rstrip("\n") for _ in range(200)]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """`make_job(model_id=...)`: a job on CPUs that takes `train.jsonl` and writes to `runs`, both in `tmp_path`."""

    def make(**keys: object) -> JobConfig:
        data = {
            "train_path": str(tmp_path / "train.jsonl"),
            "output_dir": str(tmp_path / "runs"),
            "accelerator": "cpu",
            "context_length": 512,
            "generation_config": {"prompt_format": PROMPT_FORMAT},
        }
        return JobConfig.model_validate_json(json.dumps(data | keys))

    return make
