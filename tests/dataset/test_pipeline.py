"""The data stage on real rows: nothing lost, nothing done twice, the same for any blocks and wherever the files are."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer

from llmforge.config.job import JobConfig
from llmforge.config.resolve import JobFacts, resolve_job
from llmforge.dataset.pipeline import Progress, make_prepared, prepare
from llmforge.dataset.prepared import PreparedDataset, read_inputs
from llmforge.dataset.shards import SampleReader, Split
from llmforge.dataset.tokenize import TokenizerText
from llmforge.dataset.unused import MAX_PRINTED_ROWS
from llmforge.errors import DataError, StorageError
from llmforge.models.folder import read_tokenizer_json
from llmforge.storage.base import open_storage, read_bytes
from llmforge.storage.manifest import read_manifest
from tests.ray_fixtures import MakeJob
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

CONTEXT_LENGTH = 512
GOOD_ROW = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}'
OTHER_ROW = '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'

Prepare = Callable[..., PreparedDataset]
Tokens = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture
def prepare_job(small_model: Path, make_job: MakeJob, tmp_path: Path) -> Prepare:
    """`prepare_job(key=value, ...)`: the result of the data stage for a job with these keys."""

    def run(
        *,
        tokenizer_json: str | None = None,
        eos_token: str | None = None,
        progress: Progress | None = None,
        **keys: object,
    ) -> PreparedDataset:
        facts = JobFacts(has_gpu=False, started_at=datetime(2026, 11, 21), model_context_length=CONTEXT_LENGTH)
        job: JobConfig = resolve_job(make_job(model_id=str(small_model), **keys), facts)
        return prepare(
            job,
            TokenizerText(tokenizer_json or read_tokenizer_json(small_model), eos_token),
            open_storage(job.output_dir),
            tmp_path / "cache",
            model_context_length=CONTEXT_LENGTH,
            progress=progress or (lambda done, total: None),
        )

    return run


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(lines, name)`: a JSONL file."""

    def write(lines: Sequence[str], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., SampleReader]:
    """`opened(prepared, split)`: the samples, as a worker opens them."""

    def open_split(prepared: PreparedDataset, split: Split = "train", output_dir: str | None = None) -> SampleReader:
        return prepared.open(split, open_storage(output_dir or str(tmp_path / "runs")), tmp_path / "node-cache")

    return open_split


def _examples(reader: SampleReader) -> list[Tokens]:
    """Ids and labels of all examples, taken out of their packs."""
    found = []
    for index in range(len(reader)):
        sample = reader[index]
        ends = list(accumulate(sample.example_lengths.tolist()))
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append((tuple(sample.input_ids[start:end].tolist()), tuple(sample.labels[start:end].tolist())))
    return found


def _refused(prepare_job: Prepare, **keys: object) -> list[str]:
    with pytest.raises(DataError) as caught:
        prepare_job(**keys)
    return str(caught.value).splitlines()


def test_rows_in_are_rows_used_and_rows_dropped(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], tmp_path: Path
) -> None:
    untrained = json.loads(real_rows[0])
    untrained["messages"][1]["weight"] = 0
    path = write_rows([*real_rows, json.dumps(untrained), "not a row"])
    prepared = prepare_job(dataset={"on_invalid": "drop"})
    stats = prepared.stats
    assert stats.rows_in == len(real_rows) + 2
    assert stats.rows_in == stats.rows_used + stats.rows_dropped
    assert stats.rows_used == stats.train.examples > 100
    assert {"invalid": 1, "no trained token": 1}.items() <= stats.dropped.items()
    assert stats.dropped["longer than context_length"] == stats.rows_dropped - 2 > 0
    storage = open_storage(str(tmp_path / "runs"))
    assert json.loads(read_bytes(storage, f"{prepared.prefix}/stats.json")) == stats.model_dump(mode="json")
    dropped = [json.loads(line) for line in read_bytes(storage, f"{prepared.prefix}/dropped.jsonl").splitlines()]
    assert len(dropped) == stats.rows_dropped
    places = {(row["uri"], row["line"]): row["reason"] for row in dropped}
    assert places[str(path), 201] == "no trained token"
    assert places[str(path), 202].startswith("not JSON")


