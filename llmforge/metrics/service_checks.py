"""Whether the logging services of a job can be used from here: their packages, and what they need of the environment.

In: the loggers of a job and the environment. Out: what is missing, in words. Nothing is imported and nobody is called.
"""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from llmforge.config.loggers import LoggerConfig, MlflowLogger, WandbLogger
from llmforge.errors import LoggerError

_WANDB_URL = "https://api.wandb.ai"


def missing_package(config: LoggerConfig) -> str | None:
    """What to install for this logger, if it is not there."""
    if find_spec(config.provider) is not None:
        return None
    return (
        f"logger: {config.provider} is not installed here, where llmforge runs it must be: "
        f"pip install 'llmforge[{config.provider}]'"
    )


def check_logger(config: LoggerConfig, environ: Mapping[str, str]) -> None:
    """Raises LoggerError where the package is missing, or an address or a key in the environment."""
    problem = missing_package(config)
    if problem is not None:
        raise LoggerError(f"{problem}, or remove the logger")
    match config:
        case WandbLogger():
            _check_wandb(config, environ)
        case MlflowLogger():
            mlflow_address(config, environ)
        case _:
            pass


def wandb_is_online(config: WandbLogger, environ: Mapping[str, str]) -> bool:
    """Whether the records are sent, by the job or, where it is silent, by the environment."""
    return (config.provider_config.mode or environ.get("WANDB_MODE", "online")) == "online"


def mlflow_address(config: MlflowLogger, environ: Mapping[str, str]) -> str:
    """The server's, from the job or the environment. Raises LoggerError."""
    address = config.provider_config.tracking_uri or environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://", "databricks")):
        return address
    found = "an address of another kind" if address else "none"
    raise LoggerError(
        f"logger.provider_config.tracking_uri: found {found}, allowed is http://, https:// or databricks: it is the"
        " address of an MLflow server. Give it in the job, or in MLFLOW_TRACKING_URI"
    )


def _check_wandb(config: WandbLogger, environ: Mapping[str, str]) -> None:
    if not wandb_is_online(config, environ) or environ.get("WANDB_API_KEY") or _has_login(environ):
        return
    raise LoggerError(
        "logger: wandb has no key: WANDB_API_KEY is not set and `wandb login` has left none in the netrc file. Set"
        " WANDB_API_KEY in the environment of the cluster, or log with provider_config: {mode: offline}"
    )


def _has_login(environ: Mapping[str, str]) -> bool:
    """Whether `wandb login` has been here."""
    path = Path(environ.get("NETRC") or Path.home() / ".netrc")
    host = urlsplit(environ.get("WANDB_BASE_URL", _WANDB_URL)).hostname or ""
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
