"""Rows that hold their text themselves, as segments."""

from __future__ import annotations

from llmforge.prompt.document import Document, plain_text, render_document, texts_of
from llmforge.prompt.messages import parse_conversation
from llmforge.prompt.render import Segment
from tests.prompt.formats import VERBATIM


def test_plain_text_stands_between_a_begin_and_a_trained_end() -> None:
    text = Segment(" a </s>", 1.0, is_template=False, message=0)
    assert render_document(plain_text(" a </s>"), "<s>", "</s>") == [Segment("<s>"), text, Segment("</s>", 1.0)]
    assert render_document(plain_text(" a </s>"), "", "") == [text]


def test_rendered_text_stays_as_it_is() -> None:
    segments = (Segment("<s>a", message=0), Segment("b</s>", 1.0, starts_answer=True, message=1))
    assert render_document(Document(segments), "<s>", "</s>") == list(segments)


def test_texts_of_rows() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert texts_of(parse_conversation(messages, VERBATIM)) == ["a", "b"]
    assert texts_of(plain_text("c")) == ["c"]
    assert texts_of(Document((Segment("d"), Segment("e", 1.0)))) == ["d", "e"]