def test_ids_are_those_of_the_tokenizer_and_the_answer_is_trained(
    prepare_job: Prepare,
    write_rows: Callable[..., Path],
    real_rows: list[str],
    opened: Callable[..., SampleReader],
    small_model: Path,
) -> None:
    write_rows(real_rows)
    tokenizer = Tokenizer.from_file(str(small_model / "tokenizer.json"))
    expected = []
    for row in real_rows:
        question, answer = (message["content"].strip() for message in json.loads(row)["messages"])
        prompt = tokenizer.encode(f"<s>Question: {question}\nAnswer:", add_special_tokens=False).ids
        ids = tokenizer.encode(f"<s>Question: {question}\nAnswer: {answer}</s>", add_special_tokens=False).ids
        assert ids[: len(prompt)] == prompt
        if len(ids) <= CONTEXT_LENGTH:
            expected.append((tuple(ids), (*[-100] * len(prompt), *ids[len(prompt) :])))
    assert _examples(opened(prepare_job(packing=False))) == expected


def test_packs_hold_every_example_once(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], opened: Callable[..., SampleReader]
) -> None:
    write_rows(real_rows)
    plain, packed = prepare_job(packing=False), prepare_job(packing=True)
    packs = opened(packed)
    assert Counter(_examples(packs)) == Counter(_examples(opened(plain)))
    assert len(packs) == packed.stats.train.samples < plain.stats.train.samples == plain.stats.train.examples
    assert packs.num_tokens.max() <= CONTEXT_LENGTH
    assert packs.num_tokens.sum() == packed.stats.train.tokens == plain.stats.train.tokens
    assert packs.num_trained_tokens.sum() == packed.stats.train.trained_tokens == plain.stats.train.trained_tokens
    filled = packed.stats.train.tokens / (len(packs) * CONTEXT_LENGTH)
    assert packed.stats.train.packing_efficiency == pytest.approx(filled)
    starts = [packs[index].labels[0] for index in range(len(packs))]
    assert set(starts) == {-100}


def test_a_second_run_finds_the_first_one(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str]
) -> None:
    write_rows(real_rows[:20])
    calls: list[int] = []
    first = prepare_job(progress=lambda done, total: calls.append(done))
    assert not first.was_cached
    assert calls[-1] == 20
    calls.clear()
    second = prepare_job(progress=lambda done, total: calls.append(done))
    assert second == PreparedDataset(first.name, first.stats, was_cached=True)
    assert not calls


CHANGES: dict[str, dict[str, object]] = {
    "context length": {"context_length": 511},
    "measured context length": {"context_length": None},
    "format": {
        "generation_config": {
            "prompt_format": {"system": "{instruction}", "user": "{instruction}", "assistant": "{instruction}</s>"}
        }
    },
    "packing": {"packing": False},
    "trained turns": {"dataset": {"train_on": "last_turn"}},
    "task": {"task": "causal_lm"},
    "invalid rows": {"dataset": {"on_invalid": "drop"}},
    "rows held out": {"dataset": {"valid_fraction": 0.5}},
    "rows held out by another seed": {"dataset": {"valid_fraction": 0.5}, "seed": 7},
}
INDIFFERENT: dict[str, dict[str, object]] = {
    "rate": {"learning_rate": 0.5, "num_epochs": 3, "train_batch_size_per_device": 2},
    "devices": {"num_devices": 2, "num_data_blocks_per_device": 3},
    "order and seed": {"seed": 7, "dataset": {"shuffle": False}},
    "name": {"run_name": "other", "custom_model_tag": "tag"},
    "adapter": {"lora_config": {"r": 4}},
}


