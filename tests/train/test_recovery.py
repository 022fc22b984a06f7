"""Which save of a dead worker group can still be made a checkpoint, and who uploads what of it."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from llmforge.checkpoint.names import step_of
from llmforge.checkpoint.records import UnfinishedCheckpoint
from llmforge.train.recovery import Adoption, Findings, plan_adoption

A, B, C = "step-00000010-3fa29c01", "step-00000020-3fa29c01", "step-00000030-3fa29c01"


def unfinished(name: str, *uploaded: int, world_size: int | None = 2) -> UnfinishedCheckpoint:
    return UnfinishedCheckpoint(
        name=name,
        step=step_of(name),
        world_size=world_size,
        uploaded_ranks=frozenset(uploaded),
        num_files=3,
        size_bytes=100,
        newest_at=datetime(2026, 11, 1, tzinfo=timezone.utc),
    )


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([Findings(()), Findings(())], None),
        ([Findings(((A, 0, 2),)), Findings(())], None),
        ([Findings(((A, 0, 2),)), Findings(((A, 1, 2),))], Adoption(A, ((0, 0), (1, 1)))),
        ([Findings(((A, 0, 2), (A, 1, 2))), Findings(((A, 0, 2), (A, 1, 2)))], Adoption(A, ((0, 0), (0, 1)))),
        ([Findings((), (unfinished(A, 0),)), Findings(((A, 1, 2),))], Adoption(A, ((1, 1),))),
        ([Findings(((A, 0, 2),), (unfinished(A, 1),)), Findings(())], Adoption(A, ((0, 0),))),
        ([Findings((), (unfinished(A, 0, 1),))], Adoption(A, ())),
        ([Findings((), (unfinished(A, 0, world_size=None),))], None),
        ([Findings(((A, 0, 1), (B, 0, 1)))], Adoption(B, ((0, 0),))),
        ([Findings(((A, 0, 1), (B, 0, 2), (C, 1, 2)))], Adoption(A, ((0, 0),))),
        ([Findings(((A, 0, 1),), newest_step=10)], None),
        ([Findings(((A, 0, 1), (B, 0, 1)), newest_step=10)], Adoption(B, ((0, 0),))),
        ([Findings(((C, 2, 3), (C, 0, 3))), Findings(((C, 1, 3),))], Adoption(C, ((0, 0), (1, 1), (0, 2)))),
    ],
    ids=[
        "nothing is left",
        "a part is lost",
        "every rank has its own",
        "both ranks see the same disk",
        "one part is uploaded, the other staged",
        "rank 0 was the slower one",
        "all is uploaded and only the commit is missing",
        "nobody knows how many ranks took part",
        "the newest of two",
        "the newest that is whole",
        "one that is not newer than what is complete",
        "one that is",
        "other ranks, and fewer of them",
    ],
)
def test_the_plan(findings: list[Findings], expected: Adoption | None) -> None:
    assert plan_adoption(findings) == expected
