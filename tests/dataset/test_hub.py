"""Hugging Face datasets as sources: what counts as one, and the file that is made of each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from llmforge.dataset.hub import ROW_GROUP_BYTES, SplitRole, check_load_kwargs, is_hub_dataset, load_hub_dataset
from llmforge.dataset.sources import first_lines
from llmforge.errors import DataError
from llmforge.storage.base import open_storage

ROWS = [
    {"messages": [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "é\n😀"}]}
    | ({} if number % 2 else {"id": number})
    for number in range(6)
]
Load = Callable[..., str]


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("owner/name", True),
        ("b-mc2/sql_2-1.0", True),
        ("hf://datasets/owner/name", True),
        ("hf://owner/name", True),  # and is refused where it is loaded
        ("name", False),
        ("owner/name/more", False),
        ("owner/name/", False),
        ("./name", False),
        ("../name", False),
        ("/owner/name", False),
        ("~/name", False),
        ("data/rows.jsonl", False),
        ("data/rows.jsonl.gz", False),
        ("data/rows.txt", False),
        ("data/rows.bz2", False),
        ("data/*", False),
        ("s3://owner/name", False),
        ("https://owner/name", False),
    ],
)
def test_names_of_the_hub(path: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_dataset(path, None) is is_one
    assert is_hub_dataset(path, {}) is is_one


def test_what_is_here_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("owner/name")
    folder.mkdir(parents=True)
    assert not is_hub_dataset("owner/name", None)
    assert is_hub_dataset("owner/name", {})
    assert is_hub_dataset(f"file://{tmp_path}/owner/name", {})
    (folder / "file").touch()
    assert not is_hub_dataset("owner/name/file", {})
    for mark in ("state.json", "dataset_dict.json"):
        (folder / mark).touch()
        assert is_hub_dataset("owner/name", None), mark
        assert is_hub_dataset(str(folder.absolute()), None), mark
        (folder / mark).unlink()


@pytest.mark.parametrize(
    ("load_kwargs", "problem"),
    [
        ({"streaming": True}, "streaming: not allowed: rows that are streamed have no number to be found by again;"),
        ({"trust_remote_code": True}, "trust_remote_code: not allowed: code of a dataset is never run; remove it"),
        ({"token": True}, "token: not allowed: secrets do not stand in a job; set HF_TOKEN in the environment"),
        ({"path": "a/b"}, "path: not allowed: the dataset is named by train_path or valid_path; remove it"),
        ({"split": ["train", "test"]}, "split: allowed is the name of a split, such as train_sft or train[:10%], or"),
        ({"split": {"test": "a"}}, "split: allowed is the name of a split, such as train_sft or train[:10%], or"),
    ],
)
def test_arguments_that_a_job_may_not_give(load_kwargs: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        check_load_kwargs(load_kwargs)
    assert str(caught.value).startswith(f"dataset.load_kwargs.{problem}")


def test_arguments_that_a_job_may_give() -> None:
    check_load_kwargs(None)
    check_load_kwargs({"split": "train[:10%]", "name": "main", "streaming": False, "token": None})
    check_load_kwargs({"split": {"train": "train_sft", "validation": "test_sft"}})


@pytest.fixture(scope="module")
def datasets() -> Any:
    """The library, which takes seconds to import."""
    return import_module("datasets")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(path, load_kwargs, split)`: the file that is made of a dataset."""

    def run(path: Path | str, load_kwargs: Mapping[str, object] | None = None, role: SplitRole = "train") -> str:
        storage = open_storage(str(tmp_path / "runs"))
        return load_hub_dataset(str(path), load_kwargs, default_split=role, storage=storage, prefix="data/sources")

    return run


