"""`llmforge verify`: whether other programs make the ids of a run's prompts that training made.

With `--json` one object on stdout: `{"is_equal": ..., "origin": ..., "tallies": [...], "findings": [...]}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console

from llmforge.cli.places import cache_folder
from llmforge.cli.verify_text import VerificationPrinter
from llmforge.export.prompts import proof_rows
from llmforge.export.stored import stored_examples
from llmforge.export.verify import fetch_tokenizer, verify
from llmforge.inference.find import TrainedSource
from llmforge.inference.load import quiet_transformers


def run_verify(trained: TrainedSource, *, num_prompts: int, as_json: bool) -> bool:
    """Compare and print; whether nothing differs that should not. Raises `LlmforgeError`."""
    quiet_transformers()
    cache = cache_folder()
    folder = fetch_tokenizer(trained, cache)
    stored = stored_examples(trained.uri, trained.job, trained.checkpoint, cache)
    verification = verify(folder, trained.job, proof_rows(trained.job, num_prompts, cache), stored)
    if as_json:
        print(json.dumps({"is_equal": verification.is_equal, **asdict(verification)}, ensure_ascii=False))
    else:
        VerificationPrinter(Console(highlight=False)).print(verification)
    return verification.is_equal
