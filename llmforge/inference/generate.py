"""Answers from a trained model, by the prompt format and the stops that it was trained with.

In: a `TrainedModel` and messages. Out: the answer's text, whole or as a stream. The prompt is rendered and tokenized by
the same code as in training, so control tokens written in a message stay text.
"""

import threading
from collections.abc import Generator as PyGenerator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import DataError
from llmforge.inference.load import TrainedModel, load_trained_model
from llmforge.inference.stops import Stops, cut_at_stops, find_stops
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import render_prompt_segments


@dataclass(frozen=True)
class Sampling:
    """What may be asked for differently than the job said; None keeps the job's value."""

    max_tokens: int | None = None
    temperature: float | None = None


class Generator:
    """Answers one conversation at a time."""

    def __init__(self, trained: TrainedModel) -> None:
        self._trained = trained
        generation = trained.job.generation_config
        assert generation is not None
        self._generation: GenerationConfig = generation
        self._stops = find_stops(
            trained.job.prompt_format, generation, trained.encoder.special_ids, _end_of_sequence_ids(trained)
        )

    def parse(self, raw_messages: object) -> Conversation:
        """Check messages that end with the user's. Raises `DataError`."""
        return parse_conversation(raw_messages, self._trained.job.prompt_format, for_training=False)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids that the model is given."""
        segments = render_prompt_segments(conversation, self._trained.job.prompt_format)
        return self._trained.encoder.encode_prompt(segments)

    def answer(self, conversation: Conversation, sampling: Sampling) -> str:
        """The whole answer."""
        return "".join(self.stream(conversation, sampling))

    def stream(self, conversation: Conversation, sampling: Sampling) -> PyGenerator[str, None, None]:
        """The answer in pieces of text as they come. Leaving the iteration stops the model."""
        prompt = torch.tensor([self.prompt_ids(conversation)], device=self._trained.model.device)
        max_tokens = self._room(prompt.shape[1], sampling)
        streamer = TextIteratorStreamer(self._trained.decoder, skip_prompt=True, skip_special_tokens=True)
        cancel = threading.Event()
        arguments = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "streamer": streamer,
            "max_new_tokens": max_tokens,
            "stopping_criteria": StoppingCriteriaList([_StopAt(self._stops, cancel, prompt.shape[1])]),
            "eos_token_id": sorted(self._stops.token_ids),
            "pad_token_id": min(self._stops.token_ids, default=0),
            **self._sampling_arguments(sampling),
        }
        with ThreadPoolExecutor(1, "llmforge-generate") as executor:
            generation = executor.submit(self._trained.model.generate, **arguments)
            generation.add_done_callback(lambda _: streamer.end())  # an exception must not leave the reader waiting
            try:
                yield from cut_at_stops(streamer, self._stops.texts)
            finally:
                cancel.set()
                generation.result()

    def _room(self, num_prompt_tokens: int, sampling: Sampling) -> int:
        wanted = sampling.max_tokens or self._generation.max_tokens
        longest: int | None = getattr(self._trained.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is None:
            return wanted
        if num_prompt_tokens >= longest:
            raise DataError(f"the prompt has {num_prompt_tokens} tokens; the model takes at most {longest - 1}")
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


class _StopAt(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Ends a generation at token sequences, at stop texts that need no later token, and when it is cancelled."""

    def __init__(self, stops: Stops, cancel: threading.Event, num_prompt_tokens: int) -> None:
        self._sequences = stops.token_sequences
        self._cancel = cancel
        self._num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        answer = input_ids[0, self._num_prompt_tokens :].tolist()
        ends = any(tuple(answer[-len(sequence) :]) == sequence for sequence in self._sequences)
        stopped = ends or self._cancel.is_set()
        return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)


def open_generator(uri: str, checkpoint: str, cache_folder: Path) -> Generator:
    """Load a trained model for answering. Errors as in `load_trained_model`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Generator(load_trained_model(uri, checkpoint, cache_folder))


def _end_of_sequence_ids(trained: TrainedModel) -> Sequence[int]:
    configured = trained.model.generation_config.eos_token_id if trained.model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return [token for token in [*ids, trained.decoder.eos_token_id] if token is not None]
