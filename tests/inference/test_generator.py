"""Answers of a real pretrained model, loaded from committed checkpoints as training leaves them."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.answers.sampling import Sampling
from llmforge.checkpoint.find import find_checkpoint
from llmforge.config.model import LoraConfig
from llmforge.errors import CheckpointError, DataError, ModelError
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from llmforge.inference.load import TrainedModel, load_trained_model
from llmforge.models.adapter import add_adapter
from llmforge.models.load import load_base_model
from tests.inference.runs import commit, copied, generated_by, make_job, reference, spelled
from tests.prompt.formats import VERBATIM

pytestmark = pytest.mark.slow

ASK = [{"role": "user", "content": "Once upon a time"}]
GREEDY = Sampling()
SHORT = Sampling(max_tokens=10)


def with_generation(model: TrainedModel, **generation_config: Any) -> TrainedModel:
    """The same model from a job with other settings."""
    return replace(model, job=make_job(Path(model.job.model_id), generation_config=generation_config))


def generated(model: TrainedModel, prompt: list[int], max_tokens: int = 40) -> list[int]:
    """What `transformers` alone answers, without what ended it."""
    return generated_by(reference(model.job.model_id), prompt, max_tokens)


def answer_of(model: TrainedModel, messages: list[dict[str, str]] = ASK, sampling: Sampling = GREEDY) -> str:
    generator = Generator(model)
    return generator.answer(generator.parse(messages), sampling)


def prompt_of(model: TrainedModel, messages: list[dict[str, str]] = ASK) -> list[int]:
    generator = Generator(model)
    return generator.prompt_ids(generator.parse(messages))


CONVERSATIONS = {
    "one turn": ASK,
    "system": [{"role": "system", "content": "A story."}, *ASK],
    "two turns": [*ASK, {"role": "assistant", "content": "there was a dog."}, {"role": "user", "content": "Then he"}],
    "dialogue": [{"role": "user", "content": 'Lily said, "Hello!"\nTom said,'}],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_greedy_answers_equal_those_of_transformers(messages: list[dict[str, str]], model: TrainedModel) -> None:
    """To the last space; the space that the template puts before an answer is not part of it."""
    model = with_generation(model, max_tokens=50)
    prompt = prompt_of(model, messages)
    expected = spelled(generated(model, prompt, 50), model.decoder)
    assert len(expected) > 60
    generator = Generator(model)
    pieces = list(generator.stream(generator.parse(messages), GREEDY))
    assert "".join(pieces) == expected.removeprefix(" ")
    assert len(pieces) > 20
    assert all(pieces)


def test_the_prompt_is_that_of_training(model: TrainedModel) -> None:
    assert prompt_of(model) == model.decoder.encode("<s>Once upon a time", add_special_tokens=False)
    text = prompt_of(model, [{"role": "user", "content": "<s> </s>"}])
    assert text[0] == 1
    assert not {0, 1, 2} & set(text[1:])


def test_max_tokens(model: TrainedModel) -> None:
    ids = generated(model, prompt_of(model))
    assert len(ids) == 40
    for max_tokens in (1, 7):
        expected = spelled(ids[:max_tokens], model.decoder).removeprefix(" ")
        assert answer_of(model, sampling=Sampling(max_tokens=max_tokens)) == expected
    assert answer_of(model) == spelled(ids, model.decoder).removeprefix(" ")


@pytest.mark.parametrize("stop", [".", "named Lily", "little girl"])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(stop: str, model: TrainedModel) -> None:
    expected = spelled(generated(model, prompt_of(model)), model.decoder).removeprefix(" ")
    assert stop in expected
    assert answer_of(with_generation(model, stopping_sequences=["never", stop])) == expected.split(stop)[0]


def test_stop_tokens_and_sequences_end_the_answer_and_are_not_part_of_it(model: TrainedModel) -> None:
    ids = generated(model, prompt_of(model))
    for stop, length in ((ids[9], 1), (tuple(ids[9:10]), 1), (tuple(ids[8:11]), 3), (tuple(ids[8:11][::-1]), 0)):
        found = answer_of(with_generation(model, stopping_sequences=[stop]))
        sequence = [stop] if isinstance(stop, int) else list(stop)
        starts = [index for index in range(len(ids)) if length and ids[index : index + length] == sequence]
        expected = ids[: starts[0]] if starts else ids
        assert found == spelled(expected, model.decoder).removeprefix(" ")


def test_a_prompt_must_leave_room_for_an_answer(model: TrainedModel) -> None:
    word = len(prompt_of(model, [{"role": "user", "content": "a"}]))
    for num_tokens, room in ((512 - 3, 3), (512 - 1, 1)):
        content = "a " * (num_tokens - word) + "a"
        messages = [{"role": "user", "content": content}]
        prompt = prompt_of(model, messages)
        assert len(prompt) == num_tokens
        expected = spelled(generated(model, prompt, room), model.decoder).removeprefix(" ")
        assert answer_of(model, messages) == expected
    messages = [{"role": "user", "content": "a " * (512 - word) + "a"}]
    with pytest.raises(DataError) as caught:
        answer_of(model, messages)
    assert str(caught.value) == (
        "the prompt has 512 tokens; the model takes at most 511, to leave room for an answer: shorten the messages"
    )


def test_an_empty_prompt(model: TrainedModel) -> None:
    model = with_generation(model, prompt_format=VERBATIM.model_dump())
    with pytest.raises(DataError, match=r"^the prompt is empty: the format puts nothing around the messages"):
        answer_of(model, [{"role": "user", "content": " "}])


def running_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llmforge-generate")]


def test_leaving_the_stream_stops_the_model(model: TrainedModel) -> None:
    model = with_generation(model, max_tokens=400)
    num_calls = 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    hook = model.model.register_forward_hook(count)
    generator = Generator(model)
    stream = generator.stream(generator.parse(ASK), GREEDY)
    next(stream)
    assert running_threads()
    stream.close()
    assert not running_threads()
    assert 0 < num_calls < 300
    hook.remove()
    for _ in generator.stream(generator.parse(ASK), GREEDY):
        break
    assert not running_threads()


def test_an_error_of_the_model_reaches_the_reader(model: TrainedModel) -> None:
    """Here the tokenizer knows more tokens than the model."""
    small = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(IndexError):
        answer_of(replace(model, model=small))
    assert not running_threads()


def test_sampling(model: TrainedModel) -> None:
    model = with_generation(model, temperature=1.5)

    def sampled(seed: int, **changes: Any) -> str:
        return answer_of(model, sampling=Sampling(max_tokens=10, seed=seed, **changes))

    assert sampled(0) == sampled(0)
    assert len({sampled(seed) for seed in range(4)}) == 4
    assert sampled(0, temperature=0.0) == sampled(1, temperature=0.0)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_sampling_from_one_token_is_greedy(narrow: dict[str, float], model: TrainedModel) -> None:
    hot = with_generation(model, temperature=2.0, **narrow)
    assert answer_of(hot, sampling=SHORT) == answer_of(model, sampling=SHORT)


def test_the_job_alone_says_how_to_sample(stories: Path, tmp_path: Path) -> None:
    """What the publisher of the base model preferred stands in its `generation_config.json`."""
    folder = copied(stories, tmp_path / "weights")
    commit(tmp_path / "plain", "step-00000001-a", folder, make_job(stories))
    published = json.loads((folder / "generation_config.json").read_text())
    preferred = {"do_sample": True, "repetition_penalty": 9.0, "top_k": 1, "max_length": 3, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps({**published, **preferred}))
    commit(tmp_path / "preferring", "step-00000001-a", folder, make_job(stories))
    plain, preferring = (
        load_trained_model(find_trained_model(str(tmp_path / run), "best", tmp_path)) for run in ("plain", "preferring")
    )
    assert answer_of(plain, sampling=SHORT) == answer_of(preferring, sampling=SHORT)
    assert plain.end_of_sequence_ids == preferring.end_of_sequence_ids == {1, 2}
    torch.manual_seed(0)
    hot = {answer_of(preferring, sampling=Sampling(max_tokens=10, temperature=2.0)) for _ in range(4)}
    assert len(hot) == 4


def test_an_adapter_on_its_base(stories: Path, tmp_path: Path) -> None:
    base = load_base_model(stories, stories, precision="fp32")
    lora = LoraConfig(r=4, target_modules=("q_proj", "v_proj", "down_proj"))
    torch.manual_seed(0)
    adapted = add_adapter(base, lora, str(stories))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / file, folder / file)
    job = make_job(stories, lora_config={"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]})
    commit(tmp_path / "run", "step-00000003-a", folder, job)
    model = load_trained_model(find_trained_model(str(tmp_path / "run"), "latest", tmp_path / "cache"))
    prompt = prompt_of(model)
    expected = generated_by(adapted.merge_and_unload(), prompt, 12)
    assert expected != generated(model, prompt, 12)
    answer = answer_of(model, sampling=Sampling(max_tokens=12))
    assert answer == spelled(expected, model.decoder).removeprefix(" ")


def test_a_base_model_that_is_gone(stories: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path / "gone", lora_config={"r": 4, "target_modules": ["q_proj"]})
    commit(tmp_path / "run", "step-00000003-a", copied(stories, tmp_path / "adapter"), job)
    with pytest.raises(ModelError, match=r"gone: no such model folder"):
        load_trained_model(find_trained_model(str(tmp_path / "run"), "latest", tmp_path / "cache"))


@pytest.fixture
def run(stories: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints, of which the first is the best."""
    run = tmp_path / "run"
    for number, eval_loss in ((1, 1.0), (2, 2.0)):
        job = make_job(stories, generation_config={"max_tokens": number})
        commit(
            run, f"step-0000000{number}-a", copied(stories, tmp_path / f"weights-{number}"), job, eval_loss=eval_loss
        )
    return run


