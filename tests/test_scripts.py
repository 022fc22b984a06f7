"""The scripts: environments made once and from the right Python, and the quickstart with its material."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmforge.config.families import find_family
from llmforge.config.job import load_job
from llmforge.config.prompt_format import PromptFormat

Messages = list[dict[str, str]]

FAKE_PYTHON = """#!/usr/bin/env bash
# A Python of the version in FAKE_VERSION that makes an environment out of itself and writes down what pip is asked for.
case "$1 $2" in
    "-c "*) printf '%s\\n' "$FAKE_VERSION" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" ;;
    "-m pip") shift 2 && printf '%s\\n' "$*" >>"$FAKE_LOG" && exit "${FAKE_PIP_STATUS:-0}" ;;
esac
"""


class Checkout:
    """A copy of the scripts with a Python of any version, which installs nothing."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.root = folder / "check out"
        self.log = folder / "pip.log"
        self.python = folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        shutil.copytree(repository / "scripts", self.root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(repository / name, self.root / name)

    def run(self, command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command behind `source _environment.sh`, in the shell options of the scripts."""
        program = f'set -euo pipefail; source "{self.root}/scripts/_environment.sh"; {command}'
        fakes = {"PYTHON": str(self.python), "FAKE_VERSION": "3.11", "FAKE_LOG": str(self.log)}
        environment = os.environ | fakes | variables
        return subprocess.run(
            ["bash", "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )

    def installs(self) -> list[str]:
        """What pip was asked for, one entry a call."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Checkout:
    return Checkout(tmp_path, repository)


def test_an_environment_is_made_once_from_anywhere(checkout: Checkout, tmp_path: Path) -> None:
    first = checkout.run("use_llmforge; command -v python; pwd", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [str(checkout.root / ".venv/bin/python"), str(checkout.root)]
    extras = "train,quantization,serve,serve-ray,tensorboard,wandb,mlflow,dev"
    assert checkout.installs() == [f"install --quiet -c constraints.txt -e .[{extras}]"]

    second = checkout.run("use_llmforge", cwd=checkout.root / "scripts")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(checkout.installs()) == 1


def test_changed_pins_are_installed(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("use_llmforge", cwd=tmp_path)
    with (checkout.root / "constraints.txt").open("a") as constraints:
        constraints.write("one-more==1\n")
    checkout.run("use_llmforge", cwd=tmp_path)
    assert len(checkout.installs()) == 2


def test_an_installation_that_failed_is_tried_again(checkout: Checkout, tmp_path: Path) -> None:
    failed = checkout.run("use_llmforge; echo went on", cwd=tmp_path, FAKE_PIP_STATUS="1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert checkout.run("use_llmforge", cwd=tmp_path).returncode == 0
    assert len(checkout.installs()) == 2


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_a_python_that_cannot_be_used_is_refused(checkout: Checkout, tmp_path: Path, version: str) -> None:
    result = checkout.run("use_llmforge", cwd=tmp_path, FAKE_VERSION=version)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"PYTHON={checkout.python}: found Python {version}, allowed are 3.10, 3.11 and 3.12.",
        "Set PYTHON to such an interpreter, or unset it to search PATH.",
    ]
    assert checkout.installs() == []


def test_a_python_that_is_not_there_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    result = checkout.run("use_llmforge", cwd=tmp_path, PYTHON="./no-python")
    assert result.returncode == 2
    assert (
        f"PYTHON={tmp_path}/./no-python: found no Python that runs, allowed are 3.10, 3.11 and 3.12." in result.stderr
    )


def test_an_environment_of_another_python_is_not_used(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("use_llmforge", cwd=tmp_path)
    (checkout.root / ".venv/bin/python").write_text("#!/usr/bin/env bash\necho 3.12\n")
    result = checkout.run("use_llmforge", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f".venv: found Python 3.12, but PYTHON={checkout.python} asks for another one.",
        f"Remove {checkout.root}/.venv and start again, or unset PYTHON.",
    ]


def test_scripts_are_executable_and_parse(repository: Path) -> None:
    for name in ("scripts/quickstart", "scripts/test", "scripts/check", ".ci/run"):
        assert os.access(repository / name, os.X_OK), name
        subprocess.run(["bash", "-n", repository / name], check=True)


def _rows(material: Path, name: str) -> list[Messages]:
    lines = (material / "data" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def _first_question(messages: Messages) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_material_is_the_same_at_every_run(quickstart_material: Path, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "scripts" / "make_quickstart.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    first, second = _contents(quickstart_material), _contents(tmp_path)
    assert sorted(first) == [
        "data/train.jsonl",
        "data/valid.jsonl",
        *(f"model/{name}" for name in ("config.json", "generation_config.json", "model.safetensors")),
        *(f"model/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
    ]
    assert first == second


def test_validation_asks_for_known_facts_in_other_words(quickstart_material: Path) -> None:
    train, valid = _rows(quickstart_material, "train.jsonl"), _rows(quickstart_material, "valid.jsonl")
    assert {_first_question(messages) for messages in train}.isdisjoint(map(_first_question, valid))
    answers = {message["content"] for messages in train for message in messages if message["role"] == "assistant"}
    assert all(messages[-1]["content"] in answers for messages in valid)


@pytest.mark.parametrize("name", ["train.jsonl", "valid.jsonl"])
def test_rows_have_system_messages_and_several_exchanges(quickstart_material: Path, name: str) -> None:
    shapes = {tuple(message["role"] for message in messages) for messages in _rows(quickstart_material, name)}
    assert shapes == {
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
    }


def test_the_tokenizer_is_taken_as_it_was_made(quickstart_material: Path) -> None:
    made = Tokenizer.from_file(str(quickstart_material / "model" / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(quickstart_material / "model")
    texts = [message["content"] for messages in _rows(quickstart_material, "valid.jsonl") for message in messages]
    texts += ["", " a  b\n\n\nc ", "ünïcödé 漢字 🎈", "\x00\x7f", "<|eot_id|>"]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids == made.encode(text).ids
        assert loaded.decode(ids, skip_special_tokens=False) == text
    assert loaded.convert_tokens_to_ids("<|eot_id|>") == made.token_to_id("<|eot_id|>")
    assert (loaded.bos_token, loaded.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")


def test_the_model_is_tiny_and_untrained(quickstart_material: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(quickstart_material / "model")
    tokenizer = AutoTokenizer.from_pretrained(quickstart_material / "model")
    assert 500_000 < model.num_parameters() < 1_500_000
    assert model.config.vocab_size == len(tokenizer)
    ids = torch.arange(64)[None]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss > 0.8 * torch.tensor(float(len(tokenizer))).log().item()


def test_the_job_fits_the_material(quickstart_material: Path, repository: Path) -> None:
    job = load_job(repository / "job_configs" / "quickstart.yaml")
    family = find_family("Meta-Llama-3-8B-Instruct")
    assert family is not None and job.generation_config is not None
    prompt_format = job.generation_config.prompt_format
    assert isinstance(prompt_format, PromptFormat)
    assert prompt_format.model_copy(update={"strip_whitespace": family.prompt_format.strip_whitespace}) == (
        family.prompt_format
    )
    assert {job.model_id, job.train_path, job.valid_path} == {
        f"build/quickstart/{path.relative_to(quickstart_material)}"
        for path in (quickstart_material / "model", *(quickstart_material / "data").iterdir())
    }
    tokenizer = AutoTokenizer.from_pretrained(quickstart_material / "model")
    assert job.context_length is not None
    for messages in _rows(quickstart_material, "train.jsonl"):
        text = "".join(getattr(prompt_format, m["role"]).format(instruction=m["content"]) for m in messages)
        assert len(tokenizer(text)["input_ids"]) < job.context_length


@pytest.mark.slow
def test_the_quickstart_answers_its_question(repository: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [repository / "scripts" / "quickstart"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "question: What is the capital of France?",
        "answer:   The capital of France is Paris.",
    ]
