"""A function over several items at once, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item], num_at_once: int) -> tuple[_Result, ...]:
    """The results in the order of the items. The first error ends it: what has not begun then never does."""
    with ThreadPoolExecutor(num_at_once) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return tuple(future.result() for future in futures)
        finally:
            for future in futures:
                future.cancel()
