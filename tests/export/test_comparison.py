"""Where two lists of ids part, and how that is counted and shown."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from llmforge.cli.verify_text import VerificationPrinter
from llmforge.export.comparison import (
    Finding,
    TokensAround,
    Verification,
    compare_ids,
    first_difference,
    tally,
    tokens_around,
)


def names(ids: Sequence[int]) -> list[str]:
    return [f"t{token}" for token in ids]


@pytest.mark.parametrize(
    ("ours", "theirs", "position"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [1], 0)],
)
def test_the_first_difference(ours: list[int], theirs: list[int], position: int | None) -> None:
    assert first_difference(ours, theirs) == position


def test_the_tokens_around_it() -> None:
    ids = list(range(20))
    shown = tokens_around(ids, 10, names)
    assert shown == TokensAround(tuple(names(range(4, 10))), "t10", 10, tuple(names(range(11, 17))))
    assert tokens_around(ids, 20, names) == TokensAround(tuple(names(range(14, 20))), None, None, ())
    assert tokens_around([7], 0, names) == TokensAround((), "t7", 7, ())


def test_equal_ids_are_no_finding() -> None:
    assert compare_ids("row", "server", [1, 2], [1, 2], names, ["<s>"]) is None


def test_spelled_control_tokens_are_a_kind_of_their_own() -> None:
    plain = compare_ids("row", "server", [1, 2], [1, 3], names, [])
    spelled = compare_ids("row", "server", [1, 2], [1, 3], names, ["<s>"])
    assert plain is not None and spelled is not None
    assert (plain.kind, spelled.kind) == ("difference", "control text")
    assert spelled.reason == "a message spells <s>: llmforge keeps it as text, server makes a control token of it"


def verification(*findings: Finding) -> Verification:
    return Verification("4 rows", (tally("server", 4, findings, 1, "too long"),), findings)


DIFFERENT = compare_ids("a.jsonl:3", "server", [1, 2, 3], [1, 2, 4], names, [])
SPELLED = compare_ids("a.jsonl:4", "server", [1, 2], [1], names, ["<s>"])


def test_counts() -> None:
    assert DIFFERENT is not None and SPELLED is not None
    both = verification(SPELLED, DIFFERENT)
    assert both.tallies[0].describe() == (
        "server: 1 equal, 1 different, 1 differ only because a message spells a control token, 1 not compared: too long"
    )
    assert (both.is_equal, both.first_difference) == (False, DIFFERENT)
    assert (verification(SPELLED).is_equal, verification(SPELLED).first_difference) == (True, None)
    refused = verification(Finding("a", "server", "refusal", "no"))
    assert not refused.is_equal


def printed(shown: Verification) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    VerificationPrinter(console).print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_is_printed() -> None:
    assert DIFFERENT is not None
    assert printed(verification(DIFFERENT)).splitlines() == [
        "compared: 4 rows",
        "  server: 2 equal, 1 different, 1 not compared: too long",
        "different: a.jsonl:3 (server)",
        "  token 2",
        "       llmforge: [t1] [t2] >> [t3](3) << ",
        "         server: [t1] [t2] >> [t4](4) << ",
        "DIFFERENT",
    ]
    assert printed(verification()).splitlines()[-1] == "equal"
    assert SPELLED is not None
    told = printed(verification(SPELLED)).splitlines()
    assert told[2] == "control tokens spelled in a message, kept as text by llmforge only: a.jsonl:4 (server)"
    assert told[-1] == "equal, but where a message spells a control token"


def test_many_findings_are_cut_short() -> None:
    many = [Finding(f"a:{number}", "server", "refusal", "no \x1b[31mescape") for number in range(5)]
    text = printed(Verification("5 rows", (tally("server", 5, many),), tuple(many)))
    assert text.count("refused: a:") == 3
    assert "... and 2 more refused" in text
    assert "\x1b" not in text
