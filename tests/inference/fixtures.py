"""Fixtures for tests in which a small pretrained model answers; a `conftest.py` takes those that its folder needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmforge.inference.find import find_trained_model
from llmforge.inference.load import TrainedModel, load_trained_model
from tests.inference.runs import make_run


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """The model as a run would leave it, loaded."""
    folder = tmp_path_factory.mktemp("model")
    return load_trained_model(find_trained_model(str(make_run(stories, folder)), "best", folder / "cache"))
