"""The keys of a job that say what it is trained on: files, their format, and what happens to rows on the way.

`DataKeys` is one of the groups of keys that `JobConfig` is made of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llmforge.config.base import FreeValue, StrictModel

RowFormat = Literal[
    "auto",
    "messages",
    "sharegpt",
    "instruction",
    "prompt_completion",
    "text",
    "preference",
    "unpaired_preference",
    "segments",
]
MixtureStrategy = Literal["all_exhausted", "first_exhausted"]
Uri = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
ColumnName = Annotated[str, Field(min_length=1)]
RoleName = Literal["system", "user", "assistant", "tool"]


# The names that one format reads from the same object.
_READ_TOGETHER = (
    ("role", "content", "weight", "train"),
    ("instruction", "input", "output", "system", "history", "label"),
    ("prompt", "completion", "system", "label"),
    ("prompt", "chosen", "rejected"),
    ("text", "weight", "train"),
)


class ColumnNames(StrictModel):
    """What the data call the columns of a row and of its messages."""

    messages: ColumnName = "messages"
    """Column of a row with the list of messages, such as `conversations`."""
    role: ColumnName = "role"
    """Column of a message that says who speaks, such as `from`."""
    content: ColumnName = "content"
    """Column of a message with its text, such as `value`."""
    weight: ColumnName = "weight"
    """Column of a message or segment with the factor of its loss; messages without it count fully."""
    train: ColumnName = "train"
    """Column of a message or segment that says whether it is trained; messages without it are."""
    instruction: ColumnName | None = None
    """What is asked. Default: `instruction`, `question` or `query`."""
    input: ColumnName | None = None
    """What the instruction is about. A column named `context` goes before the instruction, any other behind it.
    Default: `input` or `context`."""
    output: ColumnName | None = None
    """The answer to the instruction. Default: `output`, `response` or `answer`."""
    system: ColumnName | None = None
    """The system message. Default: `system` or `system_prompt`; with the format messages there is none."""
    history: ColumnName | None = None
    """Exchanges before the instruction: a list of pairs of texts. Default: `history`."""
    prompt: ColumnName | None = None
    """What is given: a text, or a list of messages. Default: `prompt`."""
    completion: ColumnName | None = None
    """What is answered: a text, or a list of messages. Default: `completion` or `response`."""
    chosen: ColumnName | None = None
    """The better answer: a text, a message, or a list of messages. Default: `chosen` or `chosen_messages`."""
    rejected: ColumnName | None = None
    """The worse answer, as `chosen`. Default: `rejected` or `rejected_messages`."""
    label: ColumnName | None = None
    """Whether an answer is desirable: true or false. Default: `label` or `kto_tag`."""
    text: ColumnName | None = None
    """Plain text, or that of a segment. Default: `text`."""
    segments: ColumnName | None = None
    """Pieces of rendered text: a list of {text, train}. Default: `segments`."""

    @model_validator(mode="after")
    def _check_distinct(self) -> ColumnNames:
        for group in _READ_TOGETHER:
            readers: dict[str, str] = {}
            for name in group:
                column = getattr(self, name)
                if column in readers:
                    raise ValueError(
                        f"found the column {column!r} for both {readers[column]} and {name}; "
                        "give each a column of its own"
                    )
                if column is not None:
                    readers[column] = name
        return self


class DataSource(StrictModel):
    """One file, or several by a glob, with settings of its own."""

    path: Uri
    """Local path or `s3://` uri."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of this source in the rows of an epoch, relative to the other weights. Default: its number of rows. What is
    repeated or left out for it: `dataset.mixture`. Training data only."""
    format: RowFormat | None = None
    """Format of its rows. Default: `dataset.format`."""
    columns: ColumnNames | None = None
    """Its own column names. Default: `dataset.columns`."""


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
    columns: ColumnNames | None = None
    """Names of the columns in the data, by the name llmforge gives them, such as `{messages: conversations, role: from,
    content: value}`. Default: the names llmforge gives them, and those the format is known to have (docs/data.md)."""
    roles: dict[str, RoleName] | None = None
    """Who speaks, by the name of the role in the data, such as `{human: user, gpt: assistant}`; a role that is not
    listed keeps its own meaning, and in other formats than messages the one it is known to have."""
    valid_fraction: Share | None = None
    """Hold out this share of the training rows for validation, chosen by their text and `seed`, where there is no
    `valid_path`."""
    on_invalid: Literal["error", "drop"] = "error"
    """What an invalid row does: end the job before training, with all of them listed, or be left out and counted."""
    over_length: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a row longer than `context_length`."""
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which assistant turns of a conversation carry loss."""
    min_trained_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Warn where a smaller share of the tokens of the data carries loss; 0 turns the warning off."""
    mixture: MixtureStrategy = "all_exhausted"
    """With weights of sources: repeat rows until all of every source are used, or leave out rows so that none is
    repeated, as the `stopping_strategy` of `datasets.interleave_datasets` has it."""
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
    """Longest sequence, in tokens; with `preference_tuning_config` the longest conversation, of which a pair has two.
    Default: the 95th percentile of the training rows rounded up to a power of two, at most the model's own."""
    packing: bool | None = None
    """Put several examples into one sequence, none seeing another. Default: true, false where `padding` is given."""
    padding: Literal["longest", "max_length"] | None = None
    """Without packing: pad a batch to its longest example, or to `context_length`. Default: `longest`."""
    num_data_blocks_per_device: Annotated[int, Field(ge=1)] | None = None
    """Blocks of the data stage per device, at least; none is larger than 12 MiB of a file. Default: 4."""

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


def dataset_for(source: DataSource, dataset: DatasetConfig) -> DatasetConfig:
    """How the rows of one source are read: its own format and columns, and the job's where it has none."""
    own = {"format": source.format, "columns": source.columns}
    given = {name: value for name, value in own.items() if value is not None}
    return dataset.model_copy(update=given) if given else dataset
