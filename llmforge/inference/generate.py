"""Answers from a trained model, by the prompt format and the stops that it was trained with.

In: a `TrainedModel` and messages. Out: the answer's text, whole or as a stream. The prompt is rendered and tokenized by
the same code as in training, so control tokens written in a message stay text.
"""

import queue
import threading
from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import DataError
from llmforge.inference.answer_text import decode_tokens, without_head
from llmforge.inference.load import TrainedModel, load_trained_model
from llmforge.inference.stops import cut_text, cut_tokens, find_stops
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import Segment, compile_templates, render_prompt_segments

_ANY_WORD = Segment("word")


@dataclass(frozen=True)
class Sampling:
    """What may be asked for differently than the job said; None keeps the job's value."""

    max_tokens: int | None = None
    temperature: float | None = None


class Generator:
    """Answers one conversation at a time."""

    def __init__(self, trained: TrainedModel) -> None:
        self._trained = trained
        self._format = trained.job.prompt_format
        generation = trained.job.generation_config
        assert generation is not None
        self._generation: GenerationConfig = generation
        special_ids = trained.encoder.special_ids
        self._stops = find_stops(self._format, generation, special_ids, trained.end_of_sequence_ids)
        self._decoding_context = trained.encoder.encode_prompt([_ANY_WORD])
        self._answer_head = self._decoded_answer_head()

    def parse(self, raw_messages: object) -> Conversation:
        """Check messages that end with the user's. Raises `DataError`."""
        return parse_conversation(raw_messages, self._format, for_training=False)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids that the model is given."""
        return self._trained.encoder.encode_prompt(render_prompt_segments(conversation, self._format))

    def answer(self, conversation: Conversation, sampling: Sampling) -> str:
        """The whole answer."""
        return "".join(self.stream(conversation, sampling))

    def stream(self, conversation: Conversation, sampling: Sampling) -> PyGenerator[str, None, None]:
        """The answer in pieces of text as they come. Leaving the iteration stops the model.

        Raises `DataError` where the prompt leaves no room for an answer.
        """
        prompt = self.prompt_ids(conversation)
        with self._generating(prompt, self._room(len(prompt), sampling), sampling) as tokens:
            pieces = decode_tokens(cut_tokens(tokens, self._stops), self._decode, self._decoding_context)
            yield from cut_text(without_head(pieces, self._answer_head), self._stops.texts)

    @contextmanager
    def _generating(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Iterator[Iterator[int]]:
        """Generated tokens while a thread runs the model; the end of the block ends the thread."""
        input_ids = torch.tensor([prompt], device=self._trained.model.device)
        tokens = _Tokens()
        left = threading.Event()
        arguments = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "streamer": tokens,
            "max_new_tokens": max_tokens,
            "stopping_criteria": StoppingCriteriaList([_WhenSet(left)]),
            "eos_token_id": sorted(self._stops.token_ids) or None,
            "pad_token_id": 0,
            **self._sampling_arguments(sampling),
        }
        with ThreadPoolExecutor(1, "llmforge-generate") as executor:
            generation = executor.submit(self._trained.model.generate, **arguments)
            generation.add_done_callback(lambda _: tokens.end())  # an exception must not leave the reader waiting
            try:
                yield iter(tokens)
            finally:
                left.set()
                generation.result()

    def _decoded_answer_head(self) -> str:
        """What a trained model puts before the content of an answer, as it comes out of the decoder."""
        head = compile_templates(self._format, self._trained.encoder.special_tokens).answer_head
        tokens = self._trained.encoder.encode_prompt([_ANY_WORD, Segment(head, starts_answer=True)])
        new_tokens = tokens[len(self._decoding_context) :]
        return "".join(decode_tokens(new_tokens, self._decode, self._decoding_context))

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._trained.decoder.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _room(self, num_prompt_tokens: int, sampling: Sampling) -> int:
        if num_prompt_tokens == 0:
            raise DataError("the prompt is empty: the format puts nothing around the messages, and they have no text")
        wanted = self._generation.max_tokens if sampling.max_tokens is None else sampling.max_tokens
        longest: int | None = getattr(self._trained.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is None:
            return wanted
        if num_prompt_tokens >= longest:
            raise DataError(
                f"the prompt has {num_prompt_tokens} tokens; the model takes at most {longest - 1}, to leave room for "
                "an answer: shorten the messages"
            )
        return min(wanted, longest - num_prompt_tokens)

    def _sampling_arguments(self, sampling: Sampling) -> dict[str, object]:
        temperature = self._generation.temperature if sampling.temperature is None else sampling.temperature
        if temperature == 0:
            return {"do_sample": False}
        chosen = {name: getattr(self._generation, name) for name in ("top_p", "top_k", "min_p")}
        return {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0,  # transformers' own default would be 50
            **{name: value for name, value in chosen.items() if value is not None},
        }


class _Tokens(BaseStreamer):  # type: ignore[misc] # transformers is untyped here
    """Tokens handed from the thread that generates to the one that reads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._prompt_has_come = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with every token."""
        if self._prompt_has_come:
            self._queue.put(value.flatten().tolist())
        self._prompt_has_come = True

    def end(self) -> None:
        """Called when nothing follows."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        """All generated tokens, without the prompt."""
        for tokens in iter(self._queue.get, None):
            yield from tokens


class _WhenSet(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Ends a generation whose reader has left."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._left.is_set(), dtype=torch.bool, device=input_ids.device)


def open_generator(uri: str, checkpoint: str, cache_folder: Path) -> Generator:
    """Load a trained model for answering. Errors as in `load_trained_model`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Generator(load_trained_model(uri, checkpoint, cache_folder))