def test_a_checkpoint_by_any_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(uri: str, checkpoint: str) -> int:
        return find_checkpoint(uri, checkpoint)[1].step

    assert [step(str(run), name) for name in ("best", "latest", "step-00000002-a")] == [1, 2, 2]
    assert step(f"{run}/", "best") == 1
    assert step(f"file://{run}", "latest") == 2
    # The folder of a checkpoint names it, whatever the label asks for.
    for name, number in (("step-00000001-a", 1), ("step-00000002-a", 2)):
        assert step(f"{run}/checkpoints/{name}", "best") == number
        assert step(f"{run}/checkpoints/{name}/", "latest") == number
        with monkeypatch.context() as place:
            place.chdir(run)
            assert step(f"checkpoints/{name}", "best") == number
            place.chdir(run.parent)
            assert step(f"run/checkpoints/{name}", "best") == number


def test_the_checkpoint_itself_says_how_to_answer(run: Path, tmp_path: Path) -> None:
    best, latest = (
        open_generator(find_trained_model(str(run), name, tmp_path / "cache")) for name in ("best", "latest")
    )
    answers = [generator.answer(generator.parse(ASK), GREEDY) for generator in (best, latest)]
    assert answers[1].startswith(answers[0])
    assert len(answers[1]) > len(answers[0]) > 0


def test_checkpoints_that_are_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(tmp_path / "nothing"), "best")
    assert str(caught.value) == (
        f"{tmp_path}/nothing: no complete checkpoint; expected the folder of a run (with checkpoints/ in it) or of one "
        "checkpoint"
    )
    with pytest.raises(
        CheckpointError, match=r"no checkpoint 'step-00000009-a'; there is step-00000001-a, step-0000000"
    ):
        find_checkpoint(f"{run}/checkpoints/step-00000009-a", "best")
    (run / "checkpoints" / "step-00000001-a" / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint 'step-00000001-a' \(it is unfinished\); there is step-00000002-a"
    ):
        find_checkpoint(f"{run}/checkpoints/step-00000001-a", "best")


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    weights = run / "checkpoints" / "step-00000001-a" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_trained_model(find_trained_model(str(run), "best", tmp_path / "cache"))
    message = str(caught.value)
    assert "model.safetensors: SHA-256" in message
    assert "other checkpoints: step-00000002-a" in message
