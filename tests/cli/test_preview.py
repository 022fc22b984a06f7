"""`llmforge preview`: what is on which stream, for people and for programs, and that content steers no terminal."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmforge.cli.main import app
from llmforge.cli.preview import run_preview
from llmforge.cli.preview_text import PreviewPrinter
from llmforge.errors import ConfigError, DataError, LlmforgeError
from llmforge.metrics.page import ExampleSegment
from llmforge.metrics.preview_page import PageRow, PageTurn, PreviewPage, RefusedRow
from tests.cli.conftest import Llmforge
from tests.prompt.formats import SPECIAL_TOKENS, Row
from tests.prompt.tokenizers import byte_tokenizer

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp"
ROWS: list[Row] = [
    [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is\n2"}],
    [{"role": "user", "content": "and?"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": f"{HOSTILE} <|im_end|>"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "So."},
    ],
]
NO_ANSWER = "the last message is the user's; a training row ends with the assistant's answer"
JOB = "model_id: model-chatml\ntrain_path: rows.jsonl\n"
HEAD = [
    "job.yaml: row 1 as the model sees them",
    "  model          model-chatml",
    "  prompt format  ChatML (known for this model)",
    "  trained        every answer, with its terminator (task: instruction_tuning)",
    "  legend         \u27e6trained <control token>\u27e7 not trained <control token>  \u21b5 end of a line",
]

Preview = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a job, rows, and a model without weights whose tokenizer has a token for every byte."""
    monkeypatch.chdir(tmp_path)
    Path("model-chatml").mkdir()
    Path("model-chatml/config.json").write_text('{"max_position_embeddings": 90}')
    Path("model-chatml/tokenizer.json").write_text(byte_tokenizer(SPECIAL_TOKENS).to_str())
    Path("job.yaml").write_text(JOB)
    _write_rows(ROWS)


