"""The first rows of a job, rendered for people."""

from pathlib import Path

from llmforge.config.job import JobConfig
from llmforge.dataset.preview import Piece, first_rows
from llmforge.models.folder import read_tokenizer_json

ROWS = """{"messages": []}
{"messages": [{"role": "user", "content": "Hi </s>"}, {"role": "assistant", "content": "Yes."}]}
{"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "No."}]}
"""


def test_the_first_good_rows_with_what_is_trained(tmp_path: Path, material: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    prompt_format = {
        "bos": "<s>", "system": "{instruction}", "user": "Q: {instruction}\n", "assistant": "A: {instruction}</s>",
        "trailing_assistant": "A:",
    }  # fmt: skip
    job = JobConfig.model_validate(
        {
            "model_id": "m",
            "train_path": str(path),
            "task": "instruction_tuning",
            "generation_config": {"prompt_format": prompt_format},
        }
    )
    (row,) = first_rows(job, read_tokenizer_json(material / "models" / "stories260K-hf"), tmp_path, 1)
    assert row.place == f"{path}:2"
    assert "".join(piece.text for piece in row.pieces) == "<s>Q: Hi </s>\nA: Yes.</s>"
    assert [piece.text for piece in row.pieces if piece.trained] == [" ", "Yes.", "</s>"]
    assert [piece for piece in row.pieces if piece.is_control] == [
        Piece("<s>", trained=False, is_control=True),
        Piece("</s>", trained=True, is_control=True),
    ]
