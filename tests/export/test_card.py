"""The model card, as the Hugging Face hub's own package reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llmforge.checkpoint.lineage import Ancestor
from llmforge.config.job import JobConfig
from llmforge.dataset.stats import CheckTotals, DatasetStats, LengthSummary, SplitStats
from llmforge.export.card import CardFacts, model_card, prompt_format_in_words
from llmforge.export.launch import AdapterFacts, LaunchFile
from tests.export.served import FOLDER
from tests.export.trained_runs import make_job
from tests.inference.runs import STORY
from tests.prompt.formats import CHATML, LLAMA_3, MISTRAL_LAST

SPLIT = SplitStats(
    rows=9, examples=9, samples=3, tokens=100, trained_tokens=40, packing_efficiency=0.9, longest_sample=64,
    most_trained=30,
)  # fmt: skip
STATS = DatasetStats(
    rows_in=10, rows_used=9, dropped={"no trained token": 1}, context_length=128, length_histogram=(), train=SPLIT,
    checks=CheckTotals(rows=9, prompts=9, straddled=0, ends_with_terminator=9),
    lengths=LengthSummary(shortest=3, median=9, p95=20, longest=25),
)  # fmt: skip
MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    return make_job(Path(MODEL), tmp_path_factory.mktemp("job"), lora_config={"r": 4})


def facts(job: JobConfig, **changes: Any) -> CardFacts:
    given = CardFacts(
        job=job,
        run_name="mine",
        checkpoint="step-00000010-a",
        step=10,
        metrics={"training loss": 1.5, "validation loss": 1.25},
        data_prefix="data/0123456789abcdef",
        stats=STATS,
        folder=FOLDER,
        example="<s>Once `upon`\na time",
        proofs=("3 rows, all equal",),
        launch_files=(LaunchFile("Modelfile", ""),),
    )
    return replace(given, **changes)


def front_matter(text: str) -> dict[str, Any]:
    """As the package of the hub reads it; what is not given stays away."""
    found: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return found


def test_what_the_hub_reads(job: JobConfig) -> None:
    assert front_matter(model_card(facts(job))) == {
        "base_model": MODEL,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmforge", "instruction_tuning", "lora"],
    }


def test_an_adapter_for_a_base_in_a_folder(job: JobConfig) -> None:
    folder = replace(FOLDER, adapter=AdapterFacts("/models/base", 4, ()))
    local = job.model_copy(update={"model_id": "/models/base"})
    text = model_card(facts(local, folder=folder))
    found = front_matter(text)
    assert ("base_model" in found, found["library_name"]) == (False, "peft")
    assert "`peft.PeftModel.from_pretrained(base, FOLDER)` over `/models/base`" in text


def test_what_people_read(job: JobConfig) -> None:
    text = ModelCard(model_card(facts(job))).text
    for expected in (
        "checkpoint `step-00000010-a` (step 10) of the run `mine`",
        "- training loss at step 10: 1.5\n- validation loss at step 10: 1.25\n",
        "- data: `data/0123456789abcdef`",
        "- rows: 10 in, 9 used, dropped: 1 no trained token",
        f"```json\n{json.dumps('<s>Once `upon`' + chr(10) + 'a time')}\n```",
        "- the token `<|eot_id|>` (128009)",
        '- the text `"###"`: name it in `stop` of every request',
        "`ollama create out -f Modelfile`",
        "- 3 rows, all equal",
        f"llmforge does not know the licence of `{MODEL}` nor that of the data. Check both",
        f"```yaml\n# Model and weights\nmodel_id: {MODEL}\n",
    ):
        assert expected in text
    assert "serve_vllm.sh" not in text


def test_what_it_went_through(job: JobConfig) -> None:
    sft = Ancestor(run="sft", checkpoint="step-00000120-a", step=120, uri="s3://b/sft", manifest_sha256=64 * "0")
    assert "- trained in: sft (step 120) -> mine (step 10)\n" in model_card(facts(job, lineage=(sft,)))
    assert "trained in" not in model_card(facts(job))


def test_without_the_data_at_hand(job: JobConfig) -> None:
    text = model_card(facts(job, stats=None, data_prefix=None, metrics={}))
    assert "- the counts of the prepared data were not at hand when this was exported" in text
    assert "- data: `" not in text


def test_formats_in_words() -> None:
    assert list(prompt_format_in_words(CHATML)) == [
        "no text opens it",
        'a system message is `"<|im_start|>system\\n{instruction}<|im_end|>\\n"`',
        'without one, the system message is `"You are a helpful assistant."`',
        'a user turn is `"<|im_start|>user\\n{instruction}<|im_end|>\\n"`',
        'an answer is `"<|im_start|>assistant\\n{instruction}<|im_end|>\\n"`',
        '`"<|im_start|>assistant\\n"` asks for an answer',
        "white space around messages is kept",
        "in training a message never became a control token, whatever it spells",
    ]
    assert 'the system message stands in the last user turn, as `"{instruction} + "`' in list(
        prompt_format_in_words(MISTRAL_LAST)
    )
    assert 'a conversation begins with `"<s>"`' in list(prompt_format_in_words(STORY))
    tools = LLAMA_3.model_copy(update={"tool": "[{instruction}]", "parse_special_in_content": True})
    assert 'a tool message is `"[{instruction}]"`' in list(prompt_format_in_words(tools))
    assert list(prompt_format_in_words(tools))[-1] == "messages may hold control tokens"