def _write_rows(rows: list[Row]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


@pytest.fixture
def preview(capsys: pytest.CaptureFixture[str]) -> Preview:
    """`preview("key=value", num_rows=2)`: the lines on stdout."""

    def run(*overrides: str, num_rows: int = 3, as_json: bool = False, html: str | None = None) -> list[str]:
        html_file = None if html is None else Path(html)
        run_preview(Path("job.yaml"), overrides, num_rows=num_rows, as_json=as_json, html_file=html_file)
        return capsys.readouterr().out.splitlines()

    return run


def test_a_row_for_people(preview: Preview) -> None:
    assert preview(num_rows=1) == [
        *HEAD,
        "",
        "row 1  rows.jsonl:1",
        "  turn        tokens  trained",
        "  user            12        0",
        "  assistant       20        8",
        "  in all          32        8",
        "  the prompt before the last answer has 23 tokens",
        "",
        "    <|im_start|>user\u21b5",
        "    1+1?<|im_end|>\u21b5",
        "    <|im_start|>assistant\u21b5",
        "    \u27e6It is\u21b5",
        "    2<|im_end|>\u27e7\u21b5",
        "",
        "  learnt (the labels, decoded)",
        "",
        "    It is\u21b5",
        "    2<|im_end|>",
    ]


def test_what_a_person_should_know_of_a_row(preview: Preview) -> None:
    text = "\n".join(preview())
    assert f"\nrow 2  rows.jsonl:2\n  refused: {NO_ANSWER}\n" in text
    assert "  note: a message spells out <|im_end|>: that stays text, and no control token is made of it\n" in text
    # Two control tokens, two line feeds, and one token a byte of role and content.
    num_tokens = sum(4 + len(message["role"]) + len(message["content"].encode()) for message in ROWS[2])
    long = (
        f"  note: the row has {num_tokens} tokens, {{}} is {{}}: dataset.over_length (drop) says what happens to it\n"
    )
    assert long.format("the model's longest sequence", 90) in text
    assert long.format("context_length", 64) in "\n".join(preview("context_length=64"))
    assert "\n  learnt 2 of 2 (the labels, decoded)\n\n    So.<|im_end|>" in text
    _write_rows([[ROWS[0][0], ROWS[0][1] | {"train": False}]])
    assert "  note: no token of the row is trained, so it is left out of the training" in preview()


def test_content_reaches_no_terminal_and_no_page(preview: Preview) -> None:
    text = "\n".join(preview())
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    assert "\u241b[31mred\u241b]0;title\u2407 <U+009B>2J <U+202E>gnp <|im_end|>" in text
    preview(html="page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(page)


def test_names_in_errors_reach_no_terminal(llmforge: Llmforge) -> None:
    Path("rows.jsonl").write_text(json.dumps({HOSTILE: 1}) + "\n")
    done = llmforge("preview", "job.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "\x1b" not in done.stderr and "\u241b[31mred" in done.stderr


def test_json_is_the_interface_of_other_programs(preview: Preview, caplog: pytest.LogCaptureFixture) -> None:
    own = "{system: '{instruction}', user: '{instruction}', assistant: 'A: {instruction}'}"
    with caplog.at_level(logging.INFO, logger="llmforge"):
        lines = preview(f"generation_config.prompt_format={own}", as_json=True)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]  # lints; nothing about the machine
    assert [list(json.loads(line)) for line in lines] == [
        ["row", "text", "input_ids", "labels", "prompt"],
        ["row", "error"],
        ["row", "text", "input_ids", "labels", "prompt"],
    ]
    first, refused, _ = map(json.loads, lines)
    text, prompt = "1+1?A: It is\n2", "1+1?"
    ids = [byte_tokenizer(SPECIAL_TOKENS).encode(character).ids[0] for character in text]
    assert first == {
        "row": 1,
        "text": text,
        "input_ids": ids,
        "labels": [-100] * len(prompt) + ids[len(prompt) :],
        "prompt": {"text": prompt, "input_ids": ids[: len(prompt)]},
    }
    assert refused == {"row": 2, "error": f"rows.jsonl:2: {NO_ANSWER}"}
    assert all(line.isascii() for line in lines)


def test_json_prints_every_row_before_it_gives_up(preview: Preview, capsys: pytest.CaptureFixture[str]) -> None:
    _write_rows([ROWS[1]] * 25)
    with pytest.raises(DataError) as caught:
        preview(as_json=True, num_rows=30)
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == list(range(1, 26))
    head, *reasons, more, remedy = str(caught.value).splitlines()
    assert head == "25 of 25 rows are refused:"
    assert len(reasons) == 20
    assert reasons[0] == f"  rows.jsonl:1: {NO_ANSWER}"
    assert (more, remedy) == ("  ... and 5 more", "mend them, or look at more rows with --rows N")


@pytest.mark.parametrize("text", ["\n \n", '{"messages": []}\n'])
def test_nothing_to_show(preview: Preview, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"no rows; expected records|`messages` is an empty list"):
        preview(html="page.html")
    assert capsys.readouterr().out == ""
    assert not Path("page.html").exists()


def test_a_page(preview: Preview) -> None:
    assert preview(html="page.html") == ["preview: page.html"]
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<title>job.yaml: rows 1 to 3 as the model sees them - llmforge</title>" in page
    assert '<mark>It is\u21b5\n2</mark><mark><span class="token">&lt;|im_end|&gt;</span></mark>' in page


@pytest.mark.parametrize(
    ("as_json", "html", "found"),
    [
        (True, "a.html", "found --json and --html, allowed is one of them: --json is for programs, --html for people"),
        (False, "model-chatml", "--html: model-chatml: found a folder, allowed is a file in a folder that is there"),
        (False, "no/a.html", "--html: no/a.html: found no such folder to write it into, allowed is a file in a folder "
         "that is there"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(preview: Preview, as_json: bool, html: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preview(as_json=as_json, html=html)
    assert str(caught.value) == found


def test_at_least_one_row() -> None:
    done = CliRunner().invoke(app, ["preview", "job.yaml", "--rows", "0"])
    assert done.exit_code == 2


def test_weights_are_not_asked_for(preview: Preview) -> None:
    assert preview("initial_base_model_ckpt_path=/no/weights", num_rows=1) == preview(num_rows=1)


def test_a_damaged_model_folder(preview: Preview) -> None:
    Path("model-chatml/tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(LlmforgeError, match=r"tokenizer\.json: not JSON"):
        preview()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task=causal_lm", "every token behind BOS (task: causal_lm)"),
        (
            "dataset.train_on=last_turn",
            "the last answer of a row, with its terminator (task: instruction_tuning, dataset.train_on: last_turn)",
        ),
    ],
)
def test_what_is_trained(preview: Preview, override: str, expected: str) -> None:
    assert preview(override)[3] == f"  trained        {expected}"


def test_no_cluster_and_no_model(imports_of: Llmforge) -> None:
    done = imports_of(("ray", "torch", "transformers", "deepspeed", "peft", "matplotlib"), "preview", "job.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported: []"


PAGE = PreviewPage(
    title="job.yaml",
    facts={"model": "m"},
    warnings=["assistant: mind this"],
    rows=[
        PageRow(
            number=1,
            place="rows.jsonl:1",
            segments=[
                ExampleSegment("<s>", trained=False, control=True),
                ExampleSegment("Hi", trained=False),
                ExampleSegment("Yes.", trained=True),
                ExampleSegment("</s>", trained=True, control=True),
            ],
            turns=[PageTurn("user", 2, 0), PageTurn("assistant", 2, 2)],
            learnt=["Yes.</s>"],
            prompt_text="<s>Hi",
            input_ids=[0, 1, 2, 3],
            labels=[-100, -100, 2, 3],
            prompt_ids=[0, 1],
            notes=[],
        ),
        RefusedRow(2, "rows.jsonl:2", "no"),
    ],
)


@pytest.mark.parametrize(
    ("no_color", "expected"),
    [
        (False, "    \x1b[35m<s>\x1b[0mHi\x1b[32mYes.\x1b[0m\x1b[30;42m</s>\x1b[0m"),
        (True, "    <s>Hi\u27e6Yes.</s>\u27e7"),
    ],
)
def test_colours_or_brackets(no_color: bool, expected: str) -> None:
    file = io.StringIO()
    PreviewPrinter(Console(file=file, force_terminal=True, color_system="standard", no_color=no_color)).page(PAGE)
    lines = file.getvalue().splitlines()
    assert expected in lines
    assert [line for line in lines if "mind this" in line or "refused" in line] == (
        ["  warning: assistant: mind this", "  refused: no"]
        if no_color
        else ["  \x1b[33mwarning: \x1b[0massistant: mind this", "  \x1b[33mrefused: \x1b[0mno"]
    )


def test_both_answers_of_a_pair(preview: Preview) -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "1+1?", "chosen": "2", "rejected": "11"}))
    (line,) = preview("preference_tuning_config={}", num_rows=1, as_json=True)
    row = json.loads(line)
    assert row.keys() == {"row", "text", "input_ids", "labels", "prompt", "rejected"}
    assert row["rejected"].keys() == {"text", "input_ids", "labels"}
    for answer, shown in (("2", row), ("11", row["rejected"])):
        assert shown["text"] == f"{row['prompt']['text']}{answer}<|im_end|>\n"
        assert shown["input_ids"][: len(row["prompt"]["input_ids"])] == row["prompt"]["input_ids"]
    lines = preview("preference_tuning_config={}", num_rows=1)
    shared = "the two answers of a pair are compared, each with its terminator (task: preference_tuning)"
    assert f"  trained        {shared}" in lines
    assert [line for line in lines if line.startswith("row 1")] == [
        f"row 1  rows.jsonl:1, {which}" for which in ("chosen", "rejected")
    ]


def test_an_answer_that_is_rated(preview: Preview) -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "1+1?", "completion": "11", "label": False}))
    (line,) = preview("preference_tuning_config.loss=kto", num_rows=1, as_json=True)
    row = json.loads(line)
    assert row.keys() == {"row", "text", "input_ids", "labels", "prompt", "label"}
    assert (row["text"], row["label"]) == (f"{row['prompt']['text']}11<|im_end|>\n", False)
    lines = preview("preference_tuning_config.loss=kto", num_rows=1)
    assert [line for line in lines if line.startswith("row 1")] == ["row 1  rows.jsonl:1, undesirable"]
    trained = (
        "the last answer of a row, as a good or a bad one, with its terminator (task: preference_tuning, loss: kto)"
    )
    assert f"  trained        {trained}" in lines
