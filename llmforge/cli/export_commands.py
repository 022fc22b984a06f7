"""`llmforge export` and `llmforge verify`: their options. What needs a model is imported when they run."""

from typing import Annotated, Literal, Optional

import typer

from llmforge.cli.places import cache_folder

ExportPrecision = Literal["bf16", "fp16", "fp32", "same"]


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or a checkpoint, local or s3://.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A new folder, local or s3://.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a checkpoint's name.")] = "best",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, not merged into its base.")] = False,
    dtype: Annotated[ExportPrecision, typer.Option(help="Of the weights; same: as in training.")] = "same",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of weights.")] = "5GB",
    to: Annotated[Optional[list[str]], typer.Option(help="vllm, ray-serve-llm, ollama; may be repeated.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option("--force", help="Replace what stands at OUTPUT.")] = False,
) -> None:
    """Write a run as a Hugging Face folder with chat template, stops and model card, proven before it appears."""
    from llmforge.cli.export import run_export
    from llmforge.export.folder import ExportRequest

    targets = tuple(to or ())
    print(run_export(ExportRequest(source, output, checkpoint, adapter, dtype, max_shard_size, targets, force)))


def verify(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or an export, local or s3://.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a checkpoint's name.")] = "best",
    num_prompts: Annotated[int, typer.Option(min=1, metavar="N", help="How many rows.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """Compare prompt ids: llmforge, the chat template, a server, the prepared data; exit code 1 where they differ."""
    from llmforge.inference.find import find_trained_model

    found = find_trained_model(source, checkpoint, cache_folder())
    from llmforge.cli.verify import run_verify

    if not run_verify(found, num_prompts=num_prompts, as_json=as_json):
        raise typer.Exit(1)
