"""Where the time of a step goes.

In: marks at the end of each part, in the order of the work. Out: seconds of each part. On a GPU, which works behind the
program's back, the marks are events in its own queue, so that measuring makes nobody wait.
"""

import time
from collections import defaultdict
from collections.abc import Mapping

import torch


class StepClock:
    """Measures one step; it begins when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark("")

    def mark(self, part: str) -> None:
        """What was done since the last mark belongs to `part`."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch is untyped here
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def seconds(self) -> Mapping[str, float]:
        """Of each part, repetitions added up. On a GPU call it when the work is known to be done."""
        parts: defaultdict[str, float] = defaultdict(float)
        for (_, begin), (part, end) in zip(self._marks, self._marks[1:], strict=False):
            parts[part] += _seconds_between(begin, end)
        return parts


def _seconds_between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return float(begin.elapsed_time(end)) / 1000
