"""Which checkpoint `run:NAME` means, what the job takes over from the run, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmforge.checkpoint.earlier_runs import find_earlier_runs, with_checkpoints_of, with_format_of
from llmforge.checkpoint.run_end import END_FILE
from llmforge.checkpoint.store import CheckpointInfo
from llmforge.config.job import JobConfig
from llmforge.errors import CheckpointError, ConfigError
from llmforge.storage.base import open_storage, write_bytes
from tests.checkpoint.run_folders import LORA, job, save_run
from tests.prompt.formats import CHATML, LLAMA_3

BASE, ADAPTER = "initial_base_model_ckpt_path", "initial_adapter_model_ckpt_path"


def start(submitted: JobConfig) -> JobConfig:
    """As a driver does it."""
    runs = find_earlier_runs(submitted)
    return with_checkpoints_of(with_format_of(submitted, runs), runs)


def refusal(submitted: JobConfig) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        start(submitted)
    return str(caught.value)


@pytest.fixture
def sft(tmp_path: Path) -> list[CheckpointInfo]:
    """A run of an adapter that has ended; its second checkpoint is the best."""
    return save_run(job(tmp_path, run_name="sft", lora_config=LORA))


@pytest.mark.parametrize(("which", "index"), [("", 1), ("@best", 1), ("@latest", 2), ("@step-00000010-3fa29c01", 0)])
def test_the_address_of_one_very_checkpoint(which: str, index: int, sft: list[CheckpointInfo], tmp_path: Path) -> None:
    started = start(job(tmp_path, lora_config=LORA, format=None, **{ADAPTER: f"run:sft{which}"}))
    assert started.initial_adapter_model_ckpt_path == f"{tmp_path}/sft/checkpoints/{sft[index].name}"
    assert started.initial_base_model_ckpt_path is None
    assert started.prompt_format == CHATML
    assert started.earlier_runs == {}


def test_the_weights_of_a_run(tmp_path: Path) -> None:
    infos = save_run(job(tmp_path, run_name="full"))
    started = start(job(tmp_path, **{BASE: "run:full@latest"}))
    assert started.initial_base_model_ckpt_path == f"{tmp_path}/full/checkpoints/{infos[-1].name}"


def test_the_base_weights_of_an_adapter_are_taken_as_well(tmp_path: Path) -> None:
    (full,) = save_run(job(tmp_path, run_name="full"), [1.0])
    uri = f"{tmp_path}/full/checkpoints/{full.name}"
    save_run(job(tmp_path, run_name="sft", lora_config=LORA, **{BASE: uri}))
    assert start(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:sft"})).initial_base_model_ckpt_path == uri
    both = job(tmp_path, lora_config=LORA, **{BASE: "run:full", ADAPTER: "run:sft"})
    assert start(both).initial_base_model_ckpt_path == uri
    other = job(tmp_path, lora_config=LORA, **{BASE: "s3://bucket/other", ADAPTER: "run:sft"})
    assert refusal(other) == (
        f"{ADAPTER}: run:sft: its adapter was trained over {uri}, and {BASE} gives s3://bucket/other; allowed are the"
        f" same weights, since an adapter is a change to them. Remove {BASE}"
    )


def test_other_weights_under_an_adapter_of_the_model(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    other = job(tmp_path, lora_config=LORA, **{BASE: {"repo_id": "owner/other", "revision": "v2"}, ADAPTER: "run:sft"})
    assert "was trained over the weights of model_id, and" in refusal(other)
    assert "gives owner/other at v2; allowed" in refusal(other)


def test_other_bits_under_an_adapter_are_told(
    sft: list[CheckpointInfo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:sft"}))
    assert caplog.messages == []
    start(job(tmp_path, lora_config=LORA, quantization={"bits": 4, "type": "nf4"}, **{ADAPTER: "run:sft"}))
    assert caplog.messages == [
        "quantization: the adapter of run:sft was trained over base weights in full precision, here they are in 4 bits"
        " (nf4); it has learnt to make up for their rounding, and begins a little off"
    ]


def test_stops_come_with_the_format_and_sampling_does_not(tmp_path: Path) -> None:
    generation = {"prompt_format": LLAMA_3, "stopping_sequences": ("###",), "temperature": 0.7}
    save_run(job(tmp_path, run_name="full", format=None, generation_config=generation))
    taken = start(job(tmp_path, format=None, **{BASE: "run:full"})).generation_config
    assert taken is not None
    assert (taken.prompt_format, taken.stopping_sequences, taken.temperature) == (LLAMA_3, ("###",), 0.0)
    own = {"stopping_sequences": ("END",), "max_tokens": 9}
    kept = start(job(tmp_path, format=None, generation_config=own, **{BASE: "run:full"})).generation_config
    assert kept is not None
    assert (kept.prompt_format, kept.stopping_sequences, kept.max_tokens) == (LLAMA_3, ("END",), 9)


def test_another_prompt_format(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    other = CHATML.model_copy(update={"bos": "<s>"})
    assert refusal(job(tmp_path, lora_config=LORA, format=other, **{ADAPTER: "run:sft"})) == (
        f"{ADAPTER}: run:sft: was trained with another prompt format than generation_config.prompt_format: bos is ''"
        " there and '<s>' here; allowed is the same, since the model answers as it was trained in one format only."
        " Remove prompt_format, and that of the run is taken; where the model is to learn another one, name the folder"
        f" of the checkpoint: {tmp_path}/sft/checkpoints/CHECKPOINT"
    )


def test_another_model(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    assert refusal(job(tmp_path, model_id="owner/model-instruct", lora_config=LORA, **{ADAPTER: "run:sft"})) == (
        f"{ADAPTER}: run:sft: was trained with model_id owner/model, and this job gives owner/model-instruct; allowed"
        " is the same, since architecture, tokenizer and base weights come from it. Write model_id as the run has it"
    )


def test_the_folder_of_a_model_counts_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each submission has its own copy."""
    for name in ("here/llama", "here/llama-instruct"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    save_run(job(tmp_path, model_id="/tmp/package-a/llama", run_name="full"))
    assert start(job(tmp_path, model_id="llama", **{BASE: "run:full"})).model_id == "llama"
    assert "was trained with model_id /tmp/package-a/llama" in refusal(
        job(tmp_path, model_id="llama-instruct", **{BASE: "run:full"})
    )


def test_an_adapter_where_weights_are_needed_and_the_reverse(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    text = refusal(job(tmp_path, lora_config=LORA, **{BASE: "run:sft"}))
    assert text.startswith(
        f"{BASE}: run:sft: found a run that trained an adapter, allowed here is one that trained all"
    )
    assert f"name the run in {ADAPTER}; to train over both" in text
    assert f"(llmforge export {tmp_path}/sft FOLDER)" in text
    save_run(job(tmp_path, run_name="full"))
    assert refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:full"})) == (
        f"{ADAPTER}: run:full: found a run that trained all weights, allowed here is one with lora_config: it has no"
        f" adapter to go on from. Name it in {BASE}"
    )


def test_no_such_run(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    save_run(job(tmp_path, run_name="other"), [])
    assert refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:stf"})) == (
        f"{ADAPTER}: run:stf: found no such run in {tmp_path} (did you mean run:sft?); runs there: other, sft. A run is"
        " looked for in the output_dir of the job that names it: check run_name and output_dir of both"
    )
    assert "runs there: none." in refusal(job(tmp_path / "else", lora_config=LORA, **{ADAPTER: "run:sft"}))
    write_bytes(open_storage(str(tmp_path / "begun")), "driver.json", b"{}")
    assert "that has not begun to train" in refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:begun"}))


def test_a_run_that_is_not_at_its_end(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    """Nobody gets a half-trained model, unless they ask for that very one."""
    (tmp_path / "sft" / END_FILE).unlink()
    names = ", ".join(info.name for info in sft)
    for which in ("best", "latest"):
        assert refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: f"run:sft@{which}"})) == (
            f"{ADAPTER}: run:sft{'' if which == 'best' else '@latest'}: found a run that has not come to its end, and"
            f" the checkpoints {names} so far; allowed is one that has, since nobody knows yet which checkpoint is to"
            f" be its {which}. Wait for it, or go on with it (--resume) where it was cut short, or name a checkpoint"
            " that is there: run:sft@NAME"
        )
    fixed = start(job(tmp_path, lora_config=LORA, **{ADAPTER: f"run:sft@{sft[0].name}"}))
    assert fixed.initial_adapter_model_ckpt_path == f"{tmp_path}/sft/checkpoints/{sft[0].name}"


