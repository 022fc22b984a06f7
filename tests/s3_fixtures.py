"""Pytest fixtures for tests against a real S3 server; a plugin module, named in `pytest_plugins`.

The server is found by `LLMFORGE_S3_SERVER_BIN` or `.venv-s3/bin` at the root of the repository; where neither has it,
the tests that ask for it are skipped.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from boto3.session import Session

from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def s3_server_bin() -> Path:
    """The folder with the programs of the S3 server."""
    folder = Path(os.environ.get("LLMFORGE_S3_SERVER_BIN") or _REPOSITORY / ".venv-s3" / "bin")
    if not (folder / "swift-proxy-server").is_file():
        pytest.skip(
            f"no S3 server in {folder}: python -m venv .venv-s3 && .venv-s3/bin/pip install swift==2.38.3,"
            " or set LLMFORGE_S3_SERVER_BIN to the bin folder of such an environment"
        )
    return folder


@pytest.fixture(scope="session")
def s3_server(s3_server_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests of the session."""
    server = S3Server(s3_server_bin, tmp_path_factory.mktemp("s3")).start()
    yield server
    server.stop()


@pytest.fixture
def s3_environment(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The environment of a machine that may use the server; nothing of this machine's own configuration gets in."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    return s3_server


@pytest.fixture
def s3_client(s3_environment: S3Server) -> Iterator[S3Client]:
    """A plain boto3 client, to look at the server past our own code."""
    client = Session().client("s3")
    yield client
    client.close()


@pytest.fixture
def s3_bucket(s3_client: S3Client) -> str:
    """The name of a new, empty bucket."""
    name = f"test-{secrets.token_hex(6)}"
    s3_client.create_bucket(Bucket=name)
    return name
