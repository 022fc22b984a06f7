"""What a logging service needs of the machine, told before a run starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmforge.config.loggers import (
    MlflowLogger,
    MlflowSettings,
    TensorboardLogger,
    WandbLogger,
    WandbSettings,
)
from llmforge.errors import LoggerError
from llmforge.metrics.service_checks import check_logger, missing_package, mlflow_address, wandb_is_online

ONLINE = WandbLogger(provider="wandb")
OFFLINE = WandbLogger(provider="wandb", provider_config=WandbSettings(mode="offline"))
MLFLOW = MlflowLogger(provider="mlflow")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    logger = TensorboardLogger(provider="tensorboard")
    message = missing_package(logger)
    assert message is not None
    assert message.endswith("pip install 'llmforge[tensorboard]'")
    with pytest.raises(LoggerError, match=r"pip install 'llmforge\[tensorboard\]', or remove the logger"):
        check_logger(logger, {})


def test_wandb_needs_a_key_when_it_is_online(tmp_path: Path) -> None:
    environ = {"NETRC": str(tmp_path / "netrc")}
    with pytest.raises(LoggerError, match="Set WANDB_API_KEY in the environment of the cluster"):
        check_logger(ONLINE, environ)
    check_logger(OFFLINE, environ)
    check_logger(ONLINE, environ | {"WANDB_MODE": "offline"})
    check_logger(ONLINE, environ | {"WANDB_API_KEY": "k"})
    (tmp_path / "netrc").write_text("machine wandb.example login user password key\n")
    with pytest.raises(LoggerError):
        check_logger(ONLINE, environ)
    check_logger(ONLINE, environ | {"WANDB_BASE_URL": "https://wandb.example"})


def test_the_job_decides_the_mode_before_the_environment() -> None:
    assert not wandb_is_online(OFFLINE, {"WANDB_MODE": "online"})
    assert wandb_is_online(ONLINE, {})


def test_mlflow_needs_the_address_of_a_server() -> None:
    with pytest.raises(LoggerError, match=r"tracking_uri: found none, allowed is http://.*MLFLOW_TRACKING_URI"):
        check_logger(MLFLOW, {})
    with pytest.raises(LoggerError, match="found an address of another kind"):
        check_logger(MLFLOW, {"MLFLOW_TRACKING_URI": "./mlruns"})
    given = MlflowLogger(provider="mlflow", provider_config=MlflowSettings(tracking_uri="http://a:5000"))
    assert mlflow_address(given, {"MLFLOW_TRACKING_URI": "http://b:5000"}) == "http://a:5000"
