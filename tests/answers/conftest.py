"""Tests in which a small model answers run on one thread, and share the model."""

from tests.inference.fixtures import model
from tests.torch_fixtures import one_thread

__all__ = ["model", "one_thread"]
