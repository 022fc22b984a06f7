"""Two lists of token ids side by side: whether they are equal, and if not, where they part, in words.

Plain ids and the texts of tokens go in; `Finding`s and a `Verification` come out. Which programs made the ids is not
known here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["chat template", "server", "prepared data"]
"""What is compared with our own rendering."""
Kind = Literal["difference", "refusal", "control text"]
"""`control text`: a message spells a control token, which llmforge keeps as text and others do not."""

_TOKENS_AROUND = 6

TokenTexts = Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True)
class TokensAround:
    """The tokens of one side where two lists of ids part."""

    before: tuple[str, ...]
    """The last ones that both share."""
    token: str | None
    """The first that differs; None where this side has ended."""
    token_id: int | None
    after: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One row that something else renders otherwise."""

    place: str
    way: Way
    kind: Kind
    reason: str
    """In words."""
    position: int | None = None
    """Of the first token that differs, counted from 0; None where there are no ids to compare."""
    ours: TokensAround | None = None
    theirs: TokensAround | None = None


@dataclass(frozen=True)
class Tally:
    """What came of one way of rendering."""

    way: Way
    num_equal: int
    num_different: int
    """Findings of the kinds `difference` and `refusal`."""
    num_control_text: int
    num_skipped: int = 0
    skipped_because: str = ""

    def describe(self) -> str:
        """One line."""
        parts = [f"{self.num_equal} equal", f"{self.num_different} different"]
        if self.num_control_text:
            parts.append(f"{self.num_control_text} differ only because a message spells a control token")
        if self.num_skipped:
            parts.append(f"{self.num_skipped} not compared: {self.skipped_because}")
        return f"{self.way}: {', '.join(parts)}"


@dataclass(frozen=True)
class Verification:
    """The whole comparison."""

    origin: str
    """Which rows were compared."""
    tallies: tuple[Tally, ...]
    findings: tuple[Finding, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs that should not."""
        return all(tally.num_different == 0 for tally in self.tallies)

    @property
    def first_difference(self) -> Finding | None:
        """The first that should not be."""
        return next((finding for finding in self.findings if finding.kind != "control text"), None)

    def describe(self) -> str:
        """One line for each way."""
        return "; ".join([self.origin, *(tally.describe() for tally in self.tallies)])


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first position at which two lists of ids differ; None where they are equal."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    shorter = min(len(ours), len(theirs))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)


def tokens_around(ids: Sequence[int], position: int, texts: TokenTexts) -> TokensAround:
    """One side of a difference at `position`."""
    token_id = ids[position] if position < len(ids) else None
    return TokensAround(
        before=tuple(texts(ids[max(0, position - _TOKENS_AROUND) : position])),
        token=None if token_id is None else texts([token_id])[0],
        token_id=token_id,
        after=tuple(texts(ids[position + 1 : position + 1 + _TOKENS_AROUND])),
    )


def compare_ids(
    place: str, way: Way, ours: Sequence[int], theirs: Sequence[int], texts: TokenTexts, spelled: Sequence[str]
) -> Finding | None:
    """What differs, if anything; `spelled`: control tokens that the messages spell out as text."""
    position = first_difference(ours, theirs)
    if position is None:
        return None
    reason = f"token {position}"
    if spelled:
        reason = f"a message spells {', '.join(spelled)}: llmforge keeps it as text, {way} makes a control token of it"
    return Finding(
        place,
        way,
        "control text" if spelled else "difference",
        reason,
        position,
        tokens_around(ours, position, texts),
        tokens_around(theirs, position, texts),
    )


def tally(way: Way, num_rows: int, findings: Sequence[Finding], num_skipped: int = 0, because: str = "") -> Tally:
    """Counts of one way."""
    kinds = [finding.kind for finding in findings if finding.way == way]
    num_control_text = kinds.count("control text")
    return Tally(
        way=way,
        num_equal=num_rows - num_skipped - len(kinds),
        num_different=len(kinds) - num_control_text,
        num_control_text=num_control_text,
        num_skipped=num_skipped,
        skipped_because=because,
    )
