"""The one renderer: a conversation becomes text that already knows what is trained.

In: a `Conversation` and a `PromptFormat`. Out: `Segment`s, whose texts joined are exactly what the model sees; each
says whether it carries loss, whether it is the format's own text (only that may become control tokens), and whether an
answer starts there (where the prompt of inference ends). Training, evaluation, preview, generation and the exported
chat template share this code. It holds no tokenizer: the strings of the special tokens are handed in, because they
decide where a turn ends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from llmforge.config.prompt_format import PromptFormat, template_parts
from llmforge.prompt.messages import Conversation, Message

Task = Literal["instruction_tuning", "causal_lm"]
TrainOn = Literal["all_turns", "last_turn"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of rendered text."""

    text: str
    trained: bool = False
    """Its tokens carry loss."""
    is_template: bool = True
    """The format's own text, which may hold control tokens; the content of a message never does."""
    starts_answer: bool = False
    """Inference begins to generate where this segment begins: a seam that no token may straddle."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a template: literal text, or the field that is put in its place."""

    text: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Templates:
    """A format cut into pieces once, so that rendering a row is only concatenation."""

    system: tuple[Piece, ...]
    user: tuple[Piece, ...]
    cue: str
    """Begin of the assistant template that belongs to the prompt (`trailing_assistant`)."""
    answer_head: str
    """The rest of the assistant template up to the content."""
    terminator: str
    """Trained text behind the content: up to and including the first special token."""
    answer_tail: str
    """What follows the terminator and is never trained as an answer."""


def render(
    conversation: Conversation,
    prompt_format: PromptFormat,
    *,
    special_tokens: frozenset[str] = frozenset(),
    task: Task = "instruction_tuning",
    train_on: TrainOn = "all_turns",
) -> list[Segment]:
    """Render a training example.

    `special_tokens` are the control tokens of the tokenizer: the first one behind the content ends an assistant turn,
    and what follows it (a `<s>` that opens the next turn) is not trained.
    """
    last = len(conversation.turns) - 1
    trains = [
        message.trained and (train_on == "all_turns" or index == last)
        for index, message in enumerate(conversation.turns)
    ]
    templates = compile_templates(prompt_format, special_tokens)
    trains_prompts = task == "causal_lm"
    return _render(conversation, prompt_format, templates, trains, trains_prompts=trains_prompts, system_turn=0)


def render_prompt(messages: Sequence[Message], prompt_format: PromptFormat) -> str:
    """The text that inference gives to the model: the conversation, and the cue that starts an answer."""
    return "".join(segment.text for segment in render_prompt_segments(Conversation(tuple(messages)), prompt_format))


def render_prompt_segments(conversation: Conversation, prompt_format: PromptFormat) -> list[Segment]:
    """As `render_prompt`, but cut so that control tokens written inside a message stay text when they are tokenized."""
    turns = conversation.turns
    system_turn = len(turns) - 1 if prompt_format.system_in_last_user else 0
    templates = compile_templates(prompt_format, frozenset())
    nothing = [False] * len(turns)
    segments = _render(conversation, prompt_format, templates, nothing, trains_prompts=False, system_turn=system_turn)
    return [*segments, *_literal(prompt_format.trailing_assistant)]


@lru_cache(maxsize=64)
def compile_templates(prompt_format: PromptFormat, special_tokens: frozenset[str]) -> Templates:
    """Cut a format into pieces."""
    assistant = _pieces(prompt_format.assistant)
    content = next(index for index, piece in enumerate(assistant) if piece.field is not None)
    head = "".join(piece.text for piece in assistant[:content])
    tail = "".join(piece.text for piece in assistant[content + 1 :])
    cue = prompt_format.trailing_assistant if head.startswith(prompt_format.trailing_assistant) else ""
    end = _end_of_first(special_tokens, tail)
    return Templates(
        system=_pieces(prompt_format.system),
        user=_pieces(prompt_format.user),
        cue=cue,
        answer_head=head[len(cue) :],
        terminator=tail[:end],
        answer_tail=tail[end:],
    )


def _render(
    conversation: Conversation,
    prompt_format: PromptFormat,
    templates: Templates,
    trains: Sequence[bool],
    *,
    trains_prompts: bool,
    system_turn: int,
) -> list[Segment]:
    """Text = bos + turns. `trains`: for every turn, whether it may carry loss; a user turn, and what stands around an
    answer, do so only with `trains_prompts`."""
    system_content = _system_content(conversation, prompt_format)
    system: list[Segment] = []
    if system_content is not None:
        system = _fill(templates.system, {"instruction": _content(system_content, prompt_format)})
        system = _trained(system) if trains_prompts else system
    segments = _literal(prompt_format.bos)
    if not prompt_format.system_in_user:
        segments += system
    for index, (message, trained) in enumerate(zip(conversation.turns, trains, strict=True)):
        content = _content(message.content, prompt_format)
        if message.role == "user":
            turn = _fill(templates.user, {"instruction": content, "system": system if index == system_turn else []})
        else:
            turn = _answer(templates, content, trained=trained)
        segments += _trained(turn) if trained and trains_prompts else turn
    return segments


def _answer(templates: Templates, content: list[Segment], *, trained: bool) -> list[Segment]:
    target = [*_literal(templates.answer_head), *content, *_literal(templates.terminator)]
    target[0] = replace(target[0], starts_answer=True)
    target = _trained(target) if trained else target
    return [*_literal(templates.cue), *target, *_literal(templates.answer_tail)]


def _trained(segments: Iterable[Segment]) -> list[Segment]:
    return [replace(segment, trained=True) for segment in segments]


def _content(text: str, prompt_format: PromptFormat) -> list[Segment]:
    text = text.strip() if prompt_format.strip_whitespace else text
    return [Segment(text, is_template=prompt_format.parse_special_in_content)]


def _system_content(conversation: Conversation, prompt_format: PromptFormat) -> str | None:
    message = conversation.system
    content = prompt_format.default_system_message if message is None else message.content
    if prompt_format.strip_whitespace:
        content = content.strip()
    return content if content or prompt_format.add_system_tags_even_if_message_is_empty else None


def _fill(pieces: Iterable[Piece], fields: Mapping[str, list[Segment]]) -> list[Segment]:
    filled: list[Segment] = []
    for piece in pieces:
        filled += _literal(piece.text) if piece.field is None else fields[piece.field]
    return filled


def _literal(text: str) -> list[Segment]:
    return [Segment(text)] if text else []


def _pieces(template: str) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for text, field in template_parts(template):
        pieces += [Piece(text)] if text else []
        pieces += [Piece("", field)] if field is not None else []
    return tuple(pieces)


def _end_of_first(special_tokens: frozenset[str], text: str) -> int:
    """Where the first special token of `text` ends; the end of `text` if it holds none."""
    found = [(text.find(token), -len(token)) for token in special_tokens if token and token in text]
    if not found:
        return len(text)
    start, negative_length = min(found)
    return start - negative_length
