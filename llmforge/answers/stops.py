"""When an answer ends: stop tokens and stop texts, and cutting a stream of tokens or of text where one begins.

In: a prompt format and a `GenerationConfig`. Out: the tokens and texts that end an answer, and filters over what a
model generates. The terminator of the assistant template always counts. It runs no model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.prompt.render import compile_templates


@dataclass(frozen=True)
class Stops:
    """What ends an answer; no part of a stop belongs to the answer."""

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


class TokenCut:
    """Passes tokens on until a stop token or sequence is complete, without any of it."""

    def __init__(self, stops: Stops) -> None:
        self._sequences = (*((token,) for token in stops.token_ids), *stops.token_sequences)
        self._held: tuple[int, ...] = ()
        self.is_complete = False
        """Whether a stop has come: nothing may follow."""

    def push(self, token: int) -> tuple[int, ...]:
        """The tokens that are now known to begin no stop."""
        held = (*self._held, token)
        complete = max((len(stop) for stop in self._sequences if held[-len(stop) :] == stop), default=0)
        keep = complete or max((_overlap(held, stop) for stop in self._sequences), default=0)
        self.is_complete = complete > 0
        self._held = () if complete else held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> tuple[int, ...]:
        """What was held back, where nothing follows."""
        return self._held


class TextCut:
    """Passes text on until a stop text is complete, without any of it, however the pieces are split."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._texts = texts
        self._held = ""
        self.is_complete = False
        """Whether a stop has come: nothing may follow."""

    def push(self, piece: str) -> str:
        """The text that is now known to begin no stop."""
        held = self._held + piece
        found = [(held.index(text) + len(text), held.index(text)) for text in self._texts if text in held]
        keep = len(held) - min(found)[1] if found else max((_overlap(held, text) for text in self._texts), default=0)
        self.is_complete = bool(found)
        self._held = "" if found else held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, where nothing follows."""
        return self._held


def cut_tokens(tokens: Iterable[int], stops: Stops) -> Iterator[int]:
    """Pass tokens on until a stop token or sequence is complete, without any of it."""
    cut = TokenCut(stops)
    for token in tokens:
        yield from cut.push(token)
        if cut.is_complete:
            return
    yield from cut.rest()


def cut_text(pieces: Iterable[str], texts: tuple[str, ...]) -> Iterator[str]:
    """Pass pieces of text on until a stop text is complete, without any of it, however the pieces are split."""
    cut = TextCut(texts)
    for piece in pieces:
        if shown := cut.push(piece):
            yield shown
        if cut.is_complete:
            return
    if rest := cut.rest():
        yield rest


def _end_of(terminator: str, special_ids: dict[str, int]) -> str:
    """The special token at the end of a terminator, or all of its text where there is none."""
    return next((token for token in special_ids if terminator.endswith(token)), terminator)


def _overlap(held: str | tuple[int, ...], stop: str | tuple[int, ...]) -> int:
    """Length of the longest end of `held` that begins `stop` and is not all of it."""
    return next((size for size in range(min(len(held), len(stop) - 1), 0, -1) if held[-size:] == stop[:size]), 0)
