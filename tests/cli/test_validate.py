"""`llmforge validate`: what it looks at, what it says, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmforge.cli.validate import load_checked_job, run_validate
from llmforge.errors import ConfigError
from tests.checkpoint.run_folders import LORA, save_run
from tests.checkpoint.run_folders import job as trained_job
from tests.prompt.formats import CHATML, LLAMA_3

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

JOB = "model_id: model-chatml\ntrain_path: train.jsonl\n"
TOKENIZER = {"added_tokens": [{"content": token, "id": 0, "special": True} for token in ("<|im_start|>", "<|im_end|>")]}
OWN = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}<|im_end|>'}"
# Alpaca's words, which are no family's with these control tokens.
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}Q: {{ message.content }}\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% else %}A: {{ message.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a model folder, one data file and a job."""
    monkeypatch.chdir(tmp_path)
    Path("model-chatml").mkdir()
    Path("model-chatml/config.json").write_text("{}")
    Path("model-chatml/tokenizer.json").write_text(json.dumps(TOKENIZER))
    Path("train.jsonl").write_text('{"messages": []}\n')
    Path("job.yaml").write_text(JOB)


def _problems(text: str = "", *overrides: str) -> list[str]:
    Path("job.yaml").write_text(JOB + text)
    with pytest.raises(ConfigError) as caught:
        load_checked_job("job.yaml", overrides)
    return str(caught.value).splitlines()


def test_the_summary_of_a_job() -> None:
    text = run_validate("job.yaml", ["lora_config={r: 4}", "num_epochs=2", "dataset.valid_fraction=0.1"], False)
    assert text.splitlines() == [
        "job.yaml: a valid job",
        "  model          model-chatml",
        "  prompt format  ChatML (known for this model)",
        "  method         LoRA, r = 4, alpha = 8",
        "  train data     train.jsonl",
        "  valid data     10% of the train data",
        "  context        measured from the data",
        "  steps          2 epochs",
        "  devices        1 (auto)",
        "  output         ./runs",
    ]


def test_schema_only_leaves_files_alone() -> None:
    Path("train.jsonl").unlink()
    assert run_validate("job.yaml", [], schema_only=True).startswith("job.yaml: a valid job")
    with pytest.raises(ConfigError):
        run_validate("job.yaml", [], schema_only=False)


def test_a_verbatim_format_is_loud() -> None:
    own = "{system: '{instruction}', user: '{instruction}', assistant: '{instruction}', parse_special_in_content: true}"
    text = run_validate("job.yaml", [f"generation_config.prompt_format={own}"], schema_only=True)
    assert text.splitlines()[2] == "  prompt format  the job's own"
    assert text.splitlines()[-2:] == [
        "  warning        assistant: no special token stands behind {instruction}, so the model cannot learn to stop; "
        "end the template with the tokenizer's end-of-sequence token",
        "  warning        parse_special_in_content: whoever writes a message can write control tokens; "
        "only for pre-rendered data",
    ]


def test_a_local_tokenizer_is_asked_for_its_control_tokens() -> None:
    own = f"generation_config.prompt_format={OWN}".replace("im_end", "eot_id")
    assert "warning" not in run_validate("job.yaml", [own], schema_only=True)
    assert "the templates hold <|eot_id|>" in run_validate("job.yaml", [own], schema_only=False)


def _unknown_model(template: str | None) -> None:
    Path("model-chatml").rename("mine")
    config = {} if template is None else {"chat_template": template}
    Path("mine/tokenizer_config.json").write_text(json.dumps(config))


