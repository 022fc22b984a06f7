"""Whole runs on real input: Ray Data, Ray Train workers, DeepSpeed, checkpoints that other programs load."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import llmforge
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig, load_job
from llmforge.config.job_yaml import job_from_yaml
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.shards import SampleReader
from llmforge.errors import CheckpointError
from llmforge.export.folder import ExportRequest, export_run
from llmforge.metrics.loggers import read_metrics
from llmforge.metrics.phase_timer import PhaseTimer
from llmforge.metrics.progress import ProgressDisplay
from llmforge.metrics.samples import SAMPLES_FILE, Sample, read_samples
from llmforge.prompt.chat_template import chat_template
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import render
from llmforge.train.batches import collate
from llmforge.train.losses import NextTokenLoss
from llmforge.train.run import RunRequest, RunResult, run_training
from tests.ray_fixtures import PROMPT_FORMAT, MakeJob

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tmp_path: Path, real_rows: list[str]) -> Path:
    """Sixty real rows, every third of which counts half."""
    path = tmp_path / "train.jsonl"
    rows = [json.loads(row) for row in real_rows[:60]]
    for row in rows[::3]:
        row["messages"][-1]["weight"] = 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(job: JobConfig, tmp_path: Path, *, resume: bool = False) -> RunResult:
    display = ProgressDisplay(Console(file=io.StringIO()))
    return run_training(RunRequest(job, "submitted: text\n", tmp_path / "cache", resume=resume), display, PhaseTimer())


def folder_of(result: RunResult, info: CheckpointInfo | None = None) -> Path:
    return Path(result.run_uri) / "checkpoints" / (info or result.best).name


def losses_of(result: RunResult) -> list[float]:
    """The training loss of every step."""
    records = read_metrics(Path(result.run_uri) / "metrics.jsonl")
    losses = {int(record["step"]): record["train/loss"] for record in records if "train/loss" in record}
    assert list(losses) == list(range(1, result.latest.step + 1))
    return list(losses.values())


def assert_answers_are_the_checkpoints(samples: list[Sample], result: RunResult, info: CheckpointInfo) -> None:
    """Those of one step, by whoever loads what was saved then."""
    found = [sample for sample in samples if sample.step == info.step]
    model = llmforge.load(result.run_uri, checkpoint=info.name)
    answers = model.generate_batch([sample.messages for sample in found], temperature=0.0, max_tokens=20)
    assert [sample.answer for sample in found] == answers
    assert all(answers)


def assert_exported_as_trained(result: RunResult, tmp_path: Path) -> None:
    """What was exported has the loss that was measured in training, and was shown to read the very ids trained on."""
    best = result.best
    out = tmp_path / "out"
    exported = export_run(ExportRequest(result.run_uri, str(out), targets=("vllm",)), tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert validation_loss(model, tmp_path / "runs") == pytest.approx(best.eval_loss, rel=1e-5)
    assert exported.weights is not None
    assert exported.weights.largest_error < 1e-5
    tallies = {tally.way: tally for tally in exported.verification.tallies}
    assert {way: tally.num_different for way, tally in tallies.items()} == dict.fromkeys(tallies, 0)
    assert tallies["server"].num_equal == tallies["chat template"].num_equal == 60
    assert tallies["prepared data"].num_equal > 50
    card = (out / "README.md").read_text()
    assert f"- training loss at step {best.step}: " in card
    assert f"- validation loss at step {best.step}: {best.eval_loss:.6g}" in card
    assert "- rows: 60 in, " in card
    ask = [{"role": "user", "content": "Tom has 3 apples. How many?"}]
    answers = [
        llmforge.load(place, cache_folder=tmp_path / "cache").generate(ask, max_tokens=12)
        for place in (result.run_uri, out)
    ]
    assert answers[0] == answers[1] != ""


def validation_loss(model: PreTrainedModel, output: Path) -> float:
    """Computed anew from the prepared dataset, without the engine."""
    (shard,) = (output / "data").glob("*/valid-00000.arrow")
    reader = SampleReader([shard])
    with torch.no_grad():
        loss = NextTokenLoss(model).eval()
        total = sum(float(loss(collate([reader[i]]))) for i in range(len(reader)))
    assert reader.loss_weights.sum() < reader.num_trained_tokens.sum()
    return total / float(reader.loss_weights.sum())


def test_a_real_model_learns_from_real_conversations(
    shared_ray: None, repository: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped job, shortened: validation loss must fall clearly below that of the base model."""
    overrides = [
        f"model_id={material / 'models' / 'stories260K-hf'}",
        f"train_path={material / 'data' / 'chat' / 'gsm8k-train.jsonl'}",
        f"output_dir={tmp_path / 'runs'}",
        "max_steps=24",
        "checkpoint_and_evaluation_frequency.frequency=24",
        "dataset.valid_fraction=0.01",
    ]
    job = load_job(repository / "job_configs" / "stories260k-gsm8k-lora.yaml", overrides)
    result = run(job, tmp_path)
    records = read_metrics(Path(result.run_uri) / "metrics.jsonl")
    base, *_, trained = [record["eval/loss"] for record in records if "eval/loss" in record]
    with capsys.disabled():
        sys.stdout.write(f"\nvalidation loss: base model {base:.3f}, after 24 steps {trained:.3f}\n")
    assert base > 6.5
    assert trained < base - 2
    assert result.best.eval_loss == trained