def test_the_name_follows_from_all_that_decides_the_samples(
    prepare_job: Prepare, make_job: MakeJob, write_rows: Callable[..., Path], real_rows: list[str], small_model: Path
) -> None:
    path = write_rows(real_rows[:12])
    valid = write_rows([GOOD_ROW], "valid.jsonl")
    names = {"as it is": prepare_job().name}
    names |= {change: prepare_job(**keys).name for change, keys in CHANGES.items()}
    names["validation data"] = prepare_job(valid_path=str(valid)).name
    tokenizer = json.loads(read_tokenizer_json(small_model))
    names["tokenizer"] = prepare_job(tokenizer_json=json.dumps(tokenizer)).name
    path.write_text(path.read_text().replace("Natalia", "Nataliy"))
    names["one byte of the data"] = prepare_job().name
    assert len(set(names.values())) == len(names), names


def test_the_name_does_not_change_with_anything_else(
    prepare_job: Prepare, make_job: MakeJob, write_rows: Callable[..., Path], real_rows: list[str], small_model: Path
) -> None:
    write_rows(real_rows[:3])
    first = prepare_job()
    given = make_job(model_id=str(small_model)).generation_config
    assert given is not None
    sampling = given.model_copy(update={"temperature": 0.3, "max_tokens": 5}).model_dump(mode="json")
    for keys in (INDIFFERENT | {"sampling": {"generation_config": sampling}}).values():
        again = prepare_job(**keys)
        assert (again.name, again.was_cached) == (first.name, True), keys


def test_samples_do_not_depend_on_blocks(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], tmp_path: Path
) -> None:
    write_rows(real_rows * 3)
    outputs = [str(tmp_path / name) for name in ("one", "many")]
    few = prepare_job(output_dir=outputs[0], num_data_blocks_per_device=1)
    many = prepare_job(output_dir=outputs[1], num_data_blocks_per_device=5)
    assert (few.name, few.stats) == (many.name, many.stats)
    files = []
    for output, prepared in zip(outputs, (few, many), strict=True):
        manifest = read_manifest(open_storage(output), prepared.prefix)
        assert manifest is not None
        files.append(manifest.files)
    assert files[0] == files[1]


def test_rows_held_out_stay_the_same_and_apart(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], opened: Callable[..., SampleReader]
) -> None:
    def split(num_rows: int, **keys: object) -> tuple[set[Tokens], set[Tokens]]:
        write_rows(real_rows[:num_rows])
        return split_of(**keys)

    def split_of(**keys: object) -> tuple[set[Tokens], set[Tokens]]:
        prepared = prepare_job(dataset={"valid_fraction": 0.2}, **keys)
        stats = prepared.stats
        assert stats.valid is not None
        assert stats.rows_used == stats.train.examples + stats.valid.examples
        train, valid = (_examples(opened(prepared, name)) for name in ("train", "valid"))
        assert (len(train), len(valid)) == (stats.train.examples, stats.valid.examples)
        return set(train), set(valid)

    train, valid = split(200)
    assert not train & valid
    assert 0.1 < len(valid) / (len(train) + len(valid)) < 0.3
    fewer_train, fewer_valid = split(150)
    assert fewer_train <= train
    assert fewer_valid <= valid
    moved = write_rows(real_rows[199::-1], "moved.jsonl")
    assert split_of(train_path=str(moved)) == (train, valid)
    table = moved.with_suffix(".parquet")
    parquet.write_table(pa.Table.from_pylist([json.loads(row) for row in real_rows[:200]]), table)
    assert split_of(train_path=str(table)) == (train, valid)
    other_train, other_valid = split(200, seed=7)
    assert other_train | other_valid == train | valid
    assert other_valid != valid


def test_validation_files_are_a_split_of_their_own(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], opened: Callable[..., SampleReader]
) -> None:
    write_rows([GOOD_ROW])
    more, valid = write_rows([OTHER_ROW], "more.jsonl"), write_rows(real_rows[:9], "valid.jsonl")
    first = write_rows([GOOD_ROW])
    prepared = prepare_job(train_path=[str(first), str(more)], valid_path=str(valid))
    assert (prepared.stats.rows_in, prepared.stats.train.examples) == (11, 2)
    assert prepared.stats.valid is not None
    assert len(_examples(opened(prepared, "valid"))) == prepared.stats.valid.examples > 5


