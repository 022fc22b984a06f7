"""Generated tokens to the text of an answer, piece by piece.

In: token ids as a model generates them. Out: pieces of text that, joined, are the content of the answer as it would
stand in a training row: no character is shown before all its tokens are there, spaces stay, and what the assistant
template puts before the content is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

UNFINISHED = "\ufffd"
"""What decoders give for bytes that are no character, or not yet."""

Decode = Callable[[Sequence[int]], str]


def decode_tokens(tokens: Iterable[int], decode: Decode, context: Sequence[int]) -> Iterator[str]:
    """The text of tokens, as soon as it is sure.

    Decoders drop the space that begins a text, so tokens are decoded behind others: first behind `context`, the tokens
    of any word, then behind those of the piece before.
    """
    fresh: list[int] = []
    known = decode(context)
    for token in tokens:
        fresh.append(token)
        text = decode([*context, *fresh])
        if len(text) > len(known) and not text.endswith(UNFINISHED):
            yield text[len(known) :]
            context, fresh = fresh, []
            known = decode(context)
    rest = decode([*context, *fresh])[len(known) :]
    if rest:
        yield rest


def without_head(pieces: Iterable[str], head: str) -> Iterator[str]:
    """Leave out `head` where the text begins with it."""
    pieces = iter(pieces)
    text = ""
    for piece in pieces:
        text += piece
        if not head.startswith(text):
            break
    text = text.removeprefix(head)
    if text:
        yield text
    yield from pieces
