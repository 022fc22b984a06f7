"""Names of checkpoints, of attempts, and of the files that are not of the checkpoint itself."""

from __future__ import annotations

import pytest

from llmforge.checkpoint.names import (
    attempt_of,
    attempt_word,
    checkpoint_name,
    driver_of,
    is_attempt_word,
    is_checkpoint_name,
    is_removal_mark,
    is_upload_record,
    new_driver_id,
    new_removal_mark,
    rank_manifest_name,
    rank_of_manifest,
    step_of,
    upload_record_name,
)


def test_names_of_checkpoints() -> None:
    assert checkpoint_name(200, "3fa29c04") == "step-00000200-3fa29c04"
    assert step_of("step-123456789-ab") == 123456789
    assert attempt_of("step-00000200-3fa29c04b") == "3fa29c04b"
    assert is_checkpoint_name(checkpoint_name(0, attempt_word(new_driver_id(), 0)))
    for step, attempt in ((-1, "ab"), (1, ""), (1, "a/b"), (1, "A-B")):
        with pytest.raises(ValueError, match="is not the name of a checkpoint"):
            checkpoint_name(step, attempt)


def test_drivers_differ() -> None:
    assert len({new_driver_id() for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("group", "num_saves_before", "word"),
    [(0, 0, "3fa29c00"), (35, 0, "3fa29c0z"), (36, 1, "3fa29c10b"), (1295, 25, "3fa29czzz")],
)
def test_words_of_attempts(group: int, num_saves_before: int, word: str) -> None:
    assert attempt_word("3fa29c", group, num_saves_before) == word
    assert driver_of(word) == "3fa29c"


def test_no_two_saves_have_the_same_word() -> None:
    words = {attempt_word("3fa29c", group, save) for group in range(1296) for save in range(26)}
    assert len(words) == 1296 * 26


@pytest.mark.parametrize(("group", "num_saves_before"), [(-1, 0), (1296, 0), (0, 26), (0, -1)])
def test_attempts_that_have_no_word(group: int, num_saves_before: int) -> None:
    with pytest.raises(ValueError, match=rf"^worker group {group}, save {num_saves_before}: a name has room for 1296 "):
        attempt_word("3fa29c", group, num_saves_before)


def test_a_driver_id_of_another_form_makes_no_word() -> None:
    with pytest.raises(ValueError, match="'XY00' is not the word of an attempt, such as 3fa29c04"):
        attempt_word("XY", 0)


def test_words_of_older_runs_and_of_others() -> None:
    assert is_attempt_word("1f2e3d4c") and driver_of("1f2e3d4c") == "1f2e3d"
    for word in ("copy", "a1", "1f2e3d4", "1f2e3d4ca", "1f2e3d4cbb"):
        assert not is_attempt_word(word)


def test_names_of_files() -> None:
    assert rank_manifest_name(3) == "manifest-rank-00003.json"
    assert rank_of_manifest("manifest-rank-00003.json") == 3
    assert rank_of_manifest("manifest.json") is None
    assert is_upload_record(upload_record_name(12)) and not is_upload_record(rank_manifest_name(12))
    assert is_removal_mark(new_removal_mark()) and not is_removal_mark("removing.json")
    assert new_removal_mark() != new_removal_mark()
