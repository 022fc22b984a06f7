"""The keys of a job that say what it is trained on: files, their format, and what happens to rows on the way.

`DataKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from llmforge.config.base import FreeValue, StrictModel

RowFormat = Literal["auto", "messages", "sharegpt", "instruction", "text", "preference"]
Uri = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class DataSource(StrictModel):
    """One file, or several by a glob, with settings of its own."""

    path: Uri
    """Local path or `s3://` uri."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of this source in the mixture, relative to the other weights. Default: its number of rows."""
    format: RowFormat | None = None
    """Format of its rows. Default: `dataset.format`."""
    columns: dict[str, str] | None = None
    """Its own column mapping. Default: `dataset.columns`."""


def _source_kind(value: object) -> str:
    return "source" if isinstance(value, dict | DataSource) else "uri"


def _sources_kind(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "uri"


Source = Annotated[Annotated[Uri, Tag("uri")] | Annotated[DataSource, Tag("source")], Discriminator(_source_kind)]
Sources = Annotated[
    Annotated[Uri, Tag("uri")] | Annotated[tuple[Source, ...], Field(min_length=1), Tag("list")],
    Discriminator(_sources_kind),
]
"""A uri, or a list of uris and sources."""


class DatasetConfig(StrictModel):
    """How rows are read, checked and chosen."""

    format: RowFormat = "auto"
    """Format of the rows; `auto` looks at the first ones and prints its evidence."""
    columns: dict[str, str] | None = None
    """Names of the columns in the data, by the name llmforge gives them, such as `{messages: dialogue}`."""
    valid_fraction: Share | None = None
    """Hold out this share of the training rows for validation, chosen by `seed`, where there is no `valid_path`."""
    on_invalid: Literal["error", "drop"] = "error"
    """What an invalid row does: end the job before training, with all of them listed, or be left out and counted."""
    over_length: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a row longer than `context_length`."""
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which assistant turns of a conversation carry loss."""
    deduplicate: bool = False
    """Drop conversations that occurred before."""
    shuffle: bool = True
    """Take the training rows in a new order in every epoch, by `seed`."""
    load_kwargs: dict[str, FreeValue] | None = None
    """Arguments for loading a Hugging Face dataset: split, name, ..."""


class DataKeys(StrictModel):
    """Data."""

    train_path: Sources
    """Training data: a uri, a list of uris, or a list of `{path, weight, format, columns}`."""
    valid_path: Sources | None = None
    """Validation data, in the same forms."""
    dataset: DatasetConfig = DatasetConfig()
    """Format of the rows, and what happens to them on the way."""
    context_length: Annotated[int, Field(ge=8)] | None = None
    """Longest sequence, in tokens. Default: the 95th percentile of the training rows rounded up to a power of two, at
    most the model's own."""
    packing: bool | None = None
    """Put several examples into one sequence, none seeing another. Default: true, false where `padding` is given."""
    padding: Literal["longest", "max_length"] | None = None
    """Without packing: pad a batch to its longest example, or to `context_length`. Default: `longest`."""
    num_data_blocks_per_device: Annotated[int, Field(ge=1)] | None = None
    """Blocks of the data stage per device (parallelism of Ray Data). Default: Ray Data's own choice."""

    @property
    def train_sources(self) -> tuple[DataSource, ...]:
        """`train_path` in its longest form."""
        return as_sources(self.train_path)

    @property
    def valid_sources(self) -> tuple[DataSource, ...]:
        """`valid_path` in its longest form; empty where there is none."""
        return () if self.valid_path is None else as_sources(self.valid_path)


def as_sources(value: str | tuple[str | DataSource, ...]) -> tuple[DataSource, ...]:
    """One `DataSource` for each file or glob that a `*_path` key names."""
    entries = (value,) if isinstance(value, str) else value
    return tuple(DataSource(path=entry) if isinstance(entry, str) else entry for entry in entries)