def test_windows_files_and_blank_lines(
    prepare_job: Prepare, write_rows: Callable[..., Path], tmp_path: Path, opened: Callable[..., SampleReader]
) -> None:
    write_rows([GOOD_ROW, OTHER_ROW])
    plain = _examples(opened(prepare_job()))
    content = f"\ufeff{GOOD_ROW}\r\n\r\n   \r\n{OTHER_ROW}"
    (tmp_path / "train.jsonl").write_bytes(content.encode())
    prepared = prepare_job()
    assert prepared.stats.rows_in == 2
    assert _examples(opened(prepared)) == plain


def test_all_bad_rows_are_named(prepare_job: Prepare, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    bad = [
        '{"messages": [{"role": "user", "content": "cut in half"',
        '{"text": "no messages"}',
        '{"messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "ho"}]}',
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]}',
        '{"messages": [{"role": "user", "content": "hi"}]}',
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": 4}]}',
        '{"messages": []}',
        "[1]",
    ]
    train = write_rows([GOOD_ROW, *bad[:4], "", GOOD_ROW])
    valid = write_rows([*bad[4:], GOOD_ROW], "valid.jsonl")
    lines = _refused(prepare_job, valid_path=str(valid), dataset={"format": "messages"})
    assert lines == [
        "8 of 11 rows are invalid:",
        f"  {train}:2: not JSON: Input data was truncated",
        f"  {train}:3: no `messages` column (found: text)",
        f"  {train}:4: message 1 has role 'human', which is none of system, user, assistant, tool; "
        "map it in the job: dataset.roles: {human: user, gpt: assistant}",
        f"  {train}:5: message 2 has role user, expected assistant: "
        "after the system message, user and assistant take turns and the user begins",
        f"  {valid}:1: the last message is the user's; a training row ends with the assistant's answer",
        f"  {valid}:2: message 2 (assistant) has a number as content; expected a string",
        f"  {valid}:3: `messages` is an empty list; expected at least a user and an assistant message",
        f"  {valid}:4: expected a JSON object with a `messages` list",
        "mend them, or leave them out with dataset.on_invalid=drop",
    ]
    dropping = prepare_job(valid_path=str(valid), dataset={"on_invalid": "drop", "format": "messages"}).stats
    assert (dropping.rows_in, dropping.rows_used, dropping.dropped) == (11, 3, {"invalid": 8})


def test_many_bad_rows_stand_in_a_file(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], tmp_path: Path
) -> None:
    """Over several blocks: line numbers count in the whole file."""
    lines = [row for good in real_rows for row in (good, good, "{}")]
    path = write_rows(lines)
    found = _refused(prepare_job, num_data_blocks_per_device=8)
    assert found[0] == "200 of 600 rows are invalid:"
    bad_lines = list(range(3, 601, 3))
    reason = "no `messages` column (found: no column)"
    assert found[1:-2] == [f"  {path}:{line}: {reason}" for line in bad_lines[:MAX_PRINTED_ROWS]]
    prefix, _, listing = found[-2].partition("all of them: ")
    assert prefix == "  ... and 180 more; "
    rows = [json.loads(line) for line in Path(listing).read_text().splitlines()]
    assert rows == [{"uri": str(path), "line": line, "reason": reason} for line in bad_lines]


