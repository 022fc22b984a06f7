"""An adapter that is exported alone: its files, and what servers have to know of it.

In: the folder of a checkpoint. Out: copies of PEFT's files, and `AdapterFacts`. No tensor is read.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from llmforge.config.model import LoraConfig
from llmforge.config.serving import unservable_choices
from llmforge.export.launch import AdapterFacts
from llmforge.models.file_names import ADAPTER_FILES
from llmforge.models.folder import adapter_rank


def copy_adapter(checkpoint: Path, folder: Path) -> None:
    """Put the files of an adapter into an export, byte for byte."""
    for name in ADAPTER_FILES:
        shutil.copyfile(checkpoint / name, folder / name)


def adapter_facts(checkpoint: Path, lora: LoraConfig, base: Path) -> AdapterFacts:
    """What job and files say of an adapter; `base` is the folder of its base model."""
    config = json.loads((checkpoint / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    named = str(config.get("base_model_name_or_path") or base)
    return AdapterFacts(
        base=str(Path(named).absolute()) if Path(named).is_dir() else named,
        rank=adapter_rank(checkpoint),
        unservable=(*unservable_choices(lora), *_new_tokens(config)),
    )


def _new_tokens(config: Mapping[str, object]) -> list[str]:
    indices = config.get("trainable_token_indices")
    return ["new tokens of the vocabulary"] if isinstance(indices, dict) else []
