"""`llmforge export`: a run as a folder that other programs serve."""

from __future__ import annotations

import logging

from llmforge.cli.places import cache_folder
from llmforge.export.folder import ExportRequest, export_run
from llmforge.inference.load import quiet_transformers


def run_export(request: ExportRequest) -> str:
    """Export, and say what stands there now. Raises `LlmforgeError`."""
    quiet_transformers()
    # Saving imports DeepSpeed, by way of accelerate, and that would tell which device it has found.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    result = export_run(request, cache_folder())
    lines = [
        f"exported {result.checkpoint} to {result.uri} ({result.size_bytes / 2**20:,.1f} MiB)",
        f"prompts: {result.verification.describe()}",
    ]
    if result.weights is not None:
        lines.append(f"weights: {result.weights.describe()}")
    if result.launch_files:
        lines.append(f"launch files: {', '.join(result.launch_files)}")
    return "\n".join(lines)