@pytest.mark.parametrize("content", ["\n\n", "  \r\n"])
def test_a_file_without_rows(prepare_job: Prepare, tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    assert _refused(prepare_job) == [f"{path}: no rows; expected records, such as one JSON object per line"]


def test_a_file_without_a_byte(prepare_job: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.touch()
    assert _refused(prepare_job) == [f"{path}: no rows; expected records, such as one JSON object per line"]


def test_a_validation_file_without_rows(prepare_job: Prepare, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    write_rows([GOOD_ROW])
    valid = write_rows(["", ""], "valid.jsonl")
    assert _refused(prepare_job, valid_path=str(valid)) == [
        f"{valid}: no rows; expected records, such as one JSON object per line"
    ]


def test_nothing_left_to_train_on(prepare_job: Prepare, write_rows: Callable[..., Path]) -> None:
    path = write_rows(["{}", "{"])
    assert _refused(prepare_job, dataset={"on_invalid": "drop", "format": "messages"}) == [
        f"{path}: no row is left to train on:",
        f"  {path}:1: no `messages` column (found: no column)",
        f"  {path}:2: not JSON: Input data was truncated",
    ]


def test_rows_longer_than_the_context(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str]
) -> None:
    path = write_rows([GOOD_ROW, *real_rows[:4]])
    lengths = prepare_job().stats.lengths
    assert _refused(prepare_job, context_length=lengths.shortest - 1) == [
        f"context_length: no train row fits into {lengths.shortest - 1} tokens: the shortest has {lengths.shortest}, "
        f"95 % have at most {lengths.p95}; raise context_length"
    ]
    found = _refused(prepare_job, context_length=lengths.longest - 1, dataset={"over_length": "error"})
    assert found[0] == "1 rows are longer than context_length, and dataset.over_length is error:"
    [line] = [line for line in found[1:] if str(path) in line]
    assert line.endswith(f"longer than context_length ({lengths.longest} tokens > {lengths.longest - 1})")


def test_a_missing_file(prepare_job: Prepare, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        prepare_job()
    assert str(caught.value) == f"{tmp_path}/train.jsonl: no such file. Check the path."


def test_s3_and_local_give_the_same_samples(
    prepare_job: Prepare,
    write_rows: Callable[..., Path],
    real_rows: list[str],
    opened: Callable[..., SampleReader],
    s3_on_nodes: S3Server,
    s3_client: S3Client,
    s3_bucket: str,
) -> None:
    path = write_rows(real_rows)
    s3_client.upload_file(str(path), s3_bucket, "data/train.jsonl")
    local = prepare_job()
    output = f"s3://{s3_bucket}/runs"
    remote = prepare_job(train_path=f"s3://{s3_bucket}/data/train.jsonl", output_dir=output)
    assert remote.stats == local.stats
    ours, theirs = opened(local), opened(remote, output_dir=output)
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        for name in ("input_ids", "labels", "example_lengths"):
            assert np.array_equal(getattr(ours[index], name), getattr(theirs[index], name))
    assert prepare_job(train_path=f"s3://{s3_bucket}/data/train.jsonl", output_dir=output).was_cached


def test_a_node_that_cannot_read_the_data_says_so(
    prepare_job: Prepare,
    write_rows: Callable[..., Path],
    s3_environment: S3Server,
    s3_client: S3Client,
    s3_bucket: str,
) -> None:
    """The driver may use the server; the nodes of the cluster have no credentials."""
    s3_client.upload_file(str(write_rows([GOOD_ROW])), s3_bucket, "train.jsonl")
    with pytest.raises(StorageError) as caught:
        prepare_job(train_path=f"s3://{s3_bucket}/train.jsonl")
    assert str(caught.value) == (
        f"s3://{s3_bucket}/train.jsonl: cannot read: no credentials were found (NoCredentialsError); "
        "the server is https://s3.amazonaws.com. "
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on all nodes, or give the machines a role."
    )


def test_a_damaged_shard_is_named(
    prepare_job: Prepare, write_rows: Callable[..., Path], opened: Callable[..., SampleReader], tmp_path: Path
) -> None:
    write_rows([GOOD_ROW, OTHER_ROW])
    prepared = prepare_job()
    folder = tmp_path / "runs" / prepared.prefix
    shard = folder / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        opened(prepared)
    first, second, _, fourth = str(caught.value).splitlines()
    assert first == f"damaged prepared dataset: {folder}: 1 of 1 files are not what was written:"
    assert second.startswith("  train-00000.arrow: SHA-256 ")
    assert fourth == f"remove {folder} and start the job again to make it anew"
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00000\.arrow: missing"):
        opened(prepared)
    shutil.rmtree(folder)
    with pytest.raises(DataError) as gone:
        opened(prepared)
    assert str(gone.value) == f"{folder}: the prepared dataset is gone; start the job again to make it anew"


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "a flipped bit": lambda folder: flip(folder / "train-00000.arrow"),
    "a cut shard": lambda folder: (folder / "train-00000.arrow").write_bytes(b"ARROW1"),
    "no statistics": lambda folder: (folder / "stats.json").unlink(),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text("{}"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "only a part of a file": lambda folder: only_part(folder),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def only_part(folder: Path) -> None:
    """As a job leaves it that is killed while it writes."""
    shard = (folder / "train-00000.arrow").read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "train-00000.arrow").write_bytes(shard[:100])


def test_what_is_damaged_or_half_written_is_made_anew(
    prepare_job: Prepare, write_rows: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows([GOOD_ROW, OTHER_ROW])
    first = prepare_job()
    folder = tmp_path / "runs" / first.prefix
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for what, damage in DAMAGES.items():
        caplog.clear()
        damage(folder)
        again = prepare_job()
        assert again == first, what
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, what
        is_told = any("made anew, because the prepared dataset is damaged" in line for line in caplog.messages)
        assert is_told == (not what.startswith(("no manifest", "only a part")))
    assert prepare_job().was_cached


def test_two_jobs_may_prepare_the_same_at_once(
    prepare_job: Prepare, write_rows: Callable[..., Path], real_rows: list[str], opened: Callable[..., SampleReader]
) -> None:
    write_rows(real_rows)
    with ThreadPoolExecutor(2) as threads:
        one, other = (future.result() for future in [threads.submit(prepare_job) for _ in range(2)])
    assert (one.name, one.stats) == (other.name, other.stats)
    assert len(_examples(opened(one))) == one.stats.train.examples
    assert prepare_job().was_cached


def test_sources_of_different_formats_give_the_same_examples(
    prepare_job: Prepare,
    write_rows: Callable[..., Path],
    real_rows: list[str],
    opened: Callable[..., SampleReader],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "llmforge")
    texts = [[message["content"] for message in json.loads(row)["messages"]] for row in real_rows[:40]]
    write_rows(real_rows[:40])
    expected = _examples(opened(prepare_job()))
    turns = write_rows(
        [
            json.dumps({"log": [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]})
            for ask, say in texts[:10]
        ],
        "turns.jsonl",
    )
    columns = tmp_path / "columns.json"
    columns.write_text(json.dumps([{"instruction": ask, "input": "", "output": say} for ask, say in texts[10:20]]))
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", newline="") as file:
        csv.writer(file).writerows([["frage", "antwort"], *texts[20:30]])
    tables = tmp_path / "part.parquet"
    messages = [json.loads(row)["messages"] for row in real_rows[30:40]]
    parquet.write_table(pa.table({"messages": messages}), tables)
    own = {"format": "instruction", "columns": {"instruction": "frage", "output": "antwort"}}
    prepared = prepare_job(train_path=[str(turns), str(columns), {"path": str(pairs), **own}, str(tables)])
    assert _examples(opened(prepared)) == expected
    told = [line for line in caplog.messages if "rows of the format" in line]
    assert [line.split(": ")[1:3] for line in told[-3:]] == [
        [str(turns), "rows of the format sharegpt"],
        [str(columns), "rows of the format instruction"],
        [str(tables), "rows of the format messages"],
    ]


def test_weights_of_sources_decide_how_often_their_rows_are_seen(
    prepare_job: Prepare, write_rows: Callable[..., Path], opened: Callable[..., SampleReader]
) -> None:
    few, many = write_rows([GOOD_ROW], "few.jsonl"), write_rows([OTHER_ROW] * 6, "many.jsonl")
    sources = [{"path": str(few), "weight": 1}, {"path": str(many), "weight": 2}]
    prepared = prepare_job(train_path=sources)
    assert sorted(Counter(_examples(opened(prepared))).values()) == [3, 6]
    assert (prepared.stats.rows_used, prepared.stats.train.rows, prepared.stats.train.examples) == (7, 7, 9)
    prepared = prepare_job(train_path=sources, dataset={"mixture": "first_exhausted"})
    assert sorted(Counter(_examples(opened(prepared))).values()) == [1, 2]
    assert (prepared.stats.rows_used, prepared.stats.dropped) == (3, {"beyond the share of its source": 4})


def test_plain_text_is_cut_into_windows(
    prepare_job: Prepare, write_rows: Callable[..., Path], opened: Callable[..., SampleReader], small_model: Path
) -> None:
    texts = ["Once upon a time, there was a little girl. " * 40, "The end."]
    write_rows([json.dumps({"text": text}) for text in texts])
    prepared = prepare_job(task="causal_lm", context_length=64, eos_token="</s>")
    tokenizer = Tokenizer.from_file(str(small_model / "tokenizer.json"))
    whole = [tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False).ids for text in texts]
    examples = _examples(opened(prepared))
    labels = [tuple(label for label in labels if label != -100) for _, labels in examples]
    assert sorted(sum(labels, ())) == sorted(id_ for ids in whole for id_ in ids[1:])
    assert all(len(ids) <= 64 for ids, _ in examples)
    assert (prepared.stats.rows_used, prepared.stats.rows_dropped) == (2, 0)
    assert prepared.stats.train.examples == len(examples) == 1 + -(-(len(whole[0]) - 1) // 63)
    with pytest.raises(DataError, match=r"rows of plain text, but task is instruction_tuning.*set task: causal_lm"):
        prepare_job()


def test_duplicates_are_left_out(prepare_job: Prepare, write_rows: Callable[..., Path]) -> None:
    spaced = GOOD_ROW.replace("2 + 2?", " 2 + 2?\\n")
    write_rows([GOOD_ROW, OTHER_ROW, GOOD_ROW, spaced])
    stats = prepare_job(dataset={"deduplicate": True}).stats
    assert (stats.rows_used, stats.dropped) == (2, {"duplicate of an earlier row": 2})


def test_a_file_that_changes_before_it_is_read(
    write_rows: Callable[..., Path], make_job: MakeJob, small_model: Path, tmp_path: Path
) -> None:
    path = write_rows([GOOD_ROW])
    facts = JobFacts(has_gpu=False, started_at=datetime(2026, 11, 21))
    job = resolve_job(make_job(model_id=str(small_model)), facts)
    inputs = read_inputs(job, TokenizerText(read_tokenizer_json(small_model)), CONTEXT_LENGTH, tmp_path / "cache")
    write_rows([GOOD_ROW, OTHER_ROW])
    with pytest.raises(StorageError) as caught:
        make_prepared(inputs, open_storage(job.output_dir), tmp_path / "cache")
    assert str(caught.value) == f"{path}: changed while it was read; start the job again once nobody writes it"


def test_only_the_start_of_a_job_needs_a_hugging_face_dataset(
    make_job: MakeJob, small_model: Path, tmp_path: Path
) -> None:
    """What is loaded lies below `output_dir`; no node loads it once more."""
    datasets = pytest.importorskip("datasets", reason="needs the datasets library")
    rows = [json.loads(GOOD_ROW), json.loads(OTHER_ROW)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    submitted = make_job(model_id=str(small_model), train_path=str(tmp_path / "saved"))
    job = resolve_job(submitted, JobFacts(has_gpu=False, started_at=datetime(2026, 11, 21)))
    inputs = read_inputs(job, TokenizerText(read_tokenizer_json(small_model)), CONTEXT_LENGTH, tmp_path / "cache")
    shutil.rmtree(tmp_path / "saved")
    prepared = make_prepared(inputs, open_storage(job.output_dir), tmp_path / "cache")
    assert (prepared.stats.rows_in, prepared.stats.rows_used) == (2, 2)
