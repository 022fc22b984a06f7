"""What may be asked for at an answer, and the draws that follow from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmforge.answers.draw import GumbelNoise, generate_arguments
from llmforge.answers.sampling import Sampling, row_seed
from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import ConfigError


def test_the_job_says_what_is_not_asked_for() -> None:
    generation = GenerationConfig(max_tokens=9, temperature=0.5, top_p=0.9, min_p=0.1)
    assert Sampling().over(generation) == Sampling(9, 0.5, 0.9, None, 0.1)
    asked = Sampling(max_tokens=3, temperature=0.0, top_p=1.0, top_k=7, min_p=0.0, seed=4, stop=("x",))
    assert asked.over(generation) == asked


def test_all_that_cannot_be_asked_for_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(max_tokens=0, temperature=-1.0, top_p=0.0, top_k=-1, min_p=1.5, stop=("a", ""))
    assert str(caught.value).splitlines() == [
        "max_tokens: found 0, allowed is a number from 1",
        "temperature: found -1.0, allowed is a number from 0 to 10",
        "top_p: found 0.0, allowed is a number above 0, up to 1",
        "top_k: found -1, allowed is a number from 0, which takes every token",
        "min_p: found 1.5, allowed is a number from 0 to 1",
        "stop: found ('a', ''), allowed is texts that are not empty: an empty one would end every answer at once",
    ]
    with pytest.raises(ConfigError, match="temperature: found nan"):
        Sampling(temperature=float("nan"))


@given(seed=st.integers(-(2**63), 2**63), rows=st.lists(st.integers(0, 10**7), unique=True, max_size=5))
def test_rows_have_seeds_of_their_own(seed: int, rows: list[int]) -> None:
    seeds = [row_seed(seed, row) for row in rows]
    assert len(set(seeds)) == len(rows)
    assert all(0 <= number < 2**63 for number in seeds)
    assert row_seed(5, 0) == 5


def drawn(scores: torch.Tensor, sampling: Sampling, rows: list[int]) -> list[int]:
    """One token for every row, as `generate` takes it."""
    arguments = generate_arguments(sampling, torch.device("cpu"), rows)
    assert arguments["do_sample"] is False
    for processor in arguments.get("logits_processor", ()):  # type: ignore[attr-defined]
        scores = processor(None, scores)
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    return tokens


LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0, -torch.inf])
HOT = Sampling(temperature=1.0, seed=11)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    num_draws = 5_000
    tokens = drawn(LOGITS.expand(num_draws, -1), HOT, list(range(num_draws)))
    shares = torch.bincount(torch.tensor(tokens), minlength=5) / num_draws
    assert torch.allclose(shares, LOGITS.softmax(0), atol=0.024)  # over three standard deviations
    assert shares[4] == 0


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 0}, {0, 1, 2, 3}),
        ({"top_p": 0.7}, {2, 3}),  # 0.64 + 0.24
        ({"top_p": 1}, {0, 1, 2, 3}),
        ({"min_p": 0.1}, {1, 2, 3}),  # exp(-2) = 0.135
        ({"temperature": 0.01}, {3}),
        ({"temperature": 0}, {3}),
    ],
)
def test_what_may_be_drawn(changes: dict[str, float], allowed: set[int]) -> None:
    tokens = drawn(LOGITS.expand(500, -1), replace(HOT, **changes), list(range(500)))  # type: ignore[arg-type]
    assert set(tokens) == allowed


def test_a_draw_depends_on_its_row_alone() -> None:
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    together = drawn(scores, HOT, [0, 1, 2])
    assert [drawn(scores[row : row + 1], HOT, [row])[0] for row in range(3)] == together
    assert drawn(scores.flip(0), HOT, [2, 1, 0]) == together[::-1]
    torch.manual_seed(0)
    unseeded = replace(HOT, seed=None)
    assert len({tuple(drawn(scores, unseeded, [0, 1, 2])) for _ in range(5)}) > 1


def test_noise_goes_on_from_token_to_token() -> None:
    noise = GumbelNoise([torch.Generator().manual_seed(1)])
    first, second = (noise(torch.empty(0), torch.zeros(1, 8)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.isfinite(first).all()
