"""One block of lines to one table, without Ray: rows with their places, refused rows with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig
from llmforge.config.prompt_format import GenerationConfig
from llmforge.dataset.example import IGNORED_LABEL
from llmforge.dataset.example_table import EXAMPLE_SCHEMA
from llmforge.dataset.held_out import is_held_out
from llmforge.dataset.row_encoder import TWO_BEGINNINGS
from llmforge.dataset.sources import plan_blocks
from llmforge.dataset.stage import BlockTokenizer, SourceBlock, StageSettings
from llmforge.dataset.tokenize import SegmentTokenizer, TokenizerText
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import render
from tests.prompt.formats import ADJACENT, SPECIAL_TOKENS, Row
from tests.prompt.tokenizers import byte_tokenizer

TOKENIZER_JSON = byte_tokenizer(SPECIAL_TOKENS).to_str()
ROW: Row = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}] * 2


def make_job(**changes: object) -> JobConfig:
    keys = {"model_id": "m", "train_path": "t.jsonl", "task": "instruction_tuning"}
    job = JobConfig.model_validate_json(
        json.dumps({**keys, "generation_config": {"prompt_format": ADJACENT.model_dump()}, **changes})
    )
    assert isinstance(job.generation_config, GenerationConfig)
    return job


def table_rows(job: JobConfig, path: Path, *, is_validation: bool = False) -> list[dict[str, object]]:
    (block,) = plan_blocks([str(path)], is_validation=is_validation, block_bytes=1 << 20, cache_folder=Path("/none"))
    settings = StageSettings(
        job.model_dump_json(), (job.dataset.model_dump_json(),), TokenizerText(TOKENIZER_JSON), "/none", False
    )
    table = BlockTokenizer(settings).table(SourceBlock(0, block))
    assert table.schema == EXAMPLE_SCHEMA
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_examples_come_first_then_refused_rows(tmp_path: Path) -> None:
    good = json.dumps({"messages": ROW})
    path = write(tmp_path / "rows.jsonl", "{", good, "", '{"messages": []}', good)
    tokenizer = SegmentTokenizer(TOKENIZER_JSON)
    segments = render(parse_conversation(ROW, ADJACENT), ADJACENT, special_tokens=tokenizer.special_tokens)
    example = tokenizer.encode([segments])[0]
    found = table_rows(make_job(), path)
    assert [(row["uri"], row["line"], row["is_validation"], row["reason"]) for row in found] == [
        (str(path), 2, False, None),
        (str(path), 5, False, None),
        (str(path), 1, None, "not JSON: Input data was truncated"),
        (str(path), 4, None, "`messages` is an empty list; expected at least a user and an assistant message"),
    ]
    for row in found[:2]:
        assert [row[name] for name in ("num_prompts", "straddled", "ends_with_terminator")] == [2, False, True]
        assert row["input_ids"] == example.input_ids.tolist()
        assert row["weights"] == (example.labels != IGNORED_LABEL).astype(float).tolist()
    assert [(row["input_ids"], row["weights"]) for row in found[2:]] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("changes", "num_trained"),
    [({}, 12), ({"dataset": {"train_on": "last_turn"}}, 6), ({"task": "causal_lm"}, 18)],
)
def test_the_job_decides_what_is_trained(changes: dict[str, object], num_trained: int, tmp_path: Path) -> None:
    """`<s>hi</s>hello</s>hi</s>hello</s>`, one token a letter."""
    path = write(tmp_path / "rows.jsonl", json.dumps({"messages": ROW}))
    (row,) = table_rows(make_job(**changes), path)
    weights = row["weights"]
    assert isinstance(weights, list)
    assert (len(weights), sum(weights)) == (19, num_trained)


def test_weights_travel_with_the_rows_that_have_some(tmp_path: Path) -> None:
    """`<s>hi</s>hello</s>`, one token a letter."""
    weighted = [ROW[0], {**ROW[1], "weight": 0.25}]
    path = write(tmp_path / "rows.jsonl", *(json.dumps({"messages": row}) for row in (weighted, ROW)))
    first, second = table_rows(make_job(), path)
    assert first["weights"] == [0.0] * 4 + [0.25] * 6
    assert second["weights"] == [0.0, 0.0, 0.0, 0.0] + [1.0] * 6 + [0.0] * 3 + [1.0] * 6


def test_a_row_that_fails_a_check_is_refused_with_its_reason(tmp_path: Path) -> None:
    generation = {"prompt_format": ADJACENT.model_copy(update={"parse_special_in_content": True}).model_dump()}
    doubled = [{**ROW[0], "content": "<s>hi"}, ROW[1]]
    path = write(tmp_path / "rows.jsonl", *(json.dumps({"messages": row}) for row in (doubled, ROW)))
    first, second = table_rows(make_job(generation_config=generation), path)
    assert first["reason"] == TWO_BEGINNINGS
    assert second["reason"] is None


def test_digests_tell_examples_apart(tmp_path: Path) -> None:
    other = [ROW[0], {**ROW[1], "content": "bye"}]
    weighted = [ROW[0], {**ROW[1], "weight": 0}, *ROW[:2]]
    spaced = [{**message, "content": f" {message['content']}"} for message in ROW]
    rows = (ROW, other, weighted, spaced)
    path = write(tmp_path / "rows.jsonl", *(json.dumps({"messages": row}) for row in rows))
    first, second, third, fourth = (row["digest"] for row in table_rows(make_job(dataset={"deduplicate": True}), path))
    assert len({first, second, third}) == 3
    assert fourth == first  # the format strips contents
    assert {row["digest"] for row in table_rows(make_job(), path)} == {None}


def test_held_out_rows(tmp_path: Path) -> None:
    conversations = [[*ROW[:3], {"role": "assistant", "content": f"hello {i % 30}"}] for i in range(60)]
    path = write(tmp_path / "rows.jsonl", *(json.dumps({"messages": row}) for row in conversations))
    job = make_job(dataset={"valid_fraction": 0.3}, seed=5)
    expected = [is_held_out([parse_conversation(row, ADJACENT)], 0.3, 5) for row in conversations]
    assert expected[:30] == expected[30:]
    assert [row["is_validation"] for row in table_rows(job, path)] == expected
    assert 0 < sum(expected) < 60
    assert all(row["is_validation"] for row in table_rows(job, path, is_validation=True))
    assert not any(row["is_validation"] for row in table_rows(make_job(), path))


def test_only_refused_rows(tmp_path: Path) -> None:
    assert [row["line"] for row in table_rows(make_job(), write(tmp_path / "rows.jsonl", "1", "2"))] == [1, 2]