@pytest.fixture
def repository_folder(datasets: Any, tmp_path: Path) -> Path:
    """A folder as a repository of the hub has it, with the splits train and test."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    datasets.Dataset.from_list(ROWS[:2]).to_json(str(folder / "data" / "test-00000-of-00001.jsonl"))
    return folder


def records_of(uri: str) -> Sequence[object]:
    return [record for _, _, record in first_lines([uri], Path("/none"))]


@pytest.mark.slow
def test_a_saved_dataset(datasets: Any, load: Load, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(saved))
    uri = load(saved)
    assert Path(uri).parent == tmp_path / "runs" / "data" / "sources"
    assert Path(uri).name.startswith("saved-train-")
    assert records_of(uri) == ROWS
    made_at = Path(uri).stat().st_mtime_ns
    assert load(saved) == uri
    assert load(f"file://{saved}") != uri
    assert Path(uri).stat().st_mtime_ns == made_at
    datasets.Dataset.from_list(ROWS[1:]).save_to_disk(str(saved))
    assert load(saved) != uri
    with pytest.raises(DataError) as caught:
        load(saved, {"split": "test"})
    assert str(caught.value) == (
        f"{saved}: no split 'test'; found a dataset without splits; remove dataset.load_kwargs.split"
    )
    with pytest.raises(DataError) as caught:
        load(saved, {"name": "main", "revision": "1"})
    assert str(caught.value) == (
        f"{saved}: found name, revision in dataset.load_kwargs, allowed is split: a folder of `save_to_disk` is loaded"
        " as it stands; remove the others"
    )


@pytest.mark.slow
def test_a_saved_dictionary_of_splits(datasets: Any, load: Load, tmp_path: Path) -> None:
    saved, rows = tmp_path / "saved", datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=rows, test_sft=rows.select([4, 1])).save_to_disk(str(saved))
    assert records_of(load(saved)) == ROWS
    asked = {"split": {"train": "train", "validation": "test_sft"}}
    assert records_of(load(saved, asked, "validation")) == [ROWS[4], ROWS[1]]
    assert records_of(load(saved, asked)) == ROWS
    assert records_of(load(saved, {"split": "test_sft"})) == [ROWS[4], ROWS[1]]
    with pytest.raises(DataError) as caught:
        load(saved, None, "validation")
    assert str(caught.value) == (
        f"{saved}: no split 'validation'; found the splits train, test_sft; name one of them by"
        " dataset.load_kwargs.split"
    )


@pytest.mark.slow
def test_a_folder_of_a_repository(datasets: Any, repository_folder: Path, load: Load, tmp_path: Path) -> None:
    def kwargs(**more: object) -> dict[str, object]:
        return {"cache_dir": str(tmp_path / "cache"), **more}

    uri = load(repository_folder, kwargs(data_files="data/train*.parquet"))
    assert records_of(uri) == ROWS
    assert load(repository_folder, kwargs(data_files="data/train*.parquet")) == uri
    assert (
        records_of(load(repository_folder, kwargs(data_files="data/train*.parquet", split="train[1:3]"))) == ROWS[1:3]
    )
    assert records_of(load(repository_folder, kwargs(data_files={"train": "data/*.jsonl"}))) == ROWS[:2]
    datasets.Dataset.from_list(ROWS[2:]).to_parquet(str(repository_folder / "data" / "train-00000-of-00001.parquet"))
    changed = load(repository_folder, kwargs(data_files="data/train*.parquet"))
    assert (changed != uri, records_of(changed)) == (True, ROWS[2:])
    refusals: list[tuple[dict[str, object], str]] = [
        ({"data_files": "data/train*.parquet", "split": "dev"}, "Unknown split \"dev\". Should be one of ['train']"),
        (
            {"data_files": "data/train*.parquet", "name": "main"},
            "BuilderConfig 'main' not found. Available: ['default']",
        ),
        (
            {"data_files": "data/train*.parquet", "shards": 1},
            "BuilderConfig ParquetConfig(...) doesn't have a 'shards' key",
        ),
    ]
    for more, found in refusals:
        with pytest.raises(DataError) as caught:
            load(repository_folder, kwargs(**more))
        message = str(caught.value)
        assert message.startswith(f"{repository_folder}: cannot be loaded as a Hugging Face dataset: ")
        assert message.endswith(f"{found}; correct dataset.load_kwargs (name, split, data_dir, data_files, revision)")


@pytest.mark.slow
def test_folders_that_are_damaged(datasets: Any, load: Load, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(saved))
    os.truncate(next(saved.glob("*.arrow")), 100)
    with pytest.raises(DataError, match=r"saved: cannot be .*; write the folder anew with `save_to_disk`"):
        load(saved)
    repository = tmp_path / "repository"
    repository.mkdir()
    kwargs = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(DataError, match=r"repository: cannot be .* doesn't contain any data files; check the name"):
        load(repository, kwargs)
    (repository / "repository.py").write_text("raise SystemExit\n")
    with pytest.raises(DataError, match=r"found repository\.py; code of a dataset is never run: set .*revision"):
        load(repository, kwargs)
    (repository / "train.parquet").write_text("no")
    (repository / "repository.py").unlink()
    with pytest.raises(DataError, match=r"repository: cannot be .*[Pp]arquet.*; mend its files"):
        load(repository, kwargs)
    with pytest.raises(DataError, match="hf://owner/name: not the address of a dataset; write hf://datasets/owner/nam"):
        load("hf://owner/name")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_columns_of_media_are_left_out_and_labels_stay_numbers(datasets: Any, load: Load, tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "image": datasets.Image(),
            "pages": datasets.List(datasets.Image()),
            "parts": {"sound": datasets.Audio(), "text": datasets.Value("string")},
        }
    )
    row: dict[str, object] = {
        "text": "a",
        "label": "yes",
        "image": None,
        "pages": [],
        "parts": {"sound": None, "text": "b"},
    }
    datasets.Dataset.from_list([row], features=features).save_to_disk(str(tmp_path / "saved"))
    assert records_of(load(tmp_path / "saved")) == [{"text": "a", "label": 1}]


@pytest.mark.slow
def test_row_groups_are_bounded(datasets: Any, load: Load, tmp_path: Path) -> None:
    texts = [str(number % 10) * 100_000 for number in range(400)]
    rows = datasets.Dataset.from_dict({"text": texts})
    rows.save_to_disk(str(tmp_path / "saved"))
    with parquet.ParquetFile(load(tmp_path / "saved")) as file:
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        assert sum(groups) == 400 and ROW_GROUP_BYTES * 0.8 < max(groups) * 100_000 <= ROW_GROUP_BYTES
    empty = tmp_path / "empty"
    rows.select([]).save_to_disk(str(empty))
    with pytest.raises(DataError) as caught:
        load(empty)
    assert str(caught.value).startswith(f"{empty}: cannot be loaded as a Hugging Face dataset: no rows in its files")


@pytest.mark.slow
def test_the_hub_without_a_network(repository: Path, tmp_path: Path) -> None:
    """In a process of its own, since the library looks at the environment when it is imported."""
    program = (
        "from llmforge.dataset.hub import load_hub_dataset\n"
        "from llmforge.storage.base import open_storage\n"
        "import sys\n"
        "assert 'datasets' not in sys.modules and 'pyarrow' not in sys.modules\n"
        "for path in ('owner/name', 'hf://datasets/owner/name'):\n"
        "    try:\n"
        "        load_hub_dataset(path, {}, default_split='train', storage=open_storage('runs'), prefix='data')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(repository)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    advice = (
        "check the path if a folder is meant, else the network of this machine and HF_HUB_OFFLINE; or write the dataset"
        " with `save_to_disk` where there is a network, and name that folder"
    )
    assert result.stdout.splitlines() == [
        f"DataError {path}: cannot be loaded as a Hugging Face dataset: Couldn't reach 'owner/name' on the Hub"
        f" (OfflineModeIsEnabled); {advice}"
        for path in ("owner/name", "hf://datasets/owner/name")
    ]
    assert not (tmp_path / "runs").exists()
