"""Fine-tune large language models on a Ray cluster from one job file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmforge.inference.chat_model import ChatModel

__version__ = "0.1.0"


def load(
    uri: str | os.PathLike[str], checkpoint: str = "best", cache_folder: str | os.PathLike[str] | None = None
) -> ChatModel:
    """A trained model that answers, with the prompt format and the stops it was trained with.

    `uri`: the folder of a run (`checkpoint`: best, latest or a name), of one checkpoint, or of an export, local or
    `s3://`. What lies in object stores is kept in `cache_folder`, by default that of the command line. Raises
    `CheckpointError` where there is no such model or a file of it is damaged, and `ModelError` where its base is gone.
    """
    # Not at the top: `import llmforge` brings neither torch nor transformers.
    from llmforge.cli.places import cache_folder as usual_cache_folder  # noqa: PLC0415
    from llmforge.inference.chat_model import open_chat_model  # noqa: PLC0415

    return open_chat_model(uri, checkpoint, usual_cache_folder() if cache_folder is None else Path(cache_folder))
