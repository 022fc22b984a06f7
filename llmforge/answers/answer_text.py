"""Generated tokens to the text of an answer, piece by piece.

In: token ids as a model generates them. Out: pieces of text that, joined, are the content of the answer as it would
stand in a training row: no character is shown before all its tokens are there, spaces stay, and what the assistant
template puts before the content is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

UNFINISHED = "\ufffd"
"""What decoders give for bytes that are no character, or not yet."""

Decode = Callable[[Sequence[int]], str]


class TokenDecoder:
    """The text of tokens, as soon as it is sure.

    Decoders drop the space that begins a text, so tokens are decoded behind others: first behind `context`, the tokens
    of any word, then behind those of the piece before.
    """

    def __init__(self, decode: Decode, context: Sequence[int]) -> None:
        self._decode = decode
        self._context = context
        self._fresh: list[int] = []
        self._known = decode(context)

    def push(self, token: int) -> str:
        """The text that is sure by now, empty for none."""
        self._fresh.append(token)
        text = self._decode([*self._context, *self._fresh])
        if len(text) <= len(self._known) or text.endswith(UNFINISHED):
            return ""
        piece = text[len(self._known) :]
        self._context, self._fresh = self._fresh, []
        self._known = self._decode(self._context)
        return piece

    def rest(self) -> str:
        """What was not sure yet, where nothing follows."""
        return self._decode([*self._context, *self._fresh])[len(self._known) :]


class HeadCut:
    """Leaves out `head` where the text begins with it."""

    def __init__(self, head: str) -> None:
        self._head = head
        self._held = ""
        self._is_past = False

    def push(self, piece: str) -> str:
        """The text that is known to stand behind the head."""
        if self._is_past:
            return piece
        self._held += piece
        if self._head.startswith(self._held):
            return ""
        self._is_past = True
        return self._held.removeprefix(self._head)

    def rest(self) -> str:
        """What was held back, where nothing follows."""
        return "" if self._is_past else self._held.removeprefix(self._head)


def decode_tokens(tokens: Iterable[int], decode: Decode, context: Sequence[int]) -> Iterator[str]:
    """The text of tokens, as soon as it is sure: see `TokenDecoder`."""
    decoder = TokenDecoder(decode, context)
    for token in tokens:
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.rest():
        yield rest


def without_head(pieces: Iterable[str], head: str) -> Iterator[str]:
    """Leave out `head` where the text begins with it."""
    cut = HeadCut(head)
    for piece in pieces:
        if shown := cut.push(piece):
            yield shown
    if rest := cut.rest():
        yield rest
