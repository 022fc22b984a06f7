"""A classifier loaded from a run: what it says of messages, against `transformers` and torch alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmforge
from llmforge.checkpoint.store import CheckpointStore
from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.errors import CheckpointError, ConfigError, DataError
from llmforge.inference.chat_model import ChatModel
from llmforge.inference.classifier_file import read_classifier
from llmforge.storage.base import open_storage
from tests.inference.classifiers import classifier_run, make_classifier, probabilities_of
from tests.inference.runs import make_run

TEXTS = ("Once upon a time", "Lily", "The big red dog saw", 'Tom said, "I am', "One day, a boy", "x")
ASKED = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(scope="module")
def classifier(stories: Path) -> Classifier:
    return make_classifier(stories, "there", "he", threshold=0.7, temperature=1.7)


@pytest.fixture(scope="module")
def model(stories: Path, classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("classifier")
    return llmforge.load(classifier_run(stories, folder, classifier), cache_folder=folder / "cache")


@pytest.mark.slow
def test_labels_and_probabilities(model: ChatModel, stories: Path, classifier: Classifier) -> None:
    """One by one, together, with the run's threshold and with another; the answer is the label."""
    assert model.classifier == classifier
    together = model.classify_batch(ASKED)
    likelier = model.classify_batch(ASKED, threshold=0.5, batch_size=4)
    for text, messages, found, other in zip(TEXTS, ASKED, together, likelier, strict=True):
        expected = probabilities_of(stories, classifier, f"<s>{text}")
        assert found.probabilities == pytest.approx(expected, abs=1e-5)
        assert found.label == ("he" if expected["he"] >= 0.7 else "there")
        assert other.label == ("he" if expected["he"] >= 0.5 else "there")
        alone = model.classify(messages)
        assert alone.label == found.label
        assert alone.probabilities == pytest.approx(found.probabilities, abs=1e-5)
        assert model.generate(messages) == "".join(model.stream(messages)) == found.label
    assert [found.label for found in together] != [found.label for found in likelier]
    assert model.generate_batch(ASKED) == [found.label for found in together]
    assert model.classify_batch([]) == []


@pytest.mark.slow
def test_what_a_classifier_cannot_be_asked(model: ChatModel) -> None:
    with pytest.raises(ConfigError, match=r"^found max_tokens 5, temperature 0\.5, allowed with a classifier is none"):
        model.generate(ASKED[0], temperature=0.5, max_tokens=5)
    with pytest.raises(ConfigError, match="found seed 1"):
        model.generate_batch(ASKED, seed=1)
    with pytest.raises(ConfigError, match=r"^threshold: found 1\.5, allowed is a number above 0 and below 1"):
        model.classify(ASKED[0], threshold=1.5)
    with pytest.raises(DataError, match="the model takes at most 511"):
        model.classify([{"role": "user", "content": "a " * 600}])


@pytest.mark.slow
def test_a_model_that_writes_text_has_no_labels(stories: Path, tmp_path: Path) -> None:
    model = llmforge.load(make_run(stories, tmp_path), cache_folder=tmp_path / "cache")
    assert model.classifier is None
    with pytest.raises(ConfigError) as caught:
        model.classify(ASKED[0])
    assert str(caught.value) == (
        "found a model of task: instruction_tuning, which has no labels, allowed is a classifier: load a run of task: "
        "classification, or let this one generate"
    )


@pytest.mark.slow
def test_a_file_that_was_changed(stories: Path, classifier: Classifier, tmp_path: Path) -> None:
    run = classifier_run(stories, tmp_path, classifier)
    [info] = CheckpointStore(open_storage(str(run))).list()
    path = run / "checkpoints" / info.name / CLASSIFIER_FILE
    path.write_text(path.read_text().replace("0.7", "0.2"))
    with pytest.raises(CheckpointError, match=CLASSIFIER_FILE):
        llmforge.load(run, cache_folder=tmp_path / "cache")


def test_a_file_of_another_version(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / CLASSIFIER_FILE).write_text(json.dumps({**classifier.model_dump(), "ordinal": True}))
    with pytest.raises(CheckpointError) as caught:
        read_classifier([CLASSIFIER_FILE], lambda paths: tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / CLASSIFIER_FILE}: not the classifier of a model as this llmforge writes it: ordinal: Extra "
        "inputs are not permitted. Another version has written it: use that one"
    )
    assert read_classifier(["model.safetensors"], lambda paths: tmp_path) is None
