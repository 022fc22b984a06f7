"""`valid_fraction`: a row is held out for what it says, and for nothing else."""

import pytest

from llmforge.dataset.held_out import is_held_out
from llmforge.prompt.document import Document, TrainingRow, plain_text
from llmforge.prompt.messages import Conversation, Message
from llmforge.prompt.render import Segment


def conversation(text: str, *, weight: float = 1.0) -> Conversation:
    return Conversation((Message("user", "How much is it?"), Message("assistant", text, weight)))


def chosen(fraction: float, seed: int, num_rows: int = 20_000) -> set[int]:
    return {i for i in range(num_rows) if is_held_out([conversation(str(i))], fraction, seed)}


def test_the_rows_that_are_held_out_never_change() -> None:
    """Between versions of llmforge neither, or a run would be validated on what an earlier one was trained on.

    Those where `printf '[3,[[["user","How much is it?"],["assistant","%s"]]]]' $i | b2sum -l 64` begins below 0x40.
    """
    assert sorted(chosen(0.25, 3, 40)) == [2, 4, 7, 10, 12, 15, 17, 27, 28]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_the_fraction_is_kept(fraction: float) -> None:
    rows = chosen(fraction, 0)
    spread = (fraction * (1 - fraction) * 20_000) ** 0.5
    assert abs(len(rows) - fraction * 20_000) < 4 * spread
    assert abs(len(rows & chosen(fraction, 1)) - fraction * len(rows)) < 4 * spread  # seeds are independent
    assert rows <= chosen(min(fraction * 1.01, 1), 0)


def test_rows_with_the_same_text_are_on_the_same_side() -> None:
    for text in map(str, range(100)):
        sides = {is_held_out([conversation(text, weight=weight)], 0.5, 0) for weight in (0.0, 0.5, 1.0)}
        assert len(sides) == 1


def test_roles_borders_and_members_tell_rows_apart() -> None:
    """Rows that differ in one of them alone are drawn independently of each other."""

    def sides(row: int) -> tuple[bool, ...]:
        text = f"text {row}"
        system = Conversation((Message("system", "How much is it?"), *conversation(text).messages))
        members: list[list[TrainingRow]] = [
            [conversation(text)],
            [system],
            [conversation(text), conversation("less")],
            [plain_text(text)],
            [Document((Segment(text[:2]), Segment(text[2:])))],
        ]
        return tuple(is_held_out(row, 0.5, 0) for row in members)

    drawn = [sides(row) for row in range(200)]
    assert len(set(drawn)) == 2**5
