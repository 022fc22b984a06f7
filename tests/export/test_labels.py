"""A classifier exported: the folder classifies as the run does, and its card says how others get there."""

from __future__ import annotations

import ast
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

import llmforge
from llmforge.cli.main import app
from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.export.folder import ExportRequest, export_run
from llmforge.export.label_card import label_lines
from tests.export.trained_runs import OPENINGS, TrainedRun, lora_run
from tests.inference.classifiers import make_classifier

ASKED = [[{"role": "user", "content": text}] for text in OPENINGS]
TWO = Classifier(labels=("safe", "unsafe"), token_ids=(5, 17), positive_label="unsafe", threshold=0.3, temperature=2)


def test_a_card_says_how_labels_are_decided() -> None:
    lines = label_lines(TWO, is_adapter=False)
    assert '- `"safe"`, token 5' in lines
    text = " ".join(lines)
    assert "divided by the temperature 2, by which" in text
    assert 'From a probability of 0.3 on the answer is `"unsafe"`, below that the other label.' in text
    of_three = " ".join(label_lines(Classifier(labels=("a", "b", "c"), token_ids=(1, 2, 3)), is_adapter=True))
    assert "The label with the highest probability is the answer." in of_three
    assert "AutoPeftModelForCausalLM" in of_three and "AutoPeftModelForCausalLM" not in text


@pytest.fixture(scope="module")
def classifier(stories: Path) -> Classifier:
    return make_classifier(stories, "there", "he", threshold=0.7, temperature=1.7)


@pytest.fixture(scope="module")
def run(stories: Path, classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    rows = [
        {"messages": [*messages, {"role": "assistant", "content": classifier.labels[number % 2]}]}
        for number, messages in enumerate(ASKED)
    ]
    return lora_run(
        stories,
        tmp_path_factory.mktemp("classifier"),
        classifier=classifier,
        classifier_config={"label_tokens": classifier.labels},
        valid_rows=rows,
    )


def expected_of(run: TrainedRun, classifier: Classifier) -> list[dict[str, float]]:
    """By PEFT and torch alone, from base, adapter and the chat template of the checkpoint."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.job.model_id), run.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint)
    found = []
    for messages in ASKED:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1, list(classifier.token_ids)]
        chosen = (logits / classifier.temperature).softmax(dim=0).tolist()
        found.append(dict(zip(classifier.labels, chosen, strict=True)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("only_adapter", [False, True], ids=["merged", "adapter"])
def test_an_export_classifies_as_its_run(
    run: TrainedRun, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_adapter: bool
) -> None:
    expected = expected_of(run, classifier)
    assert len({probabilities["he"] >= 0.7 for probabilities in expected}) == 2
    folder = tmp_path / "out"
    targets = ("vllm",) if only_adapter else ("vllm", "ray-serve-llm", "ollama")
    export_run(ExportRequest(str(run.uri), str(folder), only_adapter=only_adapter, targets=targets), tmp_path)
    assert Classifier.model_validate_json((folder / CLASSIFIER_FILE).read_text()) == classifier
    for place in (run.uri, folder):
        found = llmforge.load(place, cache_folder=tmp_path / "cache").classify_batch(ASKED)
        for one, probabilities in zip(found, expected, strict=True):
            assert one.probabilities == pytest.approx(probabilities, abs=1e-4)
            assert one.label == ("he" if probabilities["he"] >= 0.7 else "there")
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.max_new_tokens, generation.do_sample) == (1, False)
    record = json.loads((folder / "llmforge.json").read_text())
    assert CLASSIFIER_FILE in {file["path"] for file in record["files"]}
    for name in {"vllm.yaml", *(("ray_serve_llm.yaml", "Modelfile") if not only_adapter else ())}:
        assert "This is a classifier, of which only the likeliest token comes from here" in (folder / name).read_text()
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    check_program(folder, expected[1], monkeypatch)


def check_program(folder: Path, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the card that does without llmforge, as it stands but for the message."""
    programs = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(programs) == 2 and "llmforge" not in programs[1]
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(programs[1].replace('"..."', json.dumps(OPENINGS[1])), {})
    assert ast.literal_eval(printed.getvalue()) == pytest.approx(expected, abs=1e-4)
