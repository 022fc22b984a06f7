"""Fixtures for all tests: the repository, real material where the machine has some, the material of the quickstart."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.s3_fixtures", "tests.ray_fixtures", "tests.readme_fixtures"]

REPOSITORY = Path(__file__).resolve().parent.parent
MATERIAL = Path(os.environ.get("LLMFORGE_MATERIAL") or REPOSITORY.parent / "shared" / "material")

# On a busy machine a slow example is no failure.
settings.register_profile("llmforge", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("llmforge")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` on a machine without one, which shows without importing torch."""
    if Path("/dev/nvidiactl").exists():
        return
    no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU; this machine has no /dev/nvidiactl")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def material() -> Path:
    """A folder of real models, tokenizers, conversations and reference texts, which are not part of the repository."""
    if not MATERIAL.is_dir():
        pytest.skip(f"no real material in {MATERIAL}; set LLMFORGE_MATERIAL to the folder that holds models/ and data/")
    return MATERIAL


@pytest.fixture(scope="session")
def stories(material: Path) -> Path:
    """A pretrained Llama of 260 000 parameters."""
    return material / "models" / "stories260K-hf"


@pytest.fixture(scope="session")
def quickstart_material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `data/` and `model/` that `scripts/make_quickstart.py` makes; for reading only."""
    folder = tmp_path_factory.mktemp("quickstart")
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_quickstart.py"))
    script["make_quickstart"](folder)
    return folder
