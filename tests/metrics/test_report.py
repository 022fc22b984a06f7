"""The page of a run: complete, escaped, and self-contained."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from llmforge.metrics.page import ExampleSegment
from llmforge.metrics.report import BestCheckpoint, ReportData, ReportExample, render_report, write_report
from llmforge.metrics.samples import Sample
from tests.metrics.pages import HOSTILE, Page, assert_opens_offline, data_facts, text_of

RECORDS = [
    {"step": 0, "epoch": 0.0, "eval/loss": 3.0, "eval/perplexity": 20.09, "eval/trained_tokens": 999},
    *({"step": step, "epoch": step / 10, "train/loss": 3.0 / step, "train/lr": 1e-4} for step in range(1, 11)),
    {"step": 10, "epoch": 1.0, "eval/loss": 1.25, "eval/perplexity": 3.49, "eval/seconds": 12.0},
]

DATA = ReportData(
    run_name="tiny-run",
    description="tiny, LoRA",
    records=RECORDS,
    facts=data_facts(),
    job_yaml="model_id: tiny\nlearning_rate: 0.0001\n",
    best_checkpoint=BestCheckpoint("step-00000010-ab", 10, "s3://bucket/run/checkpoints/step-00000010-ab", 1.25),
    commands={"Talk to it": "llmforge chat s3://bucket/run"},
    examples=[
        ReportExample(
            "train.jsonl:17",
            [
                ExampleSegment("<|user|>", trained=False, control=True),
                ExampleSegment("\nWhat is 1+1?", trained=False),
                ExampleSegment("It is\n2", trained=True),
                ExampleSegment("<|end|>", trained=True, control=True),
            ],
        )
    ],
)


def test_everything_is_on_the_page() -> None:
    text = text_of(render_report(DATA))
    for expected in (
        "tiny-run",
        "tiny, LoRA",
        "Best evaluation loss 1.2500 perplexity 3.49 at step 10; loss 3.0000 before training",
        "Best checkpoint: step 10, evaluation loss 1.2500 s3://bucket/run/checkpoints/step-00000010-ab",
        "Talk to it llmforge chat s3://bucket/run",
        "10 (best) 1.00 1.2500 3.49 12 s",
        "in 1,234 100 %",
        "training 1,100 90 44,000 25 % 95.5 %",
        "train.jsonl:17",
        "model_id: tiny",
    ):
        assert expected in text


def test_the_best_checkpoint_is_the_one_that_was_chosen() -> None:
    """Also where the loss is lower at another step: pairs are told apart best at step 4, and the loss falls on."""
    accuracies = {0: 0.0, 4: 0.75, 8: 0.7}
    records = [
        {"step": step, "eval/loss": 0.7 - step / 100, "eval/reward_accuracy": accuracy, "eval/reward_margin": 0.1}
        for step, accuracy in accuracies.items()
    ]
    best = BestCheckpoint("step-00000004-ab", 4, "run/checkpoints/step-00000004-ab", 0.66, "eval/reward_accuracy")
    text = text_of(render_report(replace(DATA, records=records, best_checkpoint=best)))
    assert "Best reward accuracy 75.0 % evaluation loss 0.6600 at step 4; loss 0.7000 before training" in text
    assert "Best checkpoint: step 4, evaluation loss 0.6600, chosen by reward accuracy" in text
    assert "4 (best) 0.6600 75.0 %" in text
    assert text.count("(best)") == 1


def test_trained_text_is_marked_and_control_tokens_and_line_ends_are_visible() -> None:
    (example,) = re.findall(r'<pre tabindex="0">(.*?)</pre>', render_report(DATA), flags=re.DOTALL)
    assert example == (
        '<span class="token">&lt;|user|&gt;</span>↵\nWhat is 1+1?<mark>It is↵\n2</mark>'
        '<mark><span class="token">&lt;|end|&gt;</span></mark>'
    )


def test_the_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    assert_opens_offline(render_report(DATA))


def test_whatever_comes_from_the_run_is_escaped() -> None:
    page = render_report(
        ReportData(
            run_name=HOSTILE,
            description=HOSTILE,
            records=RECORDS,
            facts=data_facts(HOSTILE),
            job_yaml=HOSTILE,
            best_checkpoint=BestCheckpoint(HOSTILE, 1, HOSTILE),
            commands={HOSTILE: HOSTILE},
            examples=[ReportExample(HOSTILE, [ExampleSegment(HOSTILE, True), ExampleSegment(HOSTILE, False, True)])],
            samples=[
                Sample(1, 0, [{"role": "user", "content": HOSTILE * 20}], HOSTILE * times, "stop") for times in (1, 20)
            ],
        )
    )
    assert not {"script", "img"} & set(Page(page).elements)
    assert HOSTILE in Page(page).text
    assert "49" not in re.findall(r"<title>(.*?)</title>", page)[0]


@pytest.mark.parametrize(
    ("records", "expected", "unexpected"),
    [
        ([], "No step has been logged yet.", "Evaluations"),
        ([{"step": 1, "train/loss": 2.0}], "Final training loss 2.0000", "Evaluations"),
        ([{"step": 1, "eval/loss": 2.0}], "Evaluations", "Final training loss"),
        ([{"step": 1, "train/loss": math.nan}], "The training loss is not a finite number at step 1.", "Evaluations"),
        ([{"step": 1, "eval/loss": math.nan}], "1 NaN NaN", "(best)"),
        ([*RECORDS, *RECORDS[5:]], "10 (best)", "No step"),
    ],
    ids=["empty", "one step", "evaluation only", "NaN", "NaN evaluation", "repeated"],
)
def test_unusual_runs(records: list[dict[str, float]], expected: str, unexpected: str) -> None:
    text = text_of(render_report(replace(DATA, records=records, facts=None)))
    assert expected in text
    assert unexpected not in text


def test_answers_by_step() -> None:
    """The newest first, earlier ones beside it; what did not change says since when; a long one is folded."""
    question: list[dict[str, JsonValue]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
    ]
    answers = {0: "", 5: "2\x00!", 10: "2\x00!"}
    samples = [
        *(Sample(step, 0, question, text, "stop") for step, text in answers.items()),
        Sample(10, 1, [{"role": "user", "content": "Tell."}], "word " * 200, "length"),
    ]
    page = render_report(replace(DATA, samples=samples))
    text = text_of(page)
    assert "system Be brief. user 1+1? Step 10, unchanged since step 5 2␀! Step 0 nothing user Tell." in text
    assert f"Step 10 cut at max_tokens {'word ' * 40}… (1,000 characters) {'word ' * 200}" in text
    assert page.count("<details") == render_report(DATA).count("<details") + 1
    assert_opens_offline(page)


def test_the_least_that_can_be_reported() -> None:
    text = text_of(render_report(ReportData("bare", [], "")))
    for section in ("The model", "Training", "Data", "Examples", "Answers"):
        assert section not in text


def test_a_report_replaces_the_one_before_and_survives_broken_unicode(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, DATA)
    write_report(path, ReportData("half a pair \ud83d, 漢字", [], ""))
    text = path.read_text(encoding="utf-8")
    assert "half a pair \\ud83d, 漢字" in text and "tiny-run" not in text
    assert list(tmp_path.iterdir()) == [path]
