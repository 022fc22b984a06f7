"""When an answer ends: stop tokens and stop texts, and cutting a stream of text where one begins.

In: a prompt format and a `GenerationConfig`. Out: the token ids and texts that end an answer, and a filter over pieces
of text. The terminator of the assistant template always counts. It runs no model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.prompt.render import compile_templates


@dataclass(frozen=True)
class Stops:
    """What ends an answer."""

    token_ids: frozenset[int]
    token_sequences: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


def find_stops(
    prompt_format: PromptFormat,
    generation: GenerationConfig,
    special_ids: dict[str, int],
    end_of_sequence_ids: Iterable[int],
) -> Stops:
    """The terminator of the format, the model's own end-of-sequence tokens, and the job's `stopping_sequences`."""
    token_ids = set(end_of_sequence_ids)
    token_sequences: list[tuple[int, ...]] = []
    texts: list[str] = []
    terminator = compile_templates(prompt_format, frozenset(special_ids)).terminator
    for stop in (_end_of(terminator, special_ids), *(generation.stopping_sequences or ())):
        match stop:
            case str() if stop in special_ids:
                token_ids.add(special_ids[stop])
            case str() if stop:
                texts.append(stop)
            case int():
                token_ids.add(stop)
            case tuple():
                token_sequences.append(stop)
    return Stops(frozenset(token_ids), tuple(token_sequences), tuple(texts))


def cut_at_stops(pieces: Iterable[str], texts: tuple[str, ...]) -> Iterator[str]:
    """Pass text on until a stop text begins; what may be the begin of one is held back until that is clear."""
    held = ""
    for piece in pieces:
        held += piece
        found = [held.index(text) for text in texts if text in held]
        if found:
            yield held[: min(found)]
            return
        keep = max((_overlap(held, text) for text in texts), default=0)
        if keep < len(held):
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _end_of(terminator: str, special_ids: dict[str, int]) -> str:
    """The special token at the end of a terminator, or all of its text where there is none."""
    return next((token for token in special_ids if terminator.endswith(token)), terminator)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
