"""The Modelfile: its template writes what training wrote, and what no template can say is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from llmforge.config.families import FAMILIES
from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import ConfigError
from llmforge.export.launch import AdapterFacts
from llmforge.export.ollama import BeginOfText, go_template, ollama_files
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import render_prompt
from tests.export.go_template import run_template, templates_in
from tests.export.served import FOLDER, GENERATION
from tests.prompt.formats import FORMATS, LLAMA_3, MISTRAL_BOS, MISTRAL_LAST, Row, contents, rows

NOTHING = BeginOfText(None)
TOOLS = LLAMA_3.model_copy(update={"tool": "<|start_header_id|>ipython<|end_header_id|>\n\n{instruction}<|eot_id|>"})
ALL = {
    **FORMATS,
    "system in last user": MISTRAL_LAST,
    "tools": TOOLS,
}
FAMILY_FORMATS = {family.name: family.prompt_format for family in FAMILIES if family.prompt_format is not None}


def check(row: Row, prompt_format: PromptFormat) -> None:
    """A row without its last answer, stripped where training strips it, since Ollama strips nothing."""
    system = [message for message in row if message["role"] == "system"]
    turns = [message for message in row if message["role"] != "system"][:-1]
    prompt = [
        {**message, "content": message["content"].strip()} if prompt_format.strip_whitespace else message
        for message in (*system, *turns)
    ]
    expected = render_prompt(parse_conversation(prompt, prompt_format, for_training=False).messages, prompt_format)
    assert run_template(go_template(prompt_format, NOTHING), prompt) == expected


@pytest.mark.parametrize(
    "prompt_format",
    [
        *(pytest.param(prompt_format, id=name) for name, prompt_format in ALL.items()),
        *(pytest.param(each, id=name, marks=pytest.mark.slow) for name, each in FAMILY_FORMATS.items()),
    ],
)
def test_the_template_writes_what_training_wrote(prompt_format: PromptFormat) -> None:
    @given(row=rows(contents("</s>", '"""', "{{ .System }}")))
    @settings(max_examples=2)
    def try_rows(row: Row) -> None:
        check(row, prompt_format)

    try_rows()


def test_tool_messages() -> None:
    roles = ("user", "assistant", "tool", "tool")
    prompt = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    expected = render_prompt(parse_conversation(prompt, TOOLS, for_training=False).messages, TOOLS)
    assert run_template(go_template(TOOLS, NOTHING), prompt) == expected


def test_the_token_that_ollama_adds_is_left_out() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    assert run_template(go_template(MISTRAL_BOS, BeginOfText("<s>")), prompt) == "[INST] hi [/INST]"
    assert run_template(go_template(MISTRAL_BOS, NOTHING), prompt) == "<s>[INST] hi [/INST]"


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        go_template(FORMATS["chatml"], BeginOfText("<s>"))
    assert str(caught.value) == (
        "--to ollama: no template of Ollama writes the prompts of this run: it puts <s> before every prompt, while the "
        "prompt format begins with 'no such token'. Serve it with llmforge serve, or export --to vllm"
    )
    with pytest.raises(ConfigError, match="a system message in the last user turn, with tool messages behind it"):
        go_template(MISTRAL_LAST.model_copy(update={"tool": "{instruction}"}), BeginOfText("<s>"))
    adapter = replace(FOLDER, adapter=AdapterFacts("base", 8, ()))
    with pytest.raises(ConfigError, match="--to ollama: found --adapter, allowed are merged weights"):
        ollama_files(adapter, LLAMA_3, NOTHING)
    with pytest.raises(ConfigError, match="--to ollama: found s3://bucket/out, allowed is a local folder"):
        ollama_files(replace(FOLDER, uri="s3://bucket/out"), LLAMA_3, NOTHING)
    awkward = replace(FOLDER, generation=replace(GENERATION, stop_texts=('say "stop"',)))
    with pytest.raises(ConfigError, match="cannot be written into a Modelfile"):
        ollama_files(awkward, LLAMA_3, NOTHING)


def test_the_modelfile() -> None:
    [file] = ollama_files(FOLDER, LLAMA_3, BeginOfText("<|begin_of_text|>"))
    assert file.name == "Modelfile"
    assert list(templates_in(file.text)) == [go_template(LLAMA_3, BeginOfText("<|begin_of_text|>"))]
    lines = file.text.splitlines()
    assert "FROM ." in lines
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER num_predict 64",
        "PARAMETER num_ctx 2048",
        "PARAMETER temperature 0.7",
        "PARAMETER repeat_penalty 1",
        "PARAMETER top_k 0",
        "PARAMETER top_p 0.9",
        "PARAMETER min_p 0",
        'PARAMETER stop """</s>"""',
        'PARAMETER stop """<|eot_id|>"""',
        'PARAMETER stop """###"""',
    ]
