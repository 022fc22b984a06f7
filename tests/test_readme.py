"""The README's commands, run as they stand there."""

import json

import pytest

from tests.readme_fixtures import Shell


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
