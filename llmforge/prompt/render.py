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
from typing import Literal, NamedTuple

from llmforge.config.prompt_format import PromptFormat, template_parts
from llmforge.prompt.messages import Conversation, Message

Task = Literal["instruction_tuning", "causal_lm", "classification", "preference_tuning"]
TrainOn = Literal["all_turns", "last_turn"]


class Segment(NamedTuple):
    """A piece of rendered text."""

    text: str
    weight: float = 0.0
    """Factor of the loss of its tokens; 0 is text without loss."""
    is_template: bool = True
    """The format's own text, which may hold control tokens; the content of a message never does."""
    starts_answer: bool = False
    """Inference begins to generate where this segment begins: a seam that no token may straddle."""
    message: int | None = None
    """Which message of the conversation it belongs to, counted from 0; None for what stands around all messages."""

    @property
    def trained(self) -> bool:
        """Its tokens carry loss."""
        return self.weight > 0


class Piece(NamedTuple):
    """Part of a template: literal text, or the field that is put in its place."""

    text: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Templates:
    """A format cut into pieces once, so that rendering a row is only concatenation."""

    system: tuple[Piece, ...]
    user: tuple[Piece, ...]
    tool: tuple[Piece, ...]
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
    and what follows it (a `<s>` that opens the next turn) is not trained. Where only the last answer is trained, the
    text in front of it is that of its prompt, also under `system_in_last_user`. In a `classification` it is a label,
    which may be a control token, and the text ends with it.
    """
    turns = conversation.turns
    last_only = trains_last_only(task, train_on)
    weights = [message.weight for message in turns]
    if last_only:
        weights = [0.0] * (len(turns) - 1) + weights[-1:]
    templates = compile_templates(prompt_format, special_tokens)
    system_turn = _last_user_turn(turns) if last_only and prompt_format.system_in_last_user else 0
    trains_prompts, label = task == "causal_lm", []
    if task == "classification":
        label = _label(conversation, templates)
        conversation, weights = Conversation(conversation.messages[:-1]), weights[:-1]
    segments = _render(
        conversation, prompt_format, templates, weights, trains_prompts=trains_prompts, system_turn=system_turn
    )
    return [*segments, *label]


def trains_last_only(task: Task, train_on: TrainOn) -> bool:
    """Whether of a conversation the last answer alone carries loss."""
    return task in ("classification", "preference_tuning") or train_on == "last_turn"


def render_prompt(messages: Sequence[Message], prompt_format: PromptFormat) -> str:
    """The text that inference gives to the model: the conversation, and the cue that starts an answer."""
    return "".join(segment.text for segment in render_prompt_segments(Conversation(tuple(messages)), prompt_format))


def render_prompt_segments(conversation: Conversation, prompt_format: PromptFormat) -> list[Segment]:
    """As `render_prompt`, but cut so that control tokens written inside a message stay text when they are tokenized."""
    turns = conversation.turns
    system_turn = _last_user_turn(turns) if prompt_format.system_in_last_user else 0
    templates = compile_templates(prompt_format, frozenset())
    no_loss = [0.0] * len(turns)
    segments = _render(conversation, prompt_format, templates, no_loss, trains_prompts=False, system_turn=system_turn)
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
        tool=_pieces(prompt_format.tool or ""),
        cue=cue,
        answer_head=head[len(cue) :],
        terminator=tail[:end],
        answer_tail=tail[end:],
    )


def _render(
    conversation: Conversation,
    prompt_format: PromptFormat,
    templates: Templates,
    weights: Sequence[float],
    *,
    trains_prompts: bool,
    system_turn: int,
) -> list[Segment]:
    """Text = bos + turns. `weights`: of every turn; other text than an answer uses it only with `trains_prompts`."""
    system = _system(conversation, prompt_format, templates)
    first_turn = len(conversation.messages) - len(conversation.turns)
    if trains_prompts and system:
        system = _weighted(system, 1.0 if conversation.system is None else conversation.system.weight)
    segments = _literal(prompt_format.bos)
    if not prompt_format.system_in_user:
        segments += system
    for index, (message, weight) in enumerate(zip(conversation.turns, weights, strict=True)):
        content = _content(message.content, prompt_format, first_turn + index)
        if message.role == "assistant":
            turn = _answer(templates, content, weight)
        elif message.role == "tool":
            turn = _fill(templates.tool, {"instruction": [content]})
        else:
            turn = _fill(templates.user, {"instruction": [content], "system": system if index == system_turn else []})
        turn = _weighted(turn, weight) if trains_prompts else turn
        segments += [_owned(segment, first_turn + index) for segment in turn]
    return segments


def _answer(templates: Templates, content: Segment, weight: float) -> list[Segment]:
    head, terminator, tail = templates.answer_head, templates.terminator, templates.answer_tail
    segments = [Segment(templates.cue)] if templates.cue else []
    if head:
        segments.append(Segment(head, weight, True, True))
    segments.append(content._replace(weight=weight, starts_answer=not head))
    if terminator:
        segments.append(Segment(terminator, weight))
    if tail:
        segments.append(Segment(tail))
    return segments


def _label(conversation: Conversation, templates: Templates) -> list[Segment]:
    """The last answer up to its content: behind a label nothing is learnt."""
    message = conversation.messages[-1]
    answer = _answer(replace(templates, terminator="", answer_tail=""), Segment(message.content), message.weight)
    return [_owned(segment, len(conversation.messages) - 1) for segment in answer]


def _owned(segment: Segment, message: int) -> Segment:
    """A segment inside a turn; what stands there of another message, the system text, stays that message's."""
    return segment if segment.message is not None else segment._replace(message=message)


def _weighted(segments: Iterable[Segment], weight: float) -> list[Segment]:
    return [segment._replace(weight=weight) for segment in segments]


def _last_user_turn(turns: Sequence[Message]) -> int:
    return max(index for index, message in enumerate(turns) if message.role == "user")


def _system(conversation: Conversation, prompt_format: PromptFormat, templates: Templates) -> list[Segment]:
    """The rendered system message, or nothing where there is none."""
    message = conversation.system
    text = prompt_format.default_system_message if message is None else message.content
    content = _content(text, prompt_format, None if message is None else 0)
    if not content.text and not prompt_format.add_system_tags_even_if_message_is_empty:
        return []
    system = _fill(templates.system, {"instruction": [content]})
    return system if message is None else [segment._replace(message=0) for segment in system]


def _content(text: str, prompt_format: PromptFormat, message: int | None) -> Segment:
    text = text.strip() if prompt_format.strip_whitespace else text
    return Segment(text, is_template=prompt_format.parse_special_in_content, message=message)


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