def test_a_run_without_a_complete_checkpoint(tmp_path: Path) -> None:
    save_run(job(tmp_path, run_name="begun"), [], outcome=None)
    text = refusal(job(tmp_path, **{BASE: "run:begun"}))
    assert "has not come to its end, and no complete checkpoint; allowed is one that has" in text
    assert text.endswith("go on with it (--resume) where it was cut short")
    assert f"found no complete checkpoint in {tmp_path}/begun; allowed" in refusal(
        job(tmp_path, **{BASE: "run:begun@step-00000010-3fa29c01"})
    )


def test_a_run_that_was_stopped_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_run(job(tmp_path, run_name="short"), [1.0], outcome="stopped")
    start(job(tmp_path, **{BASE: "run:short"}))
    assert f"{BASE}: run:short: was stopped at step 10, before its last step" in caplog.text


def test_a_checkpoint_that_is_not_there(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    text = refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:sft@step-00000099-3fa29c01"}))
    assert text.startswith(f"{ADAPTER}: run:sft@step-00000099-3fa29c01: ")
    assert f"no checkpoint 'step-00000099-3fa29c01'; there is {sft[0].name}, " in text


def test_a_damaged_checkpoint(sft: list[CheckpointInfo], tmp_path: Path) -> None:
    folder = tmp_path / "sft" / "checkpoints" / sft[1].name
    (folder / "optimizer" / "rank-00000.safetensors").write_bytes(b"of no matter to a new run")
    start(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:sft"}))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    text = refusal(job(tmp_path, lora_config=LORA, **{ADAPTER: "run:sft"}))
    assert text.startswith(f"{ADAPTER}: run:sft: damaged checkpoint: {folder}: 1 of 3 files are not what was written")
    assert re.search(r"adapter_model\.safetensors: SHA-256 \w{64}, not the \w{64} written", text)
    assert f"other checkpoints: {sft[0].name}, {sft[2].name}" in text


@pytest.mark.slow
def test_runs_in_s3(s3_bucket: str, tmp_path: Path) -> None:
    output = f"s3://{s3_bucket}/runs"
    infos = save_run(job(output, run_name="sft", lora_config=LORA))
    started = start(job(output, lora_config=LORA, format=None, **{ADAPTER: "run:sft"}))
    assert started.initial_adapter_model_ckpt_path == f"{output}/sft/checkpoints/{infos[1].name}"
    open_storage(f"{output}/sft/checkpoints/{infos[1].name}").delete("adapter_model.safetensors")
    assert "adapter_model.safetensors: missing" in refusal(job(output, lora_config=LORA, **{ADAPTER: "run:sft"}))
    assert "(did you mean run:sft?)" in refusal(job(output, lora_config=LORA, **{ADAPTER: "run:sftt"}))
