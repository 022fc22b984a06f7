"""Which files go along with a job, where they stand, and what the job then calls them."""

import json
import os
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from llmforge.config.job import JobConfig, parse_job
from llmforge.errors import ClusterError
from llmforge.jobs.package import find_kept, keep, pack
from llmforge.jobs.shipment import ship


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")


def job(**keys: object) -> JobConfig:
    data = {"model_id": "meta-llama/Llama-3.1-8B", "train_path": "s3://bucket/train.jsonl", **keys}
    return parse_job(json.dumps(data), "job.yaml").job


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def names(shipped: JobConfig, *cluster_paths: str) -> tuple[list[str], list[str]]:
    shipment = ship(shipped, cluster_paths)
    assert all(path.is_file() for path in shipment.files.values())
    return sorted(shipment.files), shipment.overrides


def test_files_below_the_working_folder_keep_their_names(work: Path) -> None:
    make(work, "data/a.jsonl", "data/b.jsonl", "data/notes.md", "data/deep/c.jsonl", "valid.csv", "ds/zero3.json")
    shipped = job(
        train_path=["data", {"path": "./data/deep/*.jsonl", "weight": 2.0}],
        valid_path="valid.csv",
        deepspeed={"config_path": "ds/zero3.json"},
    )
    assert names(shipped) == (["data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl", "ds/zero3.json", "valid.csv"], [])


def test_an_earlier_run_is_looked_up_where_the_job_runs(work: Path) -> None:
    make(work, "sft/adapter_config.json")
    shipped = job(initial_adapter_model_ckpt_path="run:sft", lora_config={})
    assert names(shipped) == ([], [])
    assert shipped.initial_adapter_model_ckpt_path == "run:sft"


def test_files_from_elsewhere_get_a_folder_each(work: Path, tmp_path: Path) -> None:
    make(tmp_path, "one/x.jsonl", "two/2024/y.jsonl", "two/2025/y.jsonl", "two/2025/z.txt", "a b/v.csv", "zero.json")
    shipped = job(
        train_path=[str(tmp_path / "one" / "x.jsonl"), {"path": f"{tmp_path}/two/*/*.jsonl"}, "s3://bucket/x.jsonl"],
        valid_path=f"file://{tmp_path}/a%20b/v.csv",
        deepspeed={"config_path": "../zero.json"},
    )
    files, overrides = names(shipped)
    assert files == [
        "shipped/1/x.jsonl",
        "shipped/2/2024/y.jsonl",
        "shipped/2/2025/y.jsonl",
        "shipped/3/v.csv",
        "shipped/4/zero.json",
    ]
    assert overrides == [
        'train_path.0="shipped/1/x.jsonl"',
        'train_path.1.path="shipped/2/*/*.jsonl"',
        'valid_path="shipped/3/v.csv"',
        'deepspeed.config_path="shipped/4/zero.json"',
    ]
    again = parse_job(shipped.model_dump_json(exclude_unset=True), "job.yaml", overrides).job
    assert [source.path for source in again.train_sources] == [
        "shipped/1/x.jsonl",
        "shipped/2/*/*.jsonl",
        "s3://bucket/x.jsonl",
    ]


def test_of_a_model_folder_go_the_files_that_are_read(work: Path, tmp_path: Path) -> None:
    weights = ("model.safetensors", "model.safetensors.index.json")
    make(
        tmp_path / "my-llama",
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "pytorch_model.bin",
        "sub/x.json",
        *weights,
    )
    make(tmp_path / "base", "config.json", "model.safetensors")
    make(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt")
    model = str(tmp_path / "my-llama")
    read = ["config.json", "merges.txt", *weights, "tokenizer.json"]
    assert names(job(model_id=model)) == (
        [f"shipped/1/my-llama/{name}" for name in read],
        ['model_id="shipped/1/my-llama"'],
    )
    files, overrides = names(
        job(
            model_id=model,
            initial_base_model_ckpt_path=str(tmp_path / "base"),
            lora_config={"r": 8},
            initial_adapter_model_ckpt_path=str(tmp_path / "adapter"),
        )
    )
    assert files == [
        *(f"shipped/1/my-llama/{name}" for name in ("config.json", "merges.txt", weights[1], "tokenizer.json")),
        "shipped/2/base/config.json",
        "shipped/2/base/model.safetensors",
        "shipped/3/adapter/adapter_config.json",
        "shipped/3/adapter/adapter_model.safetensors",
    ]
    assert overrides == [
        'model_id="shipped/1/my-llama"',
        'initial_base_model_ckpt_path="shipped/2/base"',
        'initial_adapter_model_ckpt_path="shipped/3/adapter"',
    ]


def test_what_is_elsewhere_or_of_the_cluster_stays_there(work: Path, tmp_path: Path) -> None:
    make(tmp_path, "shared/x.jsonl")
    shipped = job(
        train_path=["s3://bucket/*.jsonl", "HuggingFaceH4/ultrachat", f"{tmp_path}/shared/x.jsonl", "/mnt/nfs/*.jsonl"],
        dataset={"load_kwargs": {"split": "train"}},
        model_id="/mnt/nfs/llama",
        deepspeed={"config_path": "/mnt/nfs/zero.json"},
    )
    assert names(shipped, str(tmp_path / "shared"), "/mnt/nfs/") == ([], [])


def test_the_same_files_make_the_same_package(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl")
    files = {"data/a.jsonl": tmp_path / "a.jsonl", "b.jsonl": tmp_path / "b.jsonl"}
    package = pack("model_id: x\n", files)
    (tmp_path / "a.jsonl").touch()
    assert pack("model_id: x\n", dict(reversed(files.items()))) == package
    assert package.uri == f"gcs://{package.name}"
    with zipfile.ZipFile(BytesIO(package.content)) as archive:
        assert archive.namelist() == ["job.yaml", "b.jsonl", "data/a.jsonl"]
        assert archive.read("data/a.jsonl") == b"a.jsonl\n"
    others = [
        pack("model_id: y\n", files),
        pack("model_id: x\n", {"b.jsonl": files["b.jsonl"]}),
        pack("model_id: x\n", {"data/a.jsonl": files["b.jsonl"], "b.jsonl": files["data/a.jsonl"]}),
    ]
    assert len({package.name, *(other.name for other in others)}) == 4


def test_files_that_are_too_large_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "large.jsonl").write_bytes(bytes(range(256)) * 4096)
    make(tmp_path, "small.jsonl")
    files = {"large.jsonl": tmp_path / "large.jsonl", "small.jsonl": tmp_path / "small.jsonl"}
    with pytest.raises(ClusterError) as error:
        pack("", files, max_bytes=2048)
    assert str(error.value) == (
        "the 2 local files of the job are too large to be sent with it: 1.00 MiB before compression, the largest "
        f"{tmp_path}/large.jsonl (1.00 MiB), {tmp_path}/small.jsonl (0.01 KiB); Ray takes less than 2.00 KiB after it. "
        "Put them where the cluster can read them: s3://, the Hugging Face hub, or a folder that all nodes see "
        "(--cluster-path)"
    )


def test_the_newest_packages_are_kept(tmp_path: Path) -> None:
    packages = [pack(f"seed: {number}", {}) for number in range(22)]
    for number, package in enumerate(packages):
        keep(package, tmp_path / "kept")
        kept = tmp_path / "kept" / package.name
        stamp = 1_700_000_000 + number
        os.utime(kept, (stamp, stamp))
    found = [find_kept(package.name, tmp_path / "kept") for package in packages]
    assert found == [None, None, *packages[2:]]
