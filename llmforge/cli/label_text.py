"""What a classifier says of a prompt, for the terminal."""

from collections.abc import Mapping

from llmforge.metrics.summary import printable_text


def probabilities_text(probabilities: Mapping[str, float]) -> str:
    """The labels with their probabilities, the likeliest first."""
    likeliest_first = sorted(probabilities.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{printable_text(label)} {probability:.4f}" for label, probability in likeliest_first)
