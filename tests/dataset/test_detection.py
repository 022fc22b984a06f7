"""Which format the first rows of a source have, the evidence for it, and when nobody can tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from llmforge.config.data import DatasetConfig, RowFormat
from llmforge.dataset.detection import DetectedFormat, detect_format
from llmforge.dataset.rows import parse_row
from llmforge.dataset.sources import first_lines
from llmforge.errors import DataError
from tests.prompt.formats import LLAMA_3

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
SEGMENTS = [{"text": "hi", "train": False}, {"text": "yo", "train": True}]
IS_MESSAGES = "`messages` is a list of {role, content}"


def _detect(*rows: object, **dataset: Any) -> DetectedFormat:
    records = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return detect_format(records, DatasetConfig.model_validate(dataset))


def _refusal(*rows: object, **dataset: Any) -> str:
    with pytest.raises(DataError) as caught:
        _detect(*rows, **dataset)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "row_format", "evidence"),
    [
        ({"messages": MESSAGES, "id": 1}, "messages", IS_MESSAGES),
        ({"messages": [{"role": "developer", "content": "s"}, *MESSAGES]}, "messages", IS_MESSAGES),
        ({"messages": MESSAGES, "label": True}, "messages", IS_MESSAGES),
        ({"messages": [{"role": "Anna", "content": "hi"}]}, "messages", IS_MESSAGES),
        ({"messages": [{"role": "human", "content": "hi"}]}, "sharegpt", IS_MESSAGES),
        ({"messages": SHAREGPT}, "sharegpt", "`messages` is a list of {from, value}"),
        ({"conversations": SHAREGPT, "tools": "[]"}, "sharegpt", "`conversations` is a list of {from, value}"),
        ({"dialogue": MESSAGES}, "sharegpt", "`dialogue` is a list of {role, content}"),
        ({"votes": SHAREGPT, "id": 1}, "sharegpt", "`votes` is a list of {from, value}"),
        (
            {"talk": [{"speaker": "user", "utterance": "hi"}]},
            "sharegpt",
            "`talk` is a list of {speaker, utterance}",
        ),
        ({"instruction": "a", "output": "b"}, "instruction", "`instruction` is a text and `output` is a text"),
        (
            {"instruction": "a", "context": "", "response": "b", "category": "c"},
            "instruction",
            "`instruction` is a text and `response` is a text",
        ),
        ({"question": "a", "answer": "b"}, "instruction", "`question` is a text and `answer` is a text"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", "`prompt` is a text and `completion` is a text"),
        (
            {"prompt": MESSAGES[:1], "response": MESSAGES[1:]},
            "prompt_completion",
            "`prompt` is a list and `response` is a list",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": MESSAGES[1]},
            "preference",
            "`chosen` is a text and `rejected` is an object",
        ),
        ({"text": "a", "id": 1}, "text", "`text` is a text"),
        ({"segments": SEGMENTS}, "segments", "`segments` is a list of {text, train}"),
        ({"segments": [{"label": True, "text": "a"}]}, "segments", "`segments` is a list of {text, label}"),
        ({"segments": [{"weight": 1, "text": "a"}]}, "segments", "`segments` is a list of {text, weight}"),
    ],
)
def test_one_kind_of_rows(row: dict[str, Any], row_format: str, evidence: str) -> None:
    assert _detect(row, row, row) == DetectedFormat(row_format, f"{evidence} in 3 of the first 3 rows")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "row_format", "others"),
    [
        ({"messages": MESSAGES, "text": "a"}, "messages", "; text would fit as well (dataset.format)"),
        (
            {"messages": MESSAGES, "prompt": "a", "completion": "b", "conversations": SHAREGPT},
            "messages",
            "; prompt_completion would fit as well (dataset.format)",
        ),
        ({"conversations": SHAREGPT, "instruction": "a", "output": "b"}, "sharegpt", "; instruction would fit as well"),
        ({"instruction": "a", "output": "b", "text": "c"}, "instruction", "; text would fit as well (dataset.format)"),
        ({"segments": SEGMENTS, "text": "c"}, "segments", "; text would fit as well (dataset.format)"),
        ({"messages": MESSAGES, "chosen": "a", "rejected": "b"}, "preference", ""),
        ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, "preference", ""),
        ({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}, "preference", ""),
    ],
)
def test_where_several_fit_the_clear_one_is_taken(row: dict[str, Any], row_format: str, others: str) -> None:
    found = _detect(row)
    assert found.format == row_format
    assert others in found.evidence
    assert ("as well" in found.evidence) == bool(others)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "a", "output": "b", "prompt": "c", "completion": "d"},
            "the first 1 rows fit several formats: instruction (`instruction` is a text and `output` is a text), "
            "prompt_completion (`prompt` is a text and `completion` is a text); set dataset.format to the one that is "
            "meant",
        ),
        (
            {"votes": SHAREGPT, "question": "a", "answer": "b"},
            "the first 1 rows fit several formats: sharegpt (`votes` is a list of {from, value}), instruction "
            "(`question` is a text and `answer` is a text); set dataset.format to the one that is meant",
        ),
        (
            {"segments": SEGMENTS, "prompt": "c", "completion": "d"},
            "the first 1 rows fit several formats: prompt_completion (`prompt` is a text and `completion` is a text), "
            "segments (`segments` is a list of {text, train}); set dataset.format to the one that is meant",
        ),
        (
            {"short": SHAREGPT, "long": MESSAGES},
            "the first 1 rows hold several lists of messages (`short`, `long`); name the one that is meant in "
            "dataset.columns.messages",
        ),
    ],
)
def test_where_it_matters_nothing_is_guessed(row: dict[str, Any], message: str) -> None:
    assert _refusal(row) == message


def test_columns_that_the_job_names_say_what_is_meant() -> None:
    both = {"messages": MESSAGES, "body": "x", "ask": "a", "reply": "b"}
    evidence = "`body` is a text in 1 of the first 1 rows; messages would fit as well (dataset.format)"
    assert _detect(both, columns={"text": "body"}) == DetectedFormat("text", evidence)
    assert _detect(both, columns={"instruction": "ask", "output": "reply"}).format == "instruction"
    assert _detect(both, columns={"system": "body"}).format == "messages"
    assert _detect({"log": MESSAGES}, columns={"messages": "log"}) == DetectedFormat(
        "messages", "`log` is a list of {role, content} in 1 of the first 1 rows"
    )
    names = {"messages": "log", "role": "from", "content": "value"}
    assert _detect({"log": SHAREGPT}, columns=names).format == "sharegpt"
    assert _detect({"log": SHAREGPT}, columns=names, roles={"human": "user", "gpt": "assistant"}).format == "messages"
    assert _detect({"short": SHAREGPT, "long": SHAREGPT}, columns={"messages": "long"}).format == "sharegpt"
    segments = [{"body": "x", "learn": True}]
    assert _detect({"parts": segments}, columns={"segments": "parts", "text": "body", "train": "learn"}) == (
        DetectedFormat("segments", "`parts` is a list of {body, learn} in 1 of the first 1 rows")
    )


def test_bad_rows_do_not_decide() -> None:
    good = {"messages": MESSAGES}
    assert _detect(b"{", good, b"[1]", b"\xff", good) == DetectedFormat(
        "messages", f"{IS_MESSAGES} in 2 of the first 2 rows"
    )
    found = _detect(good, {}, {"messages": None, "text": "a"}, {"messages": []}, good)
    assert found == DetectedFormat("messages", f"{IS_MESSAGES} in 2 of the first 5 rows")
    assert _detect(good, good, {"conversations": SHAREGPT}).format == "sharegpt"  # which reads all three


def test_columns_are_told_by_their_names_where_all_values_are_bad() -> None:
    assert _detect({"messages": []}, {"messages": [3]}, {}) == DetectedFormat(
        "messages", "`messages` is a list in 2 of the first 3 rows"
    )
    assert _detect({"conversations": ["hi"], "id": 1}) == DetectedFormat(
        "sharegpt", "`conversations` is a list in 1 of the first 1 rows"
    )


def test_rows_without_a_format() -> None:
    assert _refusal({"id": 1, "story": "x"}, {"title": None}).splitlines() == [
        "the first 2 rows have no format that is known (found: id, story, title); set dataset.format, and "
        "dataset.columns where the columns have other names. The formats are:",
        "  messages: a list `messages` of {role, content}",
        "  sharegpt: a list of {from, value}, such as `conversations`, or the list that dataset.columns names",
        "  instruction: texts in `instruction` (or `question`, `query`) and `output` (or `response`, `answer`)",
        "  prompt_completion: `prompt` and `completion` (or `response`), each a text or a list of messages",
        "  text: a text in `text`",
        "  preference: `chosen` (or `chosen_messages`) and `rejected` (or `rejected_messages`), behind a `prompt` "
        "unless they hold it",
        "  unpaired_preference: `label` (or `kto_tag`): true or false, beside `prompt` and `completion` (or "
        "`response`), `instruction` (or `question`, `query`) and `output` (or `response`, `answer`), or a list of "
        "messages",
        "  segments: a list `segments` of {text, train}",
    ]
    assert _refusal({"instruction": "a", "output": 3, "text": ["x"]}).startswith("the first 1 rows have no format")


def test_rows_without_a_format_in_common() -> None:
    assert _refusal({"messages": MESSAGES}, {"text": "x"}) == (
        f"the first 2 rows have no format in common: {IS_MESSAGES} in 1, `text` is a text in 1; put rows of different "
        "formats into different files, or set dataset.format"
    )


def test_nothing_but_bad_records() -> None:
    assert _refusal(b"{", b"[]") == (
        "none of the first 2 rows is a JSON object (the first: not JSON: Input data was truncated); "
        "expected one object per line"
    )


REAL = {
    "chat/dolly15k.jsonl": ("messages", IS_MESSAGES, 100),
    "chat/gsm8k-train.jsonl": ("messages", IS_MESSAGES, 100),
    "chat/oasst1-threads.jsonl": ("messages", IS_MESSAGES, 100),
    "chat/sgd.jsonl": ("messages", IS_MESSAGES, 100),
    "dolly15k/databricks-dolly-15k.rebuilt.jsonl": (
        "instruction",
        "`instruction` is a text and `response` is a text",
        100,
    ),
    "fastchat/dummy_conversation.json": ("sharegpt", "`conversations` is a list of {from, value}", 100),
    "gsm8k/test.jsonl": ("instruction", "`question` is a text and `answer` is a text", 100),
    "gsm8k/train.jsonl": ("instruction", "`question` is a text and `answer` is a text", 100),
    "llama_factory/alpaca_en_demo.json": ("instruction", "`instruction` is a text and `output` is a text", 100),
    "llama_factory/alpaca_zh_demo.json": ("instruction", "`instruction` is a text and `output` is a text", 100),
    "llama_factory/dpo_en_demo.json": ("preference", "`chosen` is an object and `rejected` is an object", 100),
    "llama_factory/glaive_toolcall_en_demo.json": ("sharegpt", "`conversations` is a list of {from, value}", 100),
    "llama_factory/identity.json": ("instruction", "`instruction` is a text and `output` is a text", 91),
    "llama_factory/kto_en_demo.json": ("messages", IS_MESSAGES, 100),
    "llama_factory/v1_dpo_demo.jsonl": (
        "preference",
        "`chosen_messages` is a list and `rejected_messages` is a list",
        10,
    ),
    "llama_factory/v1_sft_demo.jsonl": ("messages", IS_MESSAGES, 100),
    "preference/oasst1.jsonl": ("preference", "`chosen` is a text and `rejected` is a text", 100),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, material: Path, tmp_path: Path) -> None:
    row_format, evidence, count = REAL[name]
    records = [record for _, _, record in first_lines([str(material / "data" / name)], tmp_path)]
    found = detect_format(records[:100], DatasetConfig())
    assert (found.format, found.evidence) == (row_format, f"{evidence} in {count} of the first {count} rows")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "`label` is a boolean beside `prompt` is a text and"),
        ({"instruction": "a", "output": "b", "kto_tag": 1}, "`kto_tag` is a number beside `instruction` is a text and"),
        ({"messages": MESSAGES, "label": False}, "`label` is a boolean beside `messages` is a list of {role, content}"),
        ({"conversations": SHAREGPT, "label": False}, "`label` is a boolean beside `conversations` is a list of {from"),
    ],
)
def test_labels_count_where_answers_are_rated(row: dict[str, Any], found: str) -> None:
    """For other tasks they are the user's own."""
    records = [json.dumps(row).encode()]
    rated = detect_format(records, DatasetConfig(), rated=True)
    assert rated.format == "unpaired_preference"
    assert rated.evidence.startswith(found)
    assert detect_format(records, DatasetConfig()).format != "unpaired_preference"


def test_what_is_rated_without_a_label() -> None:
    """Pairs go before labels."""
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d", "label": True}
    assert detect_format([json.dumps(pair).encode()], DatasetConfig(), rated=True).format == "preference"
    assert (
        detect_format([json.dumps({"messages": MESSAGES}).encode()], DatasetConfig(), rated=True).format == "messages"
    )


def test_real_rated_answers(material: Path, tmp_path: Path) -> None:
    uri = str(material / "data" / "llama_factory" / "kto_en_demo.json")
    records = [record for _, _, record in first_lines([uri], tmp_path)]
    assert detect_format(records[:100], DatasetConfig(), rated=True).format == "unpaired_preference"


def test_every_real_file_is_here(material: Path) -> None:
    folder = material / "data"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json*")} == set(REAL)


def test_the_examples_of_the_documentation(repository: Path) -> None:
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `(\w+)`$(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in sections} == {*get_args(RowFormat)} - {"auto"}
    for name, section in sections:
        rows = [row for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL) for row in block.splitlines()]
        assert rows
        for row in rows:
            record = row.encode()
            rated = name == "unpaired_preference"
            assert detect_format([record], DatasetConfig(), rated=rated).format == name
            parse_row(record, LLAMA_3, DatasetConfig(format=name))
