"""The first rows of a job as the model will see them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.preview import EncodedRow, Piece, PreviewRow, Turn, preview_rows
from llmforge.dataset.tokenize import TokenizerText
from llmforge.models.folder import read_tokenizer_json
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import render_prompt
from tests.prompt.formats import ADJACENT, CHATML, LLAMA_2, LLAMA_3, SPECIAL_TOKENS, VERBATIM, Row
from tests.prompt.tokenizers import byte_tokenizer

ROWS = """{"messages": []}
{"messages": [{"role": "user", "content": "Hi </s>"}, {"role": "assistant", "content": "Yes."}]}

{"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "No."}]}
"""
SPACED = PromptFormat(
    bos="<s>",
    system="{instruction}",
    user="Q: {instruction}\n",
    assistant="A: {instruction}</s>",
    trailing_assistant="A:",
)


def rows_of(text: str, prompt_format: PromptFormat, tokenizer_json: str, folder: Path) -> list[PreviewRow]:
    path = folder / "rows.jsonl"
    path.write_text(text)
    keys = {
        "model_id": "m",
        "train_path": str(path),
        "task": "instruction_tuning",
        "generation_config": {"prompt_format": prompt_format.model_dump()},
    }
    return list(preview_rows(JobConfig.model_validate(keys), TokenizerText(tokenizer_json), folder))


def encoded_row(row: Row, prompt_format: PromptFormat, folder: Path) -> EncodedRow:
    """With one token a byte."""
    tokenizer_json = byte_tokenizer(SPECIAL_TOKENS).to_str()
    (found,) = rows_of(json.dumps({"messages": row}), prompt_format, tokenizer_json, folder)
    assert found.encoded is not None
    return found.encoded


def test_rows_in_the_order_of_the_file(tmp_path: Path, material: Path) -> None:
    found = rows_of(ROWS, SPACED, read_tokenizer_json(material / "models" / "stories260K-hf"), tmp_path)
    assert [(row.number, row.place) for row in found] == [
        (number, f"{tmp_path / 'rows.jsonl'}:{line}") for number, line in ((1, 1), (2, 2), (3, 4))
    ]
    assert found[0].encoded is None
    assert found[0].problem == "`messages` is an empty list; expected at least a user and an assistant message"
    row = found[1].encoded
    assert row is not None
    assert row.text == "<s>Q: Hi </s>\nA: Yes.</s>"
    assert [piece.text for piece in row.pieces if piece.trained] == [" ", "Yes.", "</s>"]
    assert [piece for piece in row.pieces if piece.is_control] == [
        Piece("<s>", trained=False, is_control=True),
        Piece("</s>", trained=True, is_control=True),
    ]
    assert row.prompt.text == "<s>Q: Hi </s>\nA:"
    assert row.learnt == ("Yes.</s>",)
    assert row.example.input_ids[: len(row.prompt.input_ids)].tolist() == row.prompt.input_ids


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    tokenizer_json = byte_tokenizer(SPECIAL_TOKENS).to_str()
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    keys = {
        "model_id": "m",
        "train_path": [str(path), str(tmp_path / "missing.jsonl")],
        "task": "instruction_tuning",
        "generation_config": {"prompt_format": SPACED.model_dump()},
    }
    rows = islice(preview_rows(JobConfig.model_validate(keys), TokenizerText(tokenizer_json), tmp_path), 3)
    assert [row.number for row in rows] == [1, 2, 3]


THREE_TURNS: Row = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "bc"},
    {"role": "user", "content": "def"},
    {"role": "assistant", "content": "ghij"},
]


def test_tokens_of_every_turn(tmp_path: Path) -> None:
    found = encoded_row(THREE_TURNS, CHATML, tmp_path)
    assert found.turns == (
        Turn("system", 1 + len("system\nbe kind") + 2, 0),
        Turn("user", 1 + len("user\na") + 2, 0),
        Turn("assistant", 1 + len("assistant\nbc") + 2, 3),
        Turn("user", 1 + len("user\ndef") + 2, 0),
        Turn("assistant", 1 + len("assistant\nghij") + 2, 5),
    )
    assert sum(turn.num_tokens for turn in found.turns) == len(found.example.input_ids)
    assert found.learnt == ("bc<|im_end|>", "ghij<|im_end|>")
    before_last = parse_conversation(THREE_TURNS[:-1], CHATML, for_training=False).messages
    assert found.prompt.text == render_prompt(before_last, CHATML)


def test_what_stands_around_all_turns_belongs_to_none(tmp_path: Path) -> None:
    found = encoded_row(THREE_TURNS, LLAMA_3, tmp_path)
    assert sum(turn.num_tokens for turn in found.turns) == len(found.example.input_ids) - 1


def test_a_system_message_inside_a_user_turn_is_counted_for_itself(tmp_path: Path) -> None:
    found = encoded_row(THREE_TURNS, LLAMA_2, tmp_path)
    system, user = found.turns[:2]
    assert system == Turn("system", len("<<SYS>>\nbe kind\n<</SYS>>\n\n"), 0)
    assert user == Turn("user", len("[INST] a [/INST]"), 0)


def test_the_first_token_counts_for_its_turn_although_it_has_no_label(tmp_path: Path) -> None:
    found = encoded_row(THREE_TURNS[1:3], VERBATIM, tmp_path)
    assert found.turns == (Turn("user", 1, 0), Turn("assistant", 2, 2))
    labels = found.example.labels.tolist()
    assert labels[0] == IGNORED_LABEL


def document_row(row: dict[str, object], row_format: str, folder: Path) -> EncodedRow:
    """With one token a byte, in the format ADJACENT, whose end is `</s>`."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    keys = {
        "model_id": "m",
        "train_path": str(path),
        "task": "causal_lm",
        "dataset": {"format": row_format},
        "generation_config": {"prompt_format": ADJACENT.model_dump()},
    }
    tokenizer_json = byte_tokenizer(SPECIAL_TOKENS).to_str()
    (found,) = preview_rows(JobConfig.model_validate(keys), TokenizerText(tokenizer_json, "</s>"), folder)
    assert found.encoded is not None, found.problem
    return found.encoded


