"""A run and what it answers by itself, for tests of servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from tests.export.trained_runs import full_run
from tests.inference.server.servers import Served, serving


@pytest.fixture(scope="module")
def run(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all weights."""
    return full_run(stories, tmp_path_factory.mktemp("run")).uri


@pytest.fixture(scope="module")
def generator(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """The same run without a server."""
    return open_generator(find_trained_model(str(run), "best", tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The run, answering over HTTP."""
    with serving([run], tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.client()
