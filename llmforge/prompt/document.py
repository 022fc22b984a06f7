"""Documents: rows that hold their text themselves, where others hold messages.

In: the text of a row, or its pieces. Out: a `Document`, and the segments that are trained, as the renderer gives them
for a conversation. It holds no tokenizer: the token that ends a text is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.prompt.messages import Conversation
from llmforge.prompt.render import Segment


@dataclass(frozen=True, slots=True)
class Document:
    """Text of one row, in pieces that say what is trained; `Segment.message` is the number of the piece, from 0."""

    segments: tuple[Segment, ...]
    is_windowed: bool = False
    """Plain text: it gets a begin and an end, and where it is longer than the context it is cut into windows."""


TrainingRow = Conversation | Document
"""What a row of any format is read as."""


def plain_text(text: str) -> Document:
    """A text that is trained whole; what looks like a control token in it is text."""
    return Document((Segment(text, 1.0, is_template=False, message=0),), is_windowed=True)


def render_document(document: Document, begin: str, end: str) -> list[Segment]:
    """Pre-rendered text as it stands; plain text between the control tokens `begin` and `end`, of which the last is
    trained. Either may be empty."""
    if not document.is_windowed:
        return list(document.segments)
    before = [Segment(begin)] if begin else []
    behind = [Segment(end, 1.0)] if end else []
    return [*before, *document.segments, *behind]


def texts_of(row: TrainingRow) -> list[str]:
    """What the row itself says, without what a format or a tokenizer puts around it."""
    if isinstance(row, Conversation):
        return [message.content for message in row.messages]
    return [segment.text for segment in row.segments]
