"""`llmforge generate` refuses what it cannot answer, in full and before it loads a model, and answers the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmforge.cli.main import app
from llmforge.errors import ClusterError, ConfigError, DataError
from llmforge.models.load import load_tokenizer
from llmforge.storage.base import open_storage, read_bytes
from tests.cli.conftest import Llmforge
from tests.inference.runs import generated_by, make_run, reference, spelled
from tests.s3_server import S3Server


@pytest.mark.parametrize("arguments", [[], ["--prompt", "hi", "--messages", "prompts.jsonl"]])
def test_either_a_prompt_or_a_file(llmforge: Llmforge, arguments: list[str]) -> None:
    done = llmforge("generate", "runs/no", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "give either --prompt TEXT or --messages FILE.jsonl\n"


def test_a_missing_messages_file(llmforge: Llmforge) -> None:
    done = llmforge("generate", "runs/no", "--messages", "no.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no.jsonl: no such file; expected a JSONL file with `messages` on every line\n"


def test_all_bad_lines_of_a_messages_file(llmforge: Llmforge, tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "a line\u2028separator"}]}'.encode()
    lines = [good, b"", b'{"messages": [', b'{"prompt": "hi"}', b'"hi"', b'{"messages": "\xff"}', good]
    (tmp_path / "prompts.jsonl").write_bytes(b"\r\n".join(lines))
    done = llmforge("generate", "runs/no", "--messages", "prompts.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "prompts.jsonl:3: not JSON: Expecting value (column 16)",
        "prompts.jsonl:4: expected an object with a `messages` list",
        "prompts.jsonl:5: expected an object with a `messages` list",
        "prompts.jsonl:6: not UTF-8 at byte 14; save the file as UTF-8",
    ]


def test_a_messages_file_without_rows(llmforge: Llmforge, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n\n")
    done = llmforge("generate", "runs/no", "--messages", "prompts.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prompts.jsonl: no rows; expected one JSON object with `messages` per line\n"


@pytest.mark.parametrize("arguments", [["generate", "--prompt", "hi"], ["chat"], ["serve"], ["verify"]])
def test_a_missing_run(imports_of: Llmforge, arguments: list[str]) -> None:
    """Is missed before the seconds that a model's libraries take to be imported."""
    done = imports_of(("torch", "transformers", "ray"), *arguments, "runs/no")
    assert (done.returncode, done.stdout) == (2, "imported: []\n")
    assert done.stderr == (
        "runs/no: no complete checkpoint; expected the folder of a run (with checkpoints/ in it) or of one checkpoint\n"
    )


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--prompt", "hi", "--output", "x"], "found --output with --prompt, allowed is it with --messages FILE.jsonl"),
        (["--prompt", "hi", "--top-p", "0"], "top_p: found 0.0, allowed is a number above 0, up to 1"),
    ],
)
def test_options_that_do_not_go_together(llmforge: Llmforge, arguments: list[str], found: str) -> None:
    done = llmforge("generate", "runs/no", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{found}\n")


TEXTS = ("Once upon a time", "Lily", "The big red dog", 'Tom said, "I', "One day, a boy", "x")


@pytest.fixture(scope="module")
def model(material: Path) -> Path:
    return material / "models" / "stories260K-hf"


@pytest.fixture
def prompts(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run, and prompts for it with a column of their own; the expected lines, by `transformers` alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMFORGE_CACHE", str(tmp_path / "cache"))
    make_run(model, tmp_path, generation_config={"max_tokens": 12})
    rows: list[dict[str, Any]] = [
        {"id": f"é{place}", "messages": [{"role": "user", "content": text}]} for place, text in enumerate(TEXTS)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    return [json.dumps(answered(model, row), ensure_ascii=False) for row in rows]


def answered(model: Path, row: dict[str, Any]) -> dict[str, Any]:
    tokenizer = load_tokenizer(model)
    messages = row["messages"]
    ids = tokenizer.encode(f"<s>{messages[0]['content']}", add_special_tokens=False)
    text = spelled(generated_by(reference(str(model)), ids, 12), tokenizer).removeprefix(" ")
    return row | {"messages": [*messages, {"role": "assistant", "content": text}]}


def generate(*arguments: str) -> Result:
    """The command in this process, in which the packages are imported already."""
    return CliRunner().invoke(app, ["generate", "run", "--messages", "prompts.jsonl", *arguments])


@pytest.mark.slow
def test_answers_stand_in_the_order_of_the_file(prompts: list[str]) -> None:
    done = generate("--batch-size", "4")
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines() == prompts
    assert done.stderr.startswith("6 of 6 rows answered, ")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.jsonl", "out/"])
def test_a_run_that_was_cut_short_goes_on(prompts: list[str], tmp_path: Path, output: str) -> None:
    """Lines that are there are not answered again: in the file they were changed, so that it would show."""
    assert generate("--output", output).exit_code == 0
    [path] = (tmp_path / "out").glob("*.jsonl") if output == "out/" else [tmp_path / output]
    assert path.read_text().splitlines() == prompts
    if output == "out/":
        kept = prompts[:2]
        path.with_name("part-000000000-000000002.jsonl").write_text("".join(f"{line}\n" for line in kept))
        path.unlink()
    else:
        kept = ['{"mine": 1}', '{"mine": 2}']
        path.write_text('{"mine": 1}\n{"mine": 2}\n{"torn')
    done = generate("--output", output)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines()[0] == "2 of 6 rows are answered already"
    files = sorted((tmp_path / "out").glob("*.jsonl")) if output == "out/" else [tmp_path / output]
    assert "".join(file.read_text() for file in files).splitlines() == [*kept, *prompts[2:]]
    again = generate("--output", output)
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "6 of 6 rows are answered already\n")
    other = generate("--output", output, "--temperature", "0.5")
    assert isinstance(other.exception, ConfigError)
    assert f"{output} holds answers already, begun with temperature 0.0 and not 0.5;" in str(other.exception)


@pytest.mark.slow
def test_rows_that_are_no_prompt(prompts: list[str], tmp_path: Path) -> None:
    """All are named before a weight is read: here there are none."""
    (weights,) = (tmp_path / "run").rglob("model.safetensors")
    shutil.move(weights, tmp_path / "kept")
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
        file.write(json.dumps({"messages": [{"role": "user", "content": "a " * 600}]}) + "\n")
    failed = generate().exception
    assert isinstance(failed, DataError)
    problems = str(failed).splitlines()
    assert [line.split(": ")[0] for line in problems] == ["prompts.jsonl:13", "prompts.jsonl:14"]
    assert "empty list" in problems[0] and "at most 511" in problems[1]
    shutil.move(tmp_path / "kept", weights)
    done = generate("--on-invalid", "skip")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == prompts
    assert done.stderr.splitlines()[:2] == [f"left out: {problem}" for problem in problems]


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_lines(prompts: list[str], tmp_path: Path, shared_ray: None) -> None:
    done = generate("--output", "out.jsonl", "--num-workers", "2")
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "out.jsonl").read_text().splitlines() == prompts
    refused = generate("--num-workers", "99").exception
    assert isinstance(refused, ClusterError)
    assert str(refused).startswith("--num-workers: found 99, allowed are at most 2 in this cluster")


@pytest.mark.slow
def test_a_seed_makes_files_reproducible(prompts: list[str]) -> None:
    hot = ("--temperature", "1.0", "--seed", "3", "--top-k", "40", "--stop", "Q")
    first = generate(*hot)
    assert first.exit_code == 0, first.exception
    assert len(first.stdout.splitlines()) == len(prompts)
    assert first.stdout == generate(*hot, "--batch-size", "1").stdout
    assert first.stdout.splitlines() != prompts


@pytest.mark.slow
def test_a_file_in_s3(prompts: list[str], tmp_path: Path, s3_environment: S3Server, s3_bucket: str) -> None:
    storage = open_storage(f"s3://{s3_bucket}/in")
    storage.upload(tmp_path / "prompts.jsonl", "prompts.jsonl")
    arguments = ("--messages", f"s3://{s3_bucket}/in/prompts.jsonl", "--output", f"s3://{s3_bucket}/out")
    done = generate(*arguments)
    assert (done.exit_code, done.stdout) == (0, ""), done.exception
    answers = open_storage(f"s3://{s3_bucket}/out")
    assert [file.key for file in answers.list()] == ["part-000000000-000000006.jsonl", "record.json"]
    assert read_bytes(answers, "part-000000000-000000006.jsonl").decode().splitlines() == prompts
    assert generate(*arguments).stderr == "6 of 6 rows are answered already\n"
    missing = generate("--messages", f"s3://{s3_bucket}/in/no.jsonl").exception
    assert isinstance(missing, DataError)
    assert str(missing).endswith("no such file; expected a JSONL file with `messages` on every line")
