"""The options of `llmforge generate` and `llmforge chat`, as `main.py` registers them."""

from typing import Annotated, Literal, Optional

import typer

Source = Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or an export, local or s3://.")]
Checkpoint = Annotated[str, typer.Option(help="best, latest, or a checkpoint's name.")]
MaxTokens = Annotated[Optional[int], typer.Option(min=1, help="Longest answer.")]  # noqa: UP045 - see main.py
Temperature = Annotated[Optional[float], typer.Option(min=0, max=10, help="0 takes the likeliest token.")]  # noqa: UP045
TopP = Annotated[Optional[float], typer.Option(help="Share of the probability to sample from; 1 is all.")]  # noqa: UP045
TopK = Annotated[Optional[int], typer.Option(min=0, help="So many tokens to sample from; 0 is all.")]  # noqa: UP045
MinP = Annotated[Optional[float], typer.Option(min=0, max=1, help="Fraction of the likeliest token to reach.")]  # noqa: UP045
Seed = Annotated[Optional[int], typer.Option(help="The same seed, the same answers.")]  # noqa: UP045
Threshold = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Of a classifier with two labels: probability from which it decides for the positive one."),
]
Stop = Annotated[Optional[list[str]], typer.Option(help="Text that ends an answer; may be repeated.")]  # noqa: UP045


def generate(  # noqa: PLR0913 - the options of a command
    source: Source,
    prompt: Annotated[Optional[str], typer.Option(help="One user message.")] = None,  # noqa: UP045
    messages: Annotated[Optional[str], typer.Option(help="JSONL of `messages`, local or s3://.")] = None,  # noqa: UP045
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A file, or a folder of parts (s3://, or with a / behind it); goes on where it was."),
    ] = None,
    checkpoint: Checkpoint = "best",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    threshold: Threshold = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Rows at a time; default: by memory.")] = None,  # noqa: UP045
    num_workers: Annotated[Optional[int], typer.Option(min=1, help="Workers on a Ray cluster.")] = None,  # noqa: UP045
    on_invalid: Annotated[Literal["fail", "skip"], typer.Option(help="What rows that are no prompt do.")] = "fail",
) -> None:
    """Answer a prompt or a file of prompts with a trained model; only answers go to stdout."""
    from llmforge.answers.sampling import Sampling
    from llmforge.cli.generate import GenerateOptions, run_generate

    options = GenerateOptions(
        source, checkpoint, prompt, messages, output, on_invalid, batch_size, num_workers, threshold
    )
    run_generate(options, Sampling(max_tokens, temperature, top_p, top_k, min_p, seed, tuple(stop or ())))


def chat(  # noqa: PLR0913 - the options of a command
    source: Source,
    checkpoint: Checkpoint = "best",
    system: Annotated[Optional[str], typer.Option(help="System message.")] = None,  # noqa: UP045
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    threshold: Threshold = None,
) -> None:
    """Talk to a trained model; /help lists what can be said to the program itself."""
    from llmforge.answers.sampling import Sampling
    from llmforge.cli.chat import run_chat

    sampling = Sampling(max_tokens, temperature, top_p, top_k, min_p, seed)
    run_chat(source, checkpoint, system, sampling, threshold)
