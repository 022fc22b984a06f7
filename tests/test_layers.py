"""The layers of the package: who may import whom, and what the light client may not import at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llmforge"
LAYERS = {
    "errors": 0,
    "config": 1,
    "prompt": 2,
    "storage": 2,
    "metrics": 2,
    "dataset": 3,
    "models": 3,
    "checkpoint": 3,
    "doctor": 3,
    "answers": 4,
    "train": 5,
    "inference": 5,
    "jobs": 5,
    "export": 6,
    "cli": 7,
}
LIGHT = ("errors", "config", "storage", "checkpoint", "jobs", "cli")
"""What a laptop needs to check, submit and watch a job; prompts are rendered without more, too."""
LIGHT_MODULES_ELSEWHERE = (
    "llmforge.answers.evaluation_prompts",
    "llmforge.doctor.diagnosis",
    "llmforge.prompt.messages",
    "llmforge.prompt.render",
)
MODEL_COMMANDS = (
    "chat",
    "check_data",
    "data_stage",
    "export",
    "generate",
    "local_job",
    "memory",
    "prepare",
    "preview",
    "preview_text",
    "train",
    "verify",
    "verify_text",
)
"""Modules of `cli` behind commands that need a tokenizer or a model, so that they may import what they like."""
MAY_LOAD = (
    "llmforge.cli.places.cache_folder",
    "llmforge.inference.chat_model.ChatModel",
    "llmforge.inference.chat_model.open_chat_model",
)
"""What `llmforge.load` imports when it is called, and may, since it stands above all layers."""
HEAVY = (
    "datasets",
    "deepspeed",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "msgspec",
    "numpy",
    "peft",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "ray",
    "safetensors",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
)
"""The packages of the extras `train` and `serve`."""


@dataclass(frozen=True)
class Import:
    """One name that a module of llmforge imports from llmforge."""

    importer: str
    """Dotted name of the module that imports."""
    line: int
    target: str
    """Dotted name of what is imported."""


def _modules() -> dict[str, Path]:
    """Dotted name and file of every module of the package."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(importer: str, source: str) -> Iterator[Import]:
    """Every import of llmforge in a module, wherever in the module it stands; relative ones as `.name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            targets = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.startswith(".") or target.split(".")[0] == "llmforge":
                yield Import(importer, node.lineno, target)


def _layer_name(dotted: str) -> str | None:
    """The package or module directly below llmforge; None for llmforge itself (`llmforge`, `llmforge.__version__`)."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else None


def _breaks_layers(found: Import) -> bool:
    importer, target = _layer_name(found.importer), _layer_name(found.target)
    if target is None or importer == target or (importer is None and found.target in MAY_LOAD):
        return False
    return importer is None or LAYERS[target] >= LAYERS[importer]


def _violations(importer: str, source: str) -> list[str]:
    return [
        f"{found.importer} line {found.line}: {found.target}"
        for found in _imports(importer, source)
        if found.target.startswith(".") or _breaks_layers(found)
    ]


BANNED = frozenset({"copy_files", "as_directory", "to_directory", "FileSystem", "S3FileSystem", "FileSelector"})
"""They say that a copy to or from S3 has succeeded when it has not: pyarrow's own, and Ray's, which rests on it."""


def test_no_checkpoint_goes_through_ray_or_pyarrow() -> None:
    """Bytes travel by `storage/` alone, which verifies them."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            if isinstance(node, ast.ImportFrom) and node.module in ("pyarrow", "ray.train"):
                names &= {"fs", "Checkpoint", "report"}
            elif isinstance(node, ast.Attribute):
                names = {node.attr} & BANNED
            elif not any(name == "pyarrow.fs" for name in names):
                names = names & BANNED
            found += [f"{file.name}: {name}" for name in sorted(names)]
    assert found == []


def test_every_package_and_module_has_a_layer() -> None:
    top_level = {name.split(".")[1] for name in _modules() if "." in name}
    assert top_level <= set(LAYERS)


@pytest.mark.parametrize(("name", "path"), _modules().items(), ids=_modules())
def test_a_module_imports_only_its_own_package_and_lower_layers(name: str, path: Path) -> None:
    assert _violations(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("importer", "source", "is_allowed"),
    [
        ("llmforge.train.loop", "from llmforge.dataset.packing import pack", True),
        ("llmforge.train.loop", "import llmforge.train.state", True),
        ("llmforge.train.samples", "from llmforge.answers.batch import Prompt", True),
        ("llmforge.train.samples", "from llmforge.inference.load import load_trained_model", False),
        ("llmforge.cli.main", "from llmforge import __version__", True),
        ("llmforge.config.job", "import llmforge.prompt.render", False),
        ("llmforge.prompt.render", "from llmforge import storage", False),
        ("llmforge.dataset.shards", "from llmforge.checkpoint.store import CheckpointStore", False),
        ("llmforge.storage.s3", "def late() -> None:\n    from llmforge.train import loop", False),
        ("llmforge.config.job", "if True:\n    from . import base", False),
        ("llmforge.config.job", "from ..errors import ConfigError", False),
        ("llmforge", "from llmforge.inference.load import load", False),
        ("llmforge", "from llmforge.inference.chat_model import open_chat_model", True),
    ],
)
def test_the_rule_itself(importer: str, source: str, is_allowed: bool) -> None:
    assert (_violations(importer, source) == []) is is_allowed


def test_the_light_client_needs_none_of_the_packages_for_training() -> None:
    """Imports every light module where the packages of the extra `train` are not to be found."""
    heavy = [f"llmforge.cli.{command}" for command in MODEL_COMMANDS]
    light = [name for name in _modules() if _layer_name(name) in LIGHT or name in LIGHT_MODULES_ELSEWHERE]
    light = [name for name in light if name not in heavy]
    assert "llmforge.config.job" in light and "llmforge.cli.main" in light
    program = f"""
import importlib, sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError("not in the light client: " + name)

sys.meta_path.insert(0, Absent)
for name in {light!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, "imports", error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
