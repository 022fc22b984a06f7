"""What the report shows of a classifier."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from llmforge.config.classifier import Classifier
from llmforge.metrics.label_charts import draw_label_charts
from llmforge.metrics.labels import LabelEvaluation, LabelScore, PrecisionRecallCurve, ReliabilityBin
from llmforge.metrics.meters import loss_meaning
from llmforge.metrics.report import render_report
from tests.metrics.pages import assert_opens_offline, text_of
from tests.metrics.test_report import DATA

BIN = ReliabilityBin(count=3, confidence=0.8, accuracy=0.7)
EVALUATION = LabelEvaluation(
    classifier=Classifier(labels=("<|safe|>", "$x$"), token_ids=(1, 2), positive_label="$x$", temperature=1.5),
    accuracy=0.875,
    f1=0.5,
    prauc=None,
    scores=(
        LabelScore(label="<|safe|>", support=7, precision=0.9, recall=1.0, f1=0.95, prauc=0.99),
        LabelScore(label="$x$", support=1, precision=None, recall=0.0, f1=0.0, prauc=0.25),
    ),
    confusion=((7, 0), (1, 0)),
    calibration_error=0.031,
    calibration_error_before=0.052,
    reliability=(BIN,),
    reliability_before=(ReliabilityBin(count=3, confidence=0.9, accuracy=0.7),),
    curves=(PrecisionRecallCurve(label="$x$", recall=(1.0, 0.5, 0.0), precision=(0.4, 0.5, 1.0)),),
)
RECORD = {"step": 4, "eval/loss": 0.3, "eval/accuracy": 0.875, "eval/f1": 0.5, "eval/precision/x": 0.5}


def test_an_evaluation_in_words() -> None:
    assert loss_meaning(RECORD) == "accuracy 0.875, F1 0.500"


@pytest.mark.slow
def test_the_report_shows_labels() -> None:
    page = render_report(replace(DATA, records=[RECORD], labels=EVALUATION))
    assert_opens_offline(page)
    text = " ".join(text_of(page).split())
    assert "<|safe|> 7 90.0 % 100.0 % 95.0 % 99.0 %" in text
    assert "$x$ (positive) 1 not defined 0.0 % 0.0 % 25.0 %" in text
    assert "decided for $x$ from a probability of 0.5 on. Temperature 1.5" in text
    assert "expected calibration error 3.1 %, 5.2 % without it" in text
    assert "<|safe|> 7 0" in text and "$x$ 1 0" in text
    assert "Accuracy F1" in text and "87.5 % 50.0 %" in text and "Perplexity" not in text


@pytest.mark.slow
def test_charts_are_well_formed() -> None:
    charts = draw_label_charts(EVALUATION)
    assert [chart.title for chart in charts] == ["Accuracy by probability of the label", "Precision over recall"]
    for chart in charts:
        ElementTree.fromstring(chart.svg)
        assert "#0a0b0" not in chart.svg
    assert "$x$" in charts[1].svg
