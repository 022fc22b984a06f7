"""What tells weights from others: their bytes, not where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmforge.models.identity import weights_identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "README.md"):
        (made / name).write_text(name)
    return made


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert weights_identity(str(copy), tmp_path / "cache") == weights_identity(str(folder), tmp_path / "cache")


@pytest.mark.parametrize(("name", "changes"), [("config.json", True), ("model-00002-of-00002.safetensors", True),
                                               ("README.md", False)])  # fmt: skip
def test_what_decides(folder: Path, tmp_path: Path, name: str, changes: bool) -> None:
    before = weights_identity(str(folder), tmp_path / "cache")
    (folder / name).write_text("other")
    assert (weights_identity(str(folder), tmp_path / "cache") != before) == changes


def test_a_file_more_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = weights_identity(str(folder), tmp_path / "cache")
    (folder / "adapter_model.safetensors").write_text("adapter")
    assert weights_identity(str(folder), tmp_path / "cache") != before