def test_an_adapter_loads_with_peft_and_is_merged_as_it_was_trained(
    shared_ray: None, make_job: MakeJob, small_model: Path, rows: Path, tmp_path: Path
) -> None:
    result = run(
        make_job(
            model_id=str(small_model),
            run_name="adapter",
            num_devices=2,
            max_steps=4,
            learning_rate=1e-2,
            lora_config={"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj", "down_proj"]},
            dataset={"valid_fraction": 0.2},
            deepspeed={"zero_optimization": {"stage": 3}},
        ),
        tmp_path,
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), folder_of(result))
    assert validation_loss(model, tmp_path / "runs") == pytest.approx(result.best.eval_loss, rel=1e-5)
    assert (Path(result.run_uri) / "best").read_text().strip() == result.best.name
    assert_exported_as_trained(result, tmp_path)


def test_full_weights_load_with_transformers_also_from_zero_3(
    shared_ray: None, make_job: MakeJob, small_model: Path, rows: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    messages = [{"messages": json.loads(line)["messages"][:1]} for line in rows.read_text().splitlines()[:3]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in messages))
    result = run(
        make_job(
            model_id=str(small_model),
            run_name="full",
            num_devices=2,
            max_steps=4,
            learning_rate=1e-3,
            dataset={"valid_fraction": 0.2},
            deepspeed={"zero_optimization": {"stage": 3}},
            eval_first=True,
            evaluation={"prompts": str(prompts), "max_tokens": 20},
        ),
        tmp_path,
    )
    samples = read_samples(Path(result.run_uri) / SAMPLES_FILE)
    assert [(sample.step, sample.prompt) for sample in samples] == [(step, i) for step in (0, 4) for i in range(3)]
    assert_answers_are_the_checkpoints(samples, result, result.best)
    folder = folder_of(result)
    assert read_samples(folder / SAMPLES_FILE) == samples
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert validation_loss(model, tmp_path / "runs") == pytest.approx(result.best.eval_loss, rel=1e-5)
    messages = [{"role": "user", "content": " How many? "}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>Question: How many?\nAnswer:"
    run_folder = Path(result.run_uri)
    assert (run_folder / "job.yaml").read_text() == "submitted: text\n"
    resolved = job_from_yaml((folder / "resolved_job.yaml").read_text())
    assert resolved.max_steps == 4 and resolved.learning_rate == 1e-3 and resolved.precision == "fp32"
    assert resolved.evaluation is not None and len(resolved.evaluation.prompts) == 3  # no longer the path of a file
    report = (run_folder / "report.html").read_text()
    assert "<svg" in report and "Step 0" in report
    keys = {"step", "epoch", "train/loss", "train/lr", "train/grad_norm", "train/trained_tokens_per_second"}
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert all(keys <= line.keys() for line in lines if "train/loss" in line)
    assert_exported_as_trained(result, tmp_path)


def test_resuming_is_bit_identical(
    shared_ray: None, make_job: MakeJob, small_model: Path, rows: Path, tmp_path: Path
) -> None:
    """A run whose later half is thrown away and taken again; test_engine.py does it with other numbers of workers."""
    keys: dict[str, object] = {
        "model_id": str(small_model),
        "num_devices": 2,
        "max_steps": 6,
        "lora_config": {"r": 4, "lora_dropout": 0.2, "target_modules": "all-linear"},
        "dataset": {"valid_fraction": 0.2},
        "checkpoint_and_evaluation_frequency": {"unit": "steps", "frequency": 3},
        "num_checkpoints_to_keep": 5,
        "train_batch_size_per_device": 1,
        "evaluation": {
            "prompts": ["How many apples are there?", "Tom has 3 dogs. How many legs?", "Hi"],
            "max_tokens": 20,
        },
        "logger": {"provider": "tensorboard"},
    }
    whole = run(make_job(run_name="whole", **keys), tmp_path)
    shutil.copytree(whole.run_uri, tmp_path / "runs" / "cut")
    shutil.rmtree(tmp_path / "runs" / "cut" / "checkpoints" / whole.latest.name)
    with pytest.raises(CheckpointError, match="was trained with 2 sequences a step, now it is 1"):
        run(make_job(run_name="cut", **keys | {"num_devices": 1}), tmp_path, resume=True)
    resumed = run(make_job(run_name="cut", **keys), tmp_path, resume=True)
    assert resumed.latest.step == 6 and resumed.latest.name != whole.latest.name
    for name in ("adapter_model.safetensors", "optimizer/rank-00000.safetensors", "optimizer/rank-00001.safetensors"):
        expected = load_file(folder_of(whole, whole.latest) / name)
        found = load_file(folder_of(resumed, resumed.latest) / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name
    assert losses_of(whole) == losses_of(resumed)
    curve = EventAccumulator(str(Path(resumed.run_uri) / "tensorboard")).Reload().Scalars("train/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in curve] == pytest.approx(losses_of(resumed), rel=1e-6)
    samples = read_samples(Path(whole.run_uri) / SAMPLES_FILE)
    assert [sample.step for sample in samples] == [3, 3, 3, 6, 6, 6]
    assert read_samples(Path(resumed.run_uri) / SAMPLES_FILE) == samples
    assert_answers_are_the_checkpoints(samples, resumed, resumed.latest)


def test_a_format_taken_from_the_tokenizer_is_trained_stored_and_exported(
    shared_ray: None, make_job: MakeJob, small_model: Path, rows: Path, tmp_path: Path
) -> None:
    """A model of no known family that brings a chat template, and a job that says nothing of formats.

    Its adapter begins with the largest components of the base, which are taken out of it (PiSSA, Meng et al. 2024).
    """
    prompt_format = PromptFormat.model_validate(PROMPT_FORMAT)
    folder = tmp_path / "unheard-of"
    shutil.copytree(small_model, folder)
    template = chat_template(prompt_format, frozenset({"<s>", "</s>"}))
    (folder / "chat_template.jinja").write_text(template)
    result = run(
        make_job(
            model_id=str(folder),
            run_name="import",
            max_steps=2,
            learning_rate=1e-3,
            lora_config={"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"},
            dataset={"valid_fraction": 0.2},
            generation_config=None,
        ),
        tmp_path,
    )
    job = job_from_yaml((Path(result.run_uri) / "resolved_job.yaml").read_text(), "resolved_job.yaml")
    row = [{"role": role, "content": f" {role} "} for role in ("system", "user", "assistant", "user", "assistant")]
    conversation = parse_conversation(row, prompt_format)
    text = "".join(segment.text for segment in render(conversation, prompt_format))
    assert "".join(segment.text for segment in render(conversation, job.prompt_format)) == text
    tokenizer = AutoTokenizer.from_pretrained(folder_of(result))
    assert tokenizer.apply_chat_template(row, tokenize=False) == text
    served = tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(served)
    assert served.endswith("Answer:")
    assert_exported_as_trained(result, tmp_path)
