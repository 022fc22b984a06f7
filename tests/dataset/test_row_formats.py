"""Rows of every format but `messages`: what each becomes, and the reason for what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmforge.config.data import DatasetConfig, RowFormat
from llmforge.dataset.rows import parse_preference, parse_row
from llmforge.errors import DataError
from llmforge.prompt.document import Document
from llmforge.prompt.messages import Conversation
from llmforge.prompt.render import Segment
from tests.prompt.formats import LLAMA_3, VERBATIM

WITH_TOOLS = LLAMA_3.model_copy(
    update={"tool": "<|start_header_id|>ipython<|end_header_id|>\n\n{instruction}<|eot_id|>"}
)
EXCHANGE = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
PLAIN_EXCHANGE = [("user", "hi"), ("assistant", "yo")]
NOTHING_TO_PREFER = "the chosen and the rejected answer are equal; there is nothing to prefer: remove the row"


def _parse(row: dict[str, Any], row_format: str, **dataset: Any) -> Conversation | Document:
    config = DatasetConfig.model_validate({"format": row_format, **dataset})
    return parse_row(json.dumps(row).encode(), LLAMA_3, config)


def _said(row: dict[str, Any], row_format: RowFormat) -> list[tuple[str, str]]:
    conversation = parse_row(row, LLAMA_3, DatasetConfig(format=row_format))
    assert isinstance(conversation, Conversation)
    return [(message.role, message.content) for message in conversation.messages]


def _refusal(row: dict[str, Any], row_format: str, **dataset: Any) -> str:
    with pytest.raises(DataError) as caught:
        _parse(row, row_format, **dataset)
    return str(caught.value)


def _records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return list(json.loads(text) if text.startswith("[") else map(json.loads, text.rstrip().split("\n")))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": EXCHANGE}, PLAIN_EXCHANGE),
        ({"anything": [{"speaker": "User", "utterance": "hi"}, {"speaker": "AI", "utterance": "yo"}]}, PLAIN_EXCHANGE),
        ({"messages": EXCHANGE}, PLAIN_EXCHANGE),
        ({"dialogue": [{"role": "human", "content": "hi"}, {"role": "bot", "content": "yo"}]}, PLAIN_EXCHANGE),
        ({"conversations": EXCHANGE, "system": "s"}, [("system", "s"), *PLAIN_EXCHANGE]),
        ({"conversations": [{"from": "developer", "value": "s"}, *EXCHANGE]}, [("system", "s"), *PLAIN_EXCHANGE]),
        ({"conversations": EXCHANGE, "tools": "[]", "system": None}, PLAIN_EXCHANGE),
    ],
)
def test_sharegpt(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert _said(row, "sharegpt") == expected


QUESTION = {"instruction": "Why?", "output": "So."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (QUESTION, [("user", "Why?"), ("assistant", "So.")]),
        ({**QUESTION, "input": ""}, [("user", "Why?"), ("assistant", "So.")]),
        ({**QUESTION, "input": "Rain."}, [("user", "Why?\n\nRain."), ("assistant", "So.")]),
        ({**QUESTION, "input": None, "system": " "}, [("user", "Why?"), ("assistant", "So.")]),
        (
            {"instruction": "Why?", "context": "Rain.", "response": "So."},
            [("user", "Rain.\n\nWhy?"), ("assistant", "So.")],
        ),
        ({"instruction": "Why?", "context": " ", "response": "So."}, [("user", "Why?"), ("assistant", "So.")]),
        ({"instruction": " ", "input": "Rain.", "output": "So."}, [("user", "Rain."), ("assistant", "So.")]),
        ({"question": "Why?", "answer": "So."}, [("user", "Why?"), ("assistant", "So.")]),
        (
            {"query": "Why?", "response": "So.", "system_prompt": "s"},
            [("system", "s"), ("user", "Why?"), ("assistant", "So.")],
        ),
        (
            {**QUESTION, "system": "s", "history": [["a", "b"], ["c", "d"]]},
            [
                ("system", "s"),
                *(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
                *(("user", "Why?"), ("assistant", "So.")),
            ],
        ),
    ],
)
def test_instruction(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert _said(row, "instruction") == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi", "completion": "yo"}, PLAIN_EXCHANGE),
        ({"prompt": "hi", "response": "yo", "system": "s"}, [("system", "s"), *PLAIN_EXCHANGE]),
        ({"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]}, PLAIN_EXCHANGE),
        ({"prompt": [*EXCHANGE, *EXCHANGE[:1]], "completion": "yo"}, [*PLAIN_EXCHANGE, *PLAIN_EXCHANGE]),
    ],
)
def test_prompt_and_completion(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert _said(row, "prompt_completion") == expected


CHOSEN_WHOLE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "yo", "rejected": "no"},
        {"prompt": EXCHANGE[:1], "chosen": EXCHANGE[1], "rejected": [{"role": "assistant", "content": "no"}]},
        {"instruction": "hi", "input": "", "chosen": "yo", "rejected": "no"},
        {"conversations": EXCHANGE[:1], "chosen": EXCHANGE[1], "rejected": {"from": "gpt", "value": "no"}},
        {"chosen": CHOSEN_WHOLE, "rejected": [CHOSEN_WHOLE[0], {"role": "assistant", "content": "no"}]},
        {
            "prompt": "unused",
            "chosen_messages": CHOSEN_WHOLE,
            "rejected_messages": [CHOSEN_WHOLE[0], {"role": "assistant", "content": "no"}],
        },
    ],
)
def test_preference(row: dict[str, Any]) -> None:
    chosen, rejected = parse_preference(json.dumps(row).encode(), LLAMA_3, DatasetConfig(format="preference"))
    assert [(message.role, message.content) for message in chosen.messages] == PLAIN_EXCHANGE
    assert [(message.role, message.content) for message in rejected.messages] == [("user", "hi"), ("assistant", "no")]
    assert _parse(row, "preference") == chosen


def test_text() -> None:
    row = {"text": " Once </s>\n", "prompt": "x", "tools": [1]}
    expected = Document((Segment(" Once </s>\n", 1.0, is_template=False, message=0),), is_windowed=True)
    assert _parse(row, "text") == expected
    assert _parse({"story": " Once </s>\n", "text": 3}, "text", columns={"text": "story"}) == expected


def test_segments() -> None:
    pieces = [
        {"text": "<s>[INST] hi [/INST]", "train": False},
        {"text": " yo</s>", "train": True, "id": 7},
        {"text": "", "train": True},
        {"text": " [INST] more [/INST]", "weight": 0},
        {"text": " yes", "weight": 0.5},
        {"text": "</s>", "train": True, "weight": 2},
        {"text": "\n", "train": False, "weight": 2},
    ]
    document = _parse({"segments": pieces}, "segments")
    assert isinstance(document, Document)
    assert document == Document(
        (
            Segment("<s>[INST] hi [/INST]", 0.0, message=0),
            Segment(" yo</s>", 1.0, starts_answer=True, message=1),
            Segment("", 1.0, message=2),
            Segment(" [INST] more [/INST]", 0.0, message=3),
            Segment(" yes", 0.5, starts_answer=True, message=4),
            Segment("</s>", 2.0, message=5),
            Segment("\n", 0.0, message=6),
        )
    )


def test_segments_in_other_names() -> None:
    expected = _parse({"segments": [{"text": "a", "train": False}, {"text": "b", "train": True}]}, "segments")
    axolotl = [{"label": False, "text": "a"}, {"label": True, "text": "b"}]
    assert _parse({"segments": axolotl}, "segments") == expected
    mapped = [{"learn": False, "body": "a", "label": True}, {"learn": True, "body": "b"}]
    columns = {"segments": "parts", "text": "body", "train": "learn"}
    assert _parse({"parts": mapped, "segments": 3}, "segments", columns=columns) == expected
    assert _parse({"segments": axolotl}, "segments", columns={"weight": "factor"}) == expected


SHAREGPT_NEEDS = "rows of the format sharegpt have a list of {from, value}, such as `conversations`, or the list that"


@pytest.mark.parametrize(
    ("row_format", "row", "message"),
    [
        ("sharegpt", {"id": 1}, f"no list of messages (found: id); {SHAREGPT_NEEDS} dataset.columns names"),
        (
            "sharegpt",
            {"conversations": [*EXCHANGE[:1], {"from": "function_call", "value": "{}"}]},
            "message 2 has role 'function_call' in `from`, which is none of system, user, assistant, tool; "
            "map it in the job: dataset.roles: {function_call: assistant}",
        ),
        (
            "sharegpt",
            {"conversations": [*EXCHANGE, {"from": "observation", "value": "{}"}, EXCHANGE[1]]},
            "message 3 has role 'tool', but the prompt format has no template for it; add `tool` to "
            "generation_config.prompt_format, or remove the row "
            "(roles are read as {human: user, gpt: assistant, observation: tool})",
        ),
        (
            "sharegpt",
            {"conversations": EXCHANGE, "tools": '[{"name": "search"}]'},
            "the row has `tools`, for which a prompt format has no place; write them as text into the system message, "
            "as the model shall see them, and remove the column, or remove the row",
        ),
        (
            "sharegpt",
            {"conversations": EXCHANGE[:1]},
            "the last message is the user's; a training row ends with the assistant's answer "
            "(roles are read as {human: user})",
        ),
        (
            "instruction",
            {"instruction": "Why?", "answers": []},
            "no `output` (or `response`, `answer`) column (found: answers, instruction); rows of the format "
            "instruction have texts in `instruction` (or `question`, `query`) and `output` (or `response`, `answer`)",
        ),
        ("instruction", {"instruction": "Why?", "output": 3}, "`output` is a number; expected a text"),
        ("instruction", {**QUESTION, "input": ["x"]}, "`input` is a list; expected a text"),
        (
            "instruction",
            {**QUESTION, "history": [["a"]]},
            "entry 1 of `history` is no pair of texts; expected [user, assistant]",
        ),
        (
            "instruction",
            {**QUESTION, "output": " "},
            "message 2 (assistant) has empty content; write a text or remove the row "
            "(read as instruction: the user's from `instruction`, the assistant's from `output`)",
        ),
        (
            "prompt_completion",
            {"prompt": 3, "completion": "yo"},
            "`prompt` is a number; expected a text or a list of messages",
        ),
        (
            "preference",
            {"chosen": "yo", "rejected": "no"},
            "no `prompt` column (found: chosen, rejected); rows of the format preference have `chosen` (or "
            "`chosen_messages`) and `rejected` (or `rejected_messages`), behind a `prompt` unless they hold it",
        ),
        ("preference", {"prompt": "hi", "chosen": "yo", "rejected": "yo"}, NOTHING_TO_PREFER),
        (
            "preference",
            {"prompt": "hi", "chosen": "yo", "rejected": None},
            "no `rejected` (or `rejected_messages`) column (found: chosen, prompt, rejected (null)); rows of the "
            "format preference have `chosen` (or `chosen_messages`) and `rejected` (or `rejected_messages`), behind a "
            "`prompt` unless they hold it",
        ),
        ("text", {"body": "x"}, "no `text` column (found: body); rows of the format text have a text in `text`"),
        ("text", {"text": ["x"]}, "`text` is a list; expected a text"),
        ("text", {"text": " \n"}, "`text` is empty; write a text or remove the row"),
        (
            "segments",
            {"text": "x"},
            "no `segments` column (found: text); rows of the format segments have a list `segments` of {text, train}",
        ),
        ("segments", {"segments": "x"}, "`segments` is a text; expected a list of {text, train}"),
        ("segments", {"segments": []}, "`segments` is an empty list; expected a list of {text, train}"),
        ("segments", {"segments": ["x"]}, "segment 1 is a text; expected an object with a `text` and `train`"),
        ("segments", {"segments": [{"train": True}]}, "segment 1 has no `text` (found: train)"),
        ("segments", {"segments": [{"text": 3, "train": True}]}, "segment 1 has a number as `text`; expected a text"),
        (
            "segments",
            {"segments": [{"text": "a", "train": True}, {"text": "b"}]},
            "segment 2 has neither `train` nor `weight` (found: text); say of every segment whether it is trained",
        ),
        (
            "segments",
            {"segments": [{"text": "a", "train": 1}]},
            "segment 1 has train 1; expected true or false",
        ),
        (
            "segments",
            {"segments": [{"text": "a", "weight": -1}]},
            "segment 1 has weight -1; expected a number from 0, which leaves it out",
        ),
        (
            "segments",
            {"segments": [{"text": "", "train": True}]},
            "all texts in `segments` are empty; write a text or remove the row",
        ),
    ],
)
def test_refusals(row_format: str, row: dict[str, Any], message: str) -> None:
    assert _refusal(row, row_format) == message


@pytest.mark.parametrize(("row_format", "place"), [("text", "`text`"), ("segments", "segment 1")])
def test_half_a_surrogate_pair_is_no_text(row_format: str, place: str) -> None:
    text = "ab\ud83d"
    row = {"text": text} if row_format == "text" else {"segments": [{"text": text, "train": True}]}
    with pytest.raises(DataError) as caught:
        parse_row(row, LLAMA_3, DatasetConfig.model_validate({"format": row_format}))
    found = f"{place} holds '\\ud83d' at character 3, which is half of a surrogate pair; write valid Unicode"
    assert str(caught.value) == found


def test_alpaca_demos(material: Path) -> None:
    folder = material / "data" / "llama_factory"
    for name, count in (("alpaca_en_demo", 999), ("alpaca_zh_demo", 1000), ("identity", 91)):
        records = _records(folder / f"{name}.json")
        assert len(records) == count
        for row in records:
            assert set(row) == {"instruction", "input", "output"}
            user = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
            assert _said(row, "instruction") == [("user", user), ("assistant", row["output"])]


@pytest.mark.slow
def test_dolly_against_its_conversations(material: Path) -> None:
    """Made by another program, which puts the context behind the instruction where we put it before."""
    rows = _records(material / "data" / "dolly15k" / "databricks-dolly-15k.rebuilt.jsonl")
    expected = _records(material / "data" / "chat" / "dolly15k.jsonl")
    num_contexts = 0
    for row, theirs in zip(rows, expected, strict=True):
        question, answer = ((message["role"], message["content"]) for message in theirs["messages"])
        (role, user), ours = _said(row, "instruction")
        assert ours == answer
        parts = user.removesuffix(row["instruction"]), row["instruction"]
        assert (role, "".join(parts)) == ("user", user)
        context = parts[0].removesuffix("\n\n")
        num_contexts += bool(context)
        assert question == ("user", f"{parts[1]}\n\n{context}" if context else user)
    assert (len(rows), num_contexts) == (15015, 4598)


@pytest.mark.slow
def test_gsm8k_against_its_conversations(material: Path) -> None:
    rows = _records(material / "data" / "gsm8k" / "train.jsonl")
    expected = _records(material / "data" / "chat" / "gsm8k-train.jsonl")
    assert len(rows) == 7473
    for row, theirs in zip(rows, expected, strict=True):
        assert _said(row, "instruction") == [(message["role"], message["content"]) for message in theirs["messages"]]


def test_sharegpt_of_fastchat(material: Path) -> None:
    records = _records(material / "data" / "fastchat" / "dummy_conversation.json")
    names = {"human": "user", "gpt": "assistant"}
    assert len(records) == 500
    for row in records:
        expected = [(names[message["from"]], message["value"]) for message in row["conversations"]]
        assert _said(row, "sharegpt") == expected


def test_function_calls_of_glaive(material: Path) -> None:
    records = _records(material / "data" / "llama_factory" / "glaive_toolcall_en_demo.json")
    refused = Counter(_refusal(row, "sharegpt").split(",")[0] for row in records if row["tools"] not in ("", "[]"))
    assert refused == {"the row has `tools`": 191}
    names = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    dataset = DatasetConfig(format="sharegpt", roles={"function_call": "assistant"})
    for row in records:
        called = any(message["from"] == "function_call" for message in row["conversations"])
        without_tools = {**row, "tools": ""}
        if called:
            assert "dataset.roles: {function_call: assistant}" in _refusal(without_tools, "sharegpt")
        conversation = parse_row(without_tools, WITH_TOOLS, dataset)
        assert isinstance(conversation, Conversation)
        assert [(message.role, message.content) for message in conversation.messages] == [
            (names[message["from"]], message["value"]) for message in row["conversations"]
        ]


def test_labelled_answers_of_kto(material: Path) -> None:
    for row in _records(material / "data" / "llama_factory" / "kto_en_demo.json"):
        assert set(row) == {"messages", "label"}
        assert _said(row, "messages") == [(message["role"], message["content"]) for message in row["messages"]]


def test_parts_and_weights_of_llama_factory(material: Path) -> None:
    records = _records(material / "data" / "llama_factory" / "v1_sft_demo.jsonl")
    assert len(records) == 500
    for row in records:
        conversation = _parse(row, "messages")
        assert isinstance(conversation, Conversation)
        assert [(message.role, message.content, message.weight) for message in conversation.messages] == [
            (message["role"], "".join(part["value"] for part in message["content"]), message["loss_weight"])
            for message in row["messages"]
        ]


def test_preferences_of_oasst1(material: Path) -> None:
    refused = Counter[str]()
    for row in _records(material / "data" / "preference" / "oasst1.jsonl"):
        prompt = [(message["role"], message["content"]) for message in row["prompt"]]
        try:
            pair = parse_preference(row, LLAMA_3, DatasetConfig(format="preference"))
        except DataError as error:
            refused[str(error)] += 1
            continue
        for conversation, answer in zip(pair, (row["chosen"], row["rejected"]), strict=True):
            expected = [*prompt, ("assistant", answer)]
            assert [(message.role, message.content) for message in conversation.messages] == expected
    assert refused == {NOTHING_TO_PREFER: 1}


def test_preferences_of_llama_factory(material: Path) -> None:
    folder = material / "data" / "llama_factory"
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    for row in _records(folder / "dpo_en_demo.json"):
        pair = parse_preference(row, LLAMA_3, DatasetConfig(format="preference"))
        for conversation, answer in zip(pair, (row["chosen"], row["rejected"]), strict=True):
            expected = [(names[message["from"]], message["value"]) for message in [*row["conversations"], answer]]
            assert [(message.role, message.content) for message in conversation.messages] == expected
    for row in _records(folder / "v1_dpo_demo.jsonl"):
        pair = parse_preference(row, LLAMA_3, DatasetConfig(format="preference"))
        for conversation, theirs in zip(pair, (row["chosen_messages"], row["rejected_messages"]), strict=True):
            assert [(message.role, message.content, message.weight) for message in conversation.messages] == [
                (message["role"], "".join(part["value"] for part in message["content"]), message["loss_weight"])
                for message in theirs
            ]


def test_parts_that_are_no_text_are_refused() -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}
    assert _refusal({"messages": [user, {"role": "assistant", "content": "b"}]}, "messages") == (
        "message 1 has a content with a part of type 'image_url'; allowed are parts "
        '{"type": "text", "text": ...}, because models of text are trained: remove the row'
    )


def test_openai_rows_with_tools() -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    result = {"role": "tool", "tool_call_id": "1", "content": "3"}
    row = {"messages": [user, answer, result, answer], "tools": None}
    conversation = parse_row(row, WITH_TOOLS, DatasetConfig(format="messages"))
    assert isinstance(conversation, Conversation)
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    with pytest.raises(DataError, match=r"message 3 has role 'tool', but the prompt format has no template for it"):
        parse_row(row, VERBATIM, DatasetConfig(format="messages"))
    developer = {"messages": [{"role": "developer", "content": [{"type": "text", "text": "s"}]}, user, answer]}
    assert _said(developer, "messages") == [("system", "s"), ("user", "hi"), ("assistant", "yo")]
