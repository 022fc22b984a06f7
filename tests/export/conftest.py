"""Tests of exports run on one thread."""

from tests.torch_fixtures import one_thread

__all__ = ["one_thread"]
