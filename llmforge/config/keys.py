"""All keys of the flat job file in one model, without the rules between them."""

from __future__ import annotations

from llmforge.config.base import StrictModel
from llmforge.config.data import DataKeys
from llmforge.config.model import ModelKeys
from llmforge.config.run import RunKeys
from llmforge.config.training import TrainingKeys

SECTIONS: tuple[type[StrictModel], ...] = (ModelKeys, DataKeys, TrainingKeys, RunKeys)
"""The groups of keys, in the order in which people read them."""


class JobKeys(RunKeys, TrainingKeys, DataKeys, ModelKeys):
    """Every key of a job (bases stand in reverse, since pydantic takes the fields of the last base first)."""
