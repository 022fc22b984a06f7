"""What may be asked for at an answer, and the job's own values for the rest.

Plain values, so that a server or a worker can read them without a model; `draw.py` makes them arguments of a model.
"""

from dataclasses import dataclass, replace

from llmforge.config.prompt_format import GenerationConfig
from llmforge.errors import ConfigError

_SEED_STEP = 0x9E3779B97F4A7C15
"""Odd, so that no two of 2**63 indices get the same seed; large, so that neighbouring seeds share none for long."""


@dataclass(frozen=True)
class Sampling:
    """What may be asked for differently than the job said; None keeps the job's value. Raises `ConfigError`."""

    max_tokens: int | None = None
    """Longest answer, in tokens."""
    temperature: float | None = None
    """0 always takes the most probable token."""
    top_p: float | None = None
    """1 takes every token."""
    top_k: int | None = None
    """0 takes every token."""
    min_p: float | None = None
    """0 takes every token."""
    seed: int | None = None
    """The same seed gives the same answer on the same machine; None: another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer as well as those of the job do."""

    def __post_init__(self) -> None:
        """Refuse what no model can do."""
        checks = (
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "a number from 1"),
            ("temperature", self.temperature, 0 <= (self.temperature or 0) <= 10, "a number from 0 to 10"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "a number above 0, up to 1"),
            ("top_k", self.top_k, (self.top_k or 0) >= 0, "a number from 0, which takes every token"),
            ("min_p", self.min_p, 0 <= (self.min_p or 0) <= 1, "a number from 0 to 1"),
            (
                "stop",
                self.stop,
                all(self.stop),
                "texts that are not empty: an empty one would end every answer at once",
            ),
        )
        problems = [f"{name}: found {value!r}, allowed is {allowed}" for name, value, ok, allowed in checks if not ok]
        if problems:
            raise ConfigError("\n".join(problems))

    def over(self, generation: GenerationConfig) -> "Sampling":
        """The same with the job's value wherever there is None; only `top_p`, `top_k`, `min_p`, `seed` may stay so."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p")
        asked = {name: getattr(self, name) for name in names}
        own = {name: getattr(generation, name) for name, value in asked.items() if value is None}
        return replace(self, **own)


NOTHING_ASKED = Sampling()


def row_seed(seed: int, index: int) -> int:
    """The seed of one of several answers, of which the first has `seed` itself: no other answer changes its draws."""
    return (seed + index * _SEED_STEP) % 2**63
