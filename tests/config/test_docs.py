"""docs/job-file.md is what the generator writes."""

from __future__ import annotations

import runpy
from pathlib import Path

from llmforge.config.keys import JobKeys

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))
    text = (ROOT / "docs" / "job-file.md").read_text(encoding="utf-8")
    assert text == generator["job_file_reference"](), "run: python scripts/generate_docs.py"
    assert generator["main"](["--check"]) == 0
    for key in JobKeys.model_fields:
        assert f"| `{key}` |" in text
