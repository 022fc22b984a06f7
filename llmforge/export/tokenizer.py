"""The tokenizer of an export: that of the checkpoint, with the chat template of the run's prompt format.

In: the folder of a checkpoint, or an exported one. Out: a tokenizer to save, or what its files say to other programs.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.tokenize import special_tokens
from llmforge.export.ollama import BeginOfText
from llmforge.models.folder import read_tokenizer_json
from llmforge.models.load import load_tokenizer
from llmforge.prompt.chat_template import chat_template

CONFIG_FILE = "tokenizer_config.json"
_OF_THIS_MACHINE = ("is_local", "local_files_only", "backend")


def served_tokenizer(checkpoint: Path, prompt_format: PromptFormat) -> PreTrainedTokenizerFast:
    """As it is saved in the export. Raises `ModelError` where the checkpoint has none."""
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.chat_template = chat_template(prompt_format, frozenset(special_tokens(read_tokenizer_json(checkpoint))))
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write its files so that every version of `transformers` that is in use loads them."""
    tokenizer.save_pretrained(folder)
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if name not in _OF_THIS_MACHINE}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    path.write_text(f"{json.dumps(config, indent=2, ensure_ascii=False)}\n", encoding="utf-8")


def begin_of_text(folder: Path) -> BeginOfText:
    """The token that Ollama puts before every prompt, by the files of an exported tokenizer."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    token = config.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return BeginOfText(text if config.get("add_bos_token", True) else None)
