"""Jobs written to a file named job.yaml in the working directory, so that messages can be compared whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig, load_job
from llmforge.errors import ConfigError

REQUIRED = "model_id: meta-llama/Meta-Llama-3-8B\ntrain_path: train.jsonl\n"

Load = Callable[..., JobConfig]
Problems = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(text, *overrides)`: the job of a file that starts with the two required keys in lines 1 and 2."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str, *overrides: str, whole: bool = False) -> JobConfig:
        Path("job.yaml").write_text(text if whole else REQUIRED + text, encoding="utf-8")
        return load_job("job.yaml", overrides)

    return load_text


@pytest.fixture
def problems(load: Load) -> Problems:
    """As `load`, for a job that must be refused: the lines of the error."""

    def problems_of(text: str, *overrides: str, whole: bool = False) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, whole=whole)
        return str(caught.value).splitlines()

    return problems_of
