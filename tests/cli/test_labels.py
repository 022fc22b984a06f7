"""`llmforge generate` and `llmforge chat` with a classifier, against `transformers` and torch alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmforge.cli.main import app
from llmforge.config.classifier import Classifier
from llmforge.errors import ConfigError, DataError
from tests.inference.classifiers import classifier_run, make_classifier, probabilities_of

pytestmark = pytest.mark.slow

TEXTS = ("Once upon a time", "Lily", "The big red dog saw", 'Tom said, "I am', "One day, a boy", "x")


@pytest.fixture
def classifier(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """Of a run in the current folder, beside a file of prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    found = make_classifier(stories, "there", "he", threshold=0.7, temperature=1.7)
    classifier_run(stories, tmp_path, found)
    write_prompts()
    return found


def write_prompts(**columns: Any) -> None:
    rows = [{"id": place, "messages": [{"role": "user", "content": text}]} for place, text in enumerate(TEXTS)]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps({**row, **columns})}\n" for row in rows))


def llmforge(command: str, *arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [command, "run", *arguments], input=typed)


def check_lines(text: str, threshold: float, stories: Path, classifier: Classifier) -> None:
    """Every row as it was, with the label behind its messages and the probabilities."""
    for place, (line, prompt) in enumerate(zip(text.splitlines(), TEXTS, strict=True)):
        row = json.loads(line)
        expected = probabilities_of(stories, classifier, f"<s>{prompt}")
        assert row.pop("probabilities") == pytest.approx(expected, abs=1e-5)
        label = "he" if expected["he"] >= threshold else "there"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]
        assert row == {"id": place, "messages": messages}


def test_a_file(classifier: Classifier, stories: Path) -> None:
    done = llmforge("generate", "--messages", "prompts.jsonl", "--output", "own.jsonl", "--batch-size", "4")
    assert (done.exit_code, done.stdout) == (0, ""), done.exception
    assert done.stderr.startswith("6 of 6 rows answered, ") and done.stderr.endswith(" labels/s\n")
    check_lines(Path("own.jsonl").read_text(), 0.7, stories, classifier)
    done = llmforge("generate", "--messages", "prompts.jsonl", "--threshold", "0.5")
    assert done.exit_code == 0, done.exception
    check_lines(done.stdout, 0.5, stories, classifier)
    changed = llmforge("generate", "--messages", "prompts.jsonl", "--output", "own.jsonl", "--threshold", "0.5")
    assert isinstance(changed.exception, ConfigError)
    assert "own.jsonl holds answers already, begun with threshold 0.7 and not 0.5;" in str(changed.exception)


def test_a_file_on_a_cluster(classifier: Classifier, stories: Path, shared_ray: None) -> None:
    done = llmforge("generate", "--messages", "prompts.jsonl", "--num-workers", "2", "--threshold", "0.5")
    assert done.exit_code == 0, done.exception
    check_lines(done.stdout, 0.5, stories, classifier)


def test_a_prompt(classifier: Classifier, stories: Path) -> None:
    expected = probabilities_of(stories, classifier, "<s>Lily")
    done = llmforge("generate", "--prompt", "Lily")
    assert (done.exit_code, done.stdout) == (0, "he\n")
    assert done.stderr == f"he {expected['he']:.4f}, there {expected['there']:.4f}\n"
    assert llmforge("generate", "--prompt", "Lily", "--threshold", "0.9").stdout == "there\n"


def test_what_is_refused_before_a_weight_is_read(classifier: Classifier, stories: Path, tmp_path: Path) -> None:
    """Here there are none."""
    (weights,) = (tmp_path / "run").rglob("model.safetensors")
    weights.unlink()
    for asked in (("--prompt", "Lily"), ("--messages", "prompts.jsonl")):
        refused = llmforge("generate", *asked, "--temperature", "0.5", "--max-tokens", "3").exception
        assert isinstance(refused, ConfigError)
        assert str(refused).startswith(
            "found max_tokens 3, temperature 0.5, allowed with a classifier is none of these"
        )
        refused = llmforge("generate", *asked, "--threshold", "0").exception
        assert str(refused).startswith("threshold: found 0.0, allowed is a number above 0 and below 1")
    write_prompts(probabilities={})
    refused = llmforge("generate", "--messages", "prompts.jsonl").exception
    assert isinstance(refused, DataError)
    assert str(refused).splitlines()[5] == (
        "prompts.jsonl:6: found a column `probabilities`, allowed is none with a classifier, which writes its own "
        "there; rename it"
    )


def test_a_chat(classifier: Classifier, stories: Path) -> None:
    """Every message by itself."""
    done = llmforge("chat", "--threshold", "0.5", typed=f"Lily\n{'a ' * 600}\nOnce upon a time\nLily\n/exit\n")
    assert done.exit_code == 0, done.exception
    lily, once = (probabilities_of(stories, classifier, f"<s>{text}") for text in ("Lily", "Once upon a time"))
    positive = f"label: he (he {lily['he']:.4f}, there {lily['there']:.4f})"
    negative = f"label: there (there {once['there']:.4f}, he {once['he']:.4f})"
    shown = [line[line.index("label: ") :] for line in done.stdout.splitlines() if "label: " in line]
    assert shown == [positive, negative, positive]
    assert "the model takes at most 511" in done.stderr
    refused = llmforge("chat", "--temperature", "0.5").exception
    assert isinstance(refused, ConfigError)
