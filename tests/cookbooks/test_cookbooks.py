"""The README and every cookbook: their jobs are valid, their commands run as they stand there, and print what is shown.

The cookbooks go on where the README ends, so that its commands are run once for all of them.

In a cookbook, a block of `yaml` that begins with `# NAME.yaml` is a file, a block of `sh` is run, and a block of `text`
shows lines of what the commands before it have printed, in any numbers; `...` stands for lines that are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmforge.config.job import parse_job
from tests.readme_fixtures import Shell

FOLDER = Path(__file__).resolve().parent.parent.parent / "cookbooks"
INDEX = FOLDER / "README.md"
COOKBOOKS = sorted(set(FOLDER.glob("*.md")) - {INDEX})
BLOCK = re.compile(r"^```(?P<kind>yaml|sh|text)\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# (?P<name>[\w.-]+\.yaml)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    kind: str
    """`yaml`, `sh` or `text`."""
    text: str

    @property
    def file_name(self) -> str:
        """Of the file that a block of YAML is."""
        named = FILE_NAME.match(self.text)
        assert named is not None, f"a block of yaml begins with `# NAME.yaml`:\n{self.text}"
        return named["name"]


def blocks(cookbook: Path) -> Iterator[Block]:
    for found in BLOCK.finditer(cookbook.read_text(encoding="utf-8")):
        yield Block(found["kind"], found["text"])


def without_numbers(text: str) -> set[str]:
    """Its lines, with one 0 for every number and every name made of digits, and one space for many."""
    text = re.sub(r"\b[0-9a-f]{6,16}\b|\d[\d.,]*(e-?\d+)?", "0", text)
    return {" ".join(line.split()) for line in text.splitlines()}


@pytest.mark.parametrize("cookbook", COOKBOOKS, ids=lambda path: path.stem)
def test_its_jobs_are_valid(cookbook: Path) -> None:
    text = cookbook.read_text(encoding="utf-8")
    jobs = [block for block in blocks(cookbook) if block.kind == "yaml"]
    assert jobs and all(parse_job(job.text, job.file_name).job for job in jobs)
    assert "**You learn**" in text and "**It takes**" in text
    assert f"({cookbook.name})" in INDEX.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_the_readme(readme_shell: Shell) -> None:
    outputs = readme_shell.outputs
    assert set(outputs) == {
        *("validate", "prepare", "preview", "train", "checkpoints", "generate", "chat", "export", "verify"),
        *("configs", "schema"),
    }
    rows = [json.loads(line) for line in outputs["preview"].stdout.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert all(row["input_ids"][: len(row["prompt"]["input_ids"])] == row["prompt"]["input_ids"] for row in rows)
    assert (readme_shell.folder / "build" / "quickstart" / "preview.html").is_file()
    assert outputs["checkpoints"].stdout.count("complete") >= 1
    assert "Paris" in outputs["generate"].stdout
    assert "Paris" in outputs["chat"].stdout
    assert "equal" in outputs["verify"].stdout
    assert (readme_shell.folder / "build" / "capitals" / "model.safetensors").is_file()
    assert "best checkpoint: " in outputs["train"].stderr
    assert "llmforge chat" in outputs["train"].stderr


@pytest.mark.slow
@pytest.mark.parametrize("cookbook", COOKBOOKS, ids=lambda path: path.stem)
def test_its_commands_print_what_it_shows(readme_shell: Shell, cookbook: Path) -> None:
    printed: set[str] = set()
    for block in blocks(cookbook):
        match block.kind:
            case "yaml":
                (readme_shell.folder / block.file_name).write_text(block.text, encoding="utf-8")
            case "sh":
                done = readme_shell.run(block.text)
                assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
                printed = without_numbers(done.stdout + done.stderr)
            case "text":
                assert without_numbers(block.text) - printed <= {"...", ""}, printed