def test_the_format_of_a_tokenizer() -> None:
    _unknown_model(TEMPLATE)
    rows = [[{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]]
    Path("train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    text = run_validate("job.yaml", ["model_id=mine"], schema_only=False)
    assert text.splitlines()[2] == "  prompt format  of the tokenizer's chat template"
    assert "  warning        trailing_assistant: prompts end in a space" in text  # "A: "


@pytest.mark.parametrize(("model", "schema_only"), [("mine", True), ("someone/mine", False)])
def test_the_format_of_a_tokenizer_that_is_not_read(model: str, schema_only: bool) -> None:
    _unknown_model(TEMPLATE)
    assert run_validate("job.yaml", [f"model_id={model}"], schema_only).splitlines()[2] == (
        "  prompt format  of the tokenizer's chat template, from which it is taken when the job starts"
    )


def test_a_tokenizer_that_gives_no_format(tmp_path: Path) -> None:
    _unknown_model(None)
    missing = f"command line: train_path: no.jsonl: no such file (looked for in {tmp_path})"
    assert _problems("", "model_id=mine", "train_path=no.jsonl") == [missing]
    with pytest.raises(ConfigError) as caught:
        run_validate("job.yaml", ["model_id=mine", "train_path=no.jsonl"], schema_only=False)
    assert str(caught.value).splitlines() == [
        missing,
        "command line: model_id: no prompt format is known for 'mine', and its tokenizer has no chat template; "
        "give one in generation_config.prompt_format (docs/prompt-formats.md shows how)",
    ]
    run_validate("job.yaml", ["model_id=mine", f"generation_config.prompt_format={OWN}"], schema_only=False)


def test_a_template_that_is_no_format() -> None:
    _unknown_model("{% for message in messages %}{{ message.role }} {{ loop.index }}{{ message.content }}{% endfor %}")
    with pytest.raises(
        ConfigError, match=r"^command line: model_id: the tokenizer's chat_template cannot be taken over"
    ):
        run_validate("job.yaml", ["model_id=mine"], schema_only=False)


@pytest.mark.parametrize("schema_only", [True, False])
def test_a_family_that_is_refused_needs_a_format(schema_only: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        run_validate("job.yaml", ["model_id=Qwen/Qwen3-8B"], schema_only)
    found = "command line: model_id: found Qwen/Qwen3-8B, for which no prompt format is offered: its chat template puts"
    assert str(caught.value).startswith(found)
    run_validate("job.yaml", ["model_id=Qwen/Qwen3-8B", f"generation_config.prompt_format={OWN}"], schema_only)


@pytest.mark.parametrize(
    ("text", "found"), [("version https://git-lfs", "not JSON: "), ("[]", "expected a JSON object")]
)
def test_a_damaged_tokenizer(text: str, found: str) -> None:
    Path("model-chatml/tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"^job.yaml:1: model_id: model-chatml/tokenizer.json: {found}"):
        run_validate("job.yaml", [], schema_only=False)


def test_a_known_difference_is_said() -> None:
    text = run_validate("job.yaml", ["model_id=google/gemma-2b"], schema_only=True)
    assert "  warning        Gemma: the templates of Gemma 1 and 2 refuse a system message" in text


def test_data_files(tmp_path: Path) -> None:
    Path("empty.jsonl").touch()
    Path("folder.jsonl").mkdir()
    Path("rows.txt").write_text("row")
    names = [
        "empty.jsonl",
        "folder.jsonl",
        f"{tmp_path}/no.jsonl",
        "train.jsonl",
        "no.jsonl",
        "*.csv",
        "rows.t?t",
        "rows",
    ]
    found = _problems(f"valid_path: {json.dumps([*names, '*.jsonl'])}\n")
    allowed = (
        "allowed are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather, and the text files among them"
    )
    where = f"(looked for in {tmp_path})"
    below = "name files in folders below it by a glob, such as folder.jsonl/**/*.jsonl"
    assert found == [
        f"job.yaml:3: valid_path[{index}]: {problem}"
        for index, problem in (
            (0, "empty.jsonl: the file is empty"),
            (1, f"folder.jsonl: no data file in this folder (found no file); {allowed} with .gz or .zst; {below}"),
            (2, f"{tmp_path}/no.jsonl: no such file"),
            (4, f"no.jsonl: no such file {where}"),
            (5, f"*.csv: no file matches {where}; check the path, and that it is visible from this machine"),
            (6, f"rows.t?t: matches rows.txt, which is not a data file; {allowed} with .gz or .zst; narrow the glob"),
            (7, f"rows: no such file {where}"),
            (8, "empty.jsonl: the file is empty"),
        )
    ]
    Path("empty.jsonl").unlink()
    assert (
        load_checked_job("job.yaml", ["train_path='*.jsonl'", "valid_path=."], with_weights=False).train_path
        == "*.jsonl"
    )


def test_hugging_face_datasets(tmp_path: Path) -> None:
    Path("saved").mkdir()
    Path("saved/dataset_dict.json").write_text("{}")
    load_checked_job("job.yaml", ["train_path=saved"])
    load_checked_job("job.yaml", ["train_path=owner/name", "valid_path=hf://datasets/owner/name"])
    assert _problems("dataset: {load_kwargs: {split: train}}") == [
        "job.yaml:3: dataset.load_kwargs: no source is a Hugging Face dataset that they could be for; remove them"
    ]
    assert _problems("dataset: {load_kwargs: {streaming: true}}", "train_path=owner/name") == [
        "job.yaml:3: dataset.load_kwargs.streaming: not allowed: rows that are streamed have no number to be found by "
        "again; take a part by split, as in train[:10%]; remove it"
    ]


def test_an_override_is_named_as_such(tmp_path: Path) -> None:
    assert _problems("", "train_path=a.jsonl") == [
        f"command line: train_path: a.jsonl: no such file (looked for in {tmp_path})"
    ]


def test_model_folders() -> None:
    Path("model-chatml/config.json").unlink()
    Path("model-chatml/tokenizer.json").unlink()
    assert _problems() == [
        "job.yaml:1: model_id: model-chatml: no config.json there, so it is no Hugging Face model folder",
        "job.yaml:1: model_id: model-chatml: no tokenizer.json there, which is the model's fast tokenizer",
    ]
    assert _problems("", "model_id=/no/such/chatml") == [
        "command line: model_id: /no/such/chatml: no such folder, and no Hugging Face id"
    ]


def test_a_hub_id_is_not_looked_up() -> None:
    assert (
        load_checked_job("job.yaml", ["model_id=meta-llama/Meta-Llama-3-8B"]).model_id == "meta-llama/Meta-Llama-3-8B"
    )


@pytest.mark.slow
def test_weights_on_s3(s3_bucket: str, s3_client: S3Client) -> None:
    text = f"initial_base_model_ckpt_path: s3://{s3_bucket}/base\n"
    key = "job.yaml:3: initial_base_model_ckpt_path"
    assert _problems(text) == [f"{key}: s3://{s3_bucket}/base: no folder with *.safetensors files"]
    s3_client.put_object(Bucket=s3_bucket, Key="base/model.safetensors", Body=b"")
    assert load_checked_job("job.yaml").initial_base_model_ckpt_path == f"s3://{s3_bucket}/base"
    (problem,) = _problems(text.replace(s3_bucket, "no-such-bucket"))
    assert problem.startswith(f"{key}: s3://no-such-bucket/base: ")


def test_weights_and_adapters(tmp_path: Path) -> None:
    text = "lora_config: {}\ninitial_base_model_ckpt_path: base\ninitial_adapter_model_ckpt_path: adapter\n"
    where = f"(looked for in {tmp_path})"
    assert _problems(text) == [
        f"job.yaml:4: initial_base_model_ckpt_path: base: no folder with *.safetensors files {where}",
        f"job.yaml:5: initial_adapter_model_ckpt_path: adapter: no folder with an adapter_config.json {where}",
    ]
    assert load_checked_job("job.yaml", with_weights=False).initial_base_model_ckpt_path == "base"
    Path("base").mkdir()
    Path("adapter").mkdir()
    Path("base/model.safetensors").touch()
    Path("adapter/adapter_config.json").touch()
    load_checked_job("job.yaml")


def test_deepspeed_sections_and_files() -> None:
    assert _problems("deepspeed: {config_path: no.json}\n") == [
        "job.yaml:3: deepspeed.config_path: no.json: cannot be read: No such file or directory; "
        "the path counts from the working directory"
    ]
    Path("zero.json").write_text('{"x": {"y": "auto"}, "optimizer": {}}')
    found = _problems("deepspeed: {config_path: zero.json}\n")
    assert [line.split(", ")[0] for line in found] == [
        "job.yaml:3: deepspeed.config_path: zero.json: optimizer: found a DeepSpeed optimizer section",
        "job.yaml:3: deepspeed.config_path: zero.json: x.y: found auto",
    ]
    assert _problems("deepspeed:\n  x:\n    y: auto\n")[0].startswith("job.yaml:5: deepspeed.x.y: found auto")


@pytest.mark.parametrize("schema_only", [True, False])
def test_nothing_heavy_is_imported(schema_only: bool) -> None:
    code = (
        "import sys; from llmforge.cli.validate import run_validate; "
        f"run_validate('job.yaml', [], {schema_only}); "
        "print(sorted({'torch', 'ray', 'transformers', 'deepspeed', 'peft', 'boto3', 'numpy'} & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_light_client_leaves_the_template_to_the_start_of_the_job() -> None:
    """Where the packages for training are not to be found."""
    _unknown_model(TEMPLATE)
    code = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {"numpy", "jinja2", "msgspec", "huggingface_hub", "tokenizers"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
from llmforge.cli.validate import run_validate
print(run_validate("job.yaml", ["model_id=mine"], False).splitlines()[2])
"""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert (done.stdout, done.stderr) == (
        "  prompt format  of the tokenizer's chat template, from which it is taken when the job starts\n",
        "",
    )


START = "initial_adapter_model_ckpt_path: run:sft\nlora_config: {r: 4}\n"


def test_the_run_that_a_job_starts_from() -> None:
    Path("job.yaml").write_text(JOB + START)
    (best,) = save_run(trained_job("runs", model_id="model-chatml", run_name="sft", lora_config=LORA), [1.0])
    lines = run_validate("job.yaml", [], False).splitlines()
    assert lines[2:4] == [
        "  prompt format  that of run:sft",
        f"  starts from    {Path.cwd()}/runs/sft/checkpoints/{best.name}",
    ]
    assert not any("warning" in line for line in lines)


def test_a_run_that_is_not_there_yet() -> None:
    """The job may be right all the same, when it starts."""
    Path("job.yaml").write_text(JOB + START)
    lines = run_validate("job.yaml", [], False).splitlines()
    assert lines[2:4] == ["  prompt format  that of run:sft", "  starts from    run:sft"]
    problem = "initial_adapter_model_ckpt_path: run:sft: found no such run"
    assert lines[-1].startswith(f"  warning        seen from here, it cannot start yet: {problem}")
    assert run_validate("job.yaml", [], True).splitlines()[2:4] == lines[2:4]
    assert load_checked_job("job.yaml").earlier_runs


def test_a_run_that_does_not_fit_stands_with_its_line() -> None:
    save_run(trained_job("runs", model_id="model-chatml", run_name="sft", lora_config=LORA, format=LLAMA_3), [1.0])
    own = f"generation_config: {{prompt_format: {json.dumps(CHATML.model_dump())}}}\n"
    Path("job.yaml").write_text(JOB + START + own)
    with pytest.raises(ConfigError) as caught:
        run_validate("job.yaml", [], False)
    assert str(caught.value).startswith(
        "job.yaml:3: initial_adapter_model_ckpt_path: run:sft: was trained with another prompt format than"
    )