@pytest.mark.parametrize("row_format", ["auto", "text"])
def test_plain_text(row_format: str, tmp_path: Path) -> None:
    found = document_row({"text": "Once </s>"}, row_format, tmp_path)
    assert found.text == "<s>Once </s></s>"
    assert found.pieces == (
        Piece("<s>", trained=False, is_control=True),
        Piece("Once </s>", trained=True, is_control=False),
        Piece("</s>", trained=True, is_control=True),
    )
    assert found.prompt.text == "<s>"
    assert found.prompt.input_ids == found.example.input_ids[:1].tolist()
    assert found.turns == (Turn("text", 9, 9),)
    assert found.learnt == ("Once </s></s>",)


@pytest.mark.parametrize("row_format", ["auto", "segments"])
def test_segments(row_format: str, tmp_path: Path) -> None:
    pieces = [("<s>Q", False), ("A</s>", True), ("Q2", False), ("A2</s>", True)]
    found = document_row({"segments": [{"text": text, "train": train} for text, train in pieces]}, row_format, tmp_path)
    assert found.text == "<s>QA</s>Q2A2</s>"
    assert [(piece.text, piece.trained, piece.is_control) for piece in found.pieces] == [
        ("<s>", False, True),
        ("Q", False, False),
        ("A", True, False),
        ("</s>", True, True),
        ("Q2", False, False),
        ("A2", True, False),
        ("</s>", True, True),
    ]
    assert found.prompt.text == "<s>QA</s>Q2"
    assert found.prompt.input_ids == found.example.input_ids[:6].tolist()
    assert found.turns == (
        Turn("segment 1", 2, 0),
        Turn("segment 2", 2, 2),
        Turn("segment 3", 2, 0),
        Turn("segment 4", 3, 3),
    )
    assert found.learnt == ("A</s>", "A2</s>")


def test_a_refused_document(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"two tokens for the begin of the text \(BOS\)"):
        document_row({"segments": [{"text": "<s><s>a", "train": True}]}, "segments", tmp_path)
