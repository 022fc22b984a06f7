"""Many prompts answered together on the device.

In: prompts as token ids, with the room that each leaves for its answer. Out: `Answer`s, batch after batch. Prompts of
like length stand in one batch, padded on the left; a row ends by its own stops, room and random numbers, so its answer
does not depend on its neighbours (beyond the rounding of the device). It knows nothing of messages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from llmforge.answers.answer_format import AnswerFormat
from llmforge.answers.draw import generate_arguments
from llmforge.answers.row_ends import RowEnds
from llmforge.answers.sampling import Sampling

CPU_TOKENS = 16_384
"""Beyond it a batch becomes no faster on a CPU."""
MOST_GPU_TOKENS = 262_144
_CACHE_SHARE = 0.5
"""Of the free memory; the rest is for the activations of the prompts, and for what transformers copies."""
_STEADY_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings that are the same at a position whatever positions its neighbours have."""

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    ids: list[int]
    room: int
    """Most tokens of its answer."""
    index: int
    """Its place in the input, which also tells its random numbers from those of others."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote to one prompt."""

    index: int
    text: str
    num_tokens: int
    """With those of the stop."""
    is_complete: bool
    """Ended by a stop, and not for lack of room."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, where the model is a classifier; the text is the one decided for."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be."""

    num_rows: int | None = None
    num_tokens: int | None = None
    """Rows x (longest prompt + longest answer). None: what the memory of the device holds."""


@dataclass(frozen=True)
class Pace:
    """How a batch goes on from token to token."""

    is_shared: bool = False
    """Whether every rank answers a batch of its own at the same time, and all go on until the last has ended: where
    weights are partitioned over them, each pass over the model needs all."""
    on_token: Callable[[], None] = lambda: None
    """Called with every token of the batch."""


ALONE = Pace()


def answer_prompts(
    model: PreTrainedModel,
    answer_format: AnswerFormat,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    limits: BatchLimits,
) -> Iterator[list[Answer]]:
    """The answers of one batch after the other, those to the longest prompts first."""
    num_tokens = limits.num_tokens or tokens_that_fit(model)
    limits = BatchLimits(limits.num_rows, num_tokens)
    for batch in plan_batches(prompts, limits, mixes_rooms=_bears_any_position(model)):
        yield answer_batch(model, answer_format, batch, sampling)


def plan_batches(prompts: Sequence[Prompt], limits: BatchLimits, *, mixes_rooms: bool) -> list[list[Prompt]]:
    """Prompts of like length together, the longest first; a prompt that alone exceeds the limit is a batch of its own.

    Unless the model `mixes_rooms`, those of a batch have the same room: a row that has used its own up goes on, unread,
    until its neighbours are done, at positions that a model with a table of positions does not have.
    """
    batches: list[list[Prompt]] = []
    width = room = 0
    for prompt in sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.room, prompt.index)):
        fits = bool(batches) and (mixes_rooms or prompt.room == room)
        num_rows = len(batches[-1]) + 1 if fits else 1
        widest_room = max(room, prompt.room)
        fits = fits and (limits.num_rows is None or num_rows <= limits.num_rows)
        fits = fits and (limits.num_tokens is None or num_rows * (width + widest_room) <= limits.num_tokens)
        if fits:
            batches[-1].append(prompt)
            room = widest_room
        else:
            batches.append([prompt])
            width, room = len(prompt.ids), prompt.room
    return batches


def answer_batch(
    model: PreTrainedModel,
    answer_format: AnswerFormat,
    batch: list[Prompt],
    sampling: Sampling,
    pace: Pace = ALONE,
) -> list[Answer]:
    """Where the memory of the device does not suffice, in two halves, unless other ranks keep in step."""

    def answer(part: list[Prompt]) -> list[Answer]:
        return _generate(model, answer_format, part, sampling, pace)

    return answer(batch) if pace.is_shared else in_halves(batch, answer)


def in_halves(batch: list[Prompt], answer: Callable[[list[Prompt]], list[_Found]]) -> list[_Found]:
    """The answers to a batch; where the memory of the device does not suffice, first those to one half of it."""
    try:
        return answer(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return in_halves(batch[:half], answer) + in_halves(batch[half:], answer)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of prompts of different lengths, each of shape (rows, longest)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _generate(
    model: PreTrainedModel, answer_format: AnswerFormat, batch: list[Prompt], sampling: Sampling, pace: Pace
) -> list[Answer]:
    input_ids, mask = left_padded([prompt.ids for prompt in batch])
    width = input_ids.shape[1]
    stops = answer_format.stops(sampling)
    rooms = torch.tensor([prompt.room for prompt in batch])
    ends = RowEnds(answer_format, stops, width, rooms.to(model.device))
    sampling = sampling.over(answer_format.generation)
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=int(rooms.max()),
        stopping_criteria=StoppingCriteriaList([ends, _OnToken(pace.on_token)]),
        pad_token_id=0,
        synced_gpus=pace.is_shared,
        **generate_arguments(sampling, model.device, [prompt.index for prompt in batch]),
    )
    answers = []
    rows = zip(batch, output[:, width:].tolist(), ends.lengths.tolist(), ends.is_stopped.tolist(), strict=True)
    for prompt, tokens, length, is_stopped in rows:
        text = "".join(answer_format.text(tokens[:length], stops))
        answers.append(Answer(prompt.index, text, length, is_stopped))
    return answers


class _OnToken(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Ends no row."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        self._on_token()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def tokens_that_fit(model: PreTrainedModel) -> int:
    """Tokens whose keys and values the memory of the device holds."""
    if model.device.type != "cuda":
        return CPU_TOKENS
    config = model.config.get_text_config()
    num_heads: int = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    bytes_per_token: int = 2 * config.num_hidden_layers * num_kv_heads * head_dim * model.dtype.itemsize
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    free_bytes += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return min(MOST_GPU_TOKENS, int(free_bytes * _CACHE_SHARE) // bytes_per_token)


def _bears_any_position(model: PreTrainedModel) -> bool:
    """Whether the model has no table of positions that could come to its end."""
    rotations = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    parts = [rotations, *rotations.values()]  # by kind of layer, in some families
    kinds = {part["rope_type"] for part in parts if isinstance(part, dict) and "rope_type" in part}
    return bool(kinds) and kinds <= _STEADY_ROTATIONS
