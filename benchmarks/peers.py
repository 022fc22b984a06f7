"""How other programs prepare conversations for training, each by its own code, for comparison side by side.

In: a Hugging Face tokenizer with a chat template, the folder it came from, and rows `{"messages": [...]}`. Out: one
callable for each program that is installed, which does the preparation and returns the number of tokens. What happens
once (imports, models, templates) happens before. None of these programs is a dependency of llmforge.
"""

import base64
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

Rows = Sequence[Mapping[str, Any]]
Preparation = Callable[[], int]

LLAMA_3_TOKENS = 128_000
"""Of the vocabulary of Llama 3, without the control tokens."""


def preparations(tokenizer: Any, folder: Path, rows: Rows, scratch: Path) -> dict[str, Preparation]:
    """By name, those of the programs that are installed."""
    rows_file = scratch / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found: dict[str, Preparation] = {}
    if find_spec("trl") is not None:
        found["TRL, SFTTrainer with assistant_only_loss, 1 process"] = trl(tokenizer, rows, num_processes=None)
        found["TRL, the same, 2 processes"] = trl(tokenizer, rows, num_processes=2)
    if find_spec("llamafactory") is not None:
        found["LLaMA-Factory, 1 worker"] = llama_factory(tokenizer, rows_file, scratch, num_workers=1)
        found["LLaMA-Factory, 2 workers"] = llama_factory(tokenizer, rows_file, scratch, num_workers=2)
    if find_spec("torchtune") is not None:
        found["torchtune, SFTDataset with tiktoken"] = torchtune(folder, rows_file, scratch)
    if find_spec("axolotl") is not None:
        found["axolotl, chat_template, 1 process"] = axolotl(tokenizer, rows)
    return found


def quiet_datasets() -> Any:
    """The `datasets` library without its cache, which would answer in place of the work."""
    datasets = importlib.import_module("datasets")
    datasets.disable_caching()
    datasets.disable_progress_bars()
    return datasets


def trl(tokenizer: Any, rows: Rows, num_processes: int | None) -> Preparation:
    """What an `SFTTrainer` does with its rows when it is made."""
    datasets, library = quiet_datasets(), importlib.import_module("trl")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )

    def run(given: Rows = rows) -> int:
        with tempfile.TemporaryDirectory() as output:
            arguments = library.SFTConfig(
                output_dir=output,
                assistant_only_loss=True,
                max_length=None,
                report_to=[],
                use_cpu=True,
                bf16=False,
                dataset_num_proc=num_processes,
            )
            trainer = library.SFTTrainer(
                model=LlamaForCausalLM(config),
                args=arguments,
                train_dataset=datasets.Dataset.from_list(list(given)),
                processing_class=tokenizer,
            )
            return num_tokens(trainer.train_dataset)

    run(rows[:16])  # imports and whatever else only the first one does
    return run


def llama_factory(tokenizer: Any, rows_file: Path, scratch: Path, num_workers: int) -> Preparation:
    """`get_dataset` of its stage `sft`."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    quiet_datasets()
    data = importlib.import_module("llamafactory.data")
    arguments = importlib.import_module("llamafactory.hparams")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {
        "file_name": rows_file.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {**tags, "system_tag": "system"},
    }
    (scratch / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    data_arguments = arguments.DataArguments(
        template="llama3",
        dataset="rows",
        dataset_dir=str(scratch),
        cutoff_len=1 << 20,
        preprocessing_num_workers=num_workers,
        overwrite_cache=True,
    )
    model_arguments = arguments.ModelArguments(model_name_or_path=str(scratch), cache_dir=str(scratch / "cache"))
    training_arguments = arguments.TrainingArguments(output_dir=str(scratch / "output"), report_to=[], use_cpu=True)
    template = data.get_template_and_fix_tokenizer(tokenizer, data_arguments)

    def run() -> int:
        found = data.get_dataset(template, model_arguments, data_arguments, training_arguments, "sft", tokenizer)
        return num_tokens(found["train_dataset"])

    return run


def torchtune(folder: Path, rows_file: Path, scratch: Path) -> Preparation:
    """Every row of an `SFTDataset`, which tokenizes it when it is asked for; Llama 3 by tiktoken."""
    quiet_datasets()
    data, library = importlib.import_module("torchtune.data"), importlib.import_module("torchtune.datasets")
    llama3 = importlib.import_module("torchtune.models.llama3")
    tokenizer = llama3.Llama3Tokenizer(str(write_tiktoken(folder, scratch / "tokenizer.model")))

    def run() -> int:
        dataset = library.SFTDataset(
            source="json",
            data_files=str(rows_file),
            split="train",
            cache_dir=str(scratch / "torchtune"),
            message_transform=data.OpenAIToMessages(),
            model_transform=tokenizer,
        )
        return sum(len(dataset[index]["tokens"]) for index in range(len(dataset)))

    return run


def axolotl(tokenizer: Any, rows: Rows) -> Preparation:
    """Its `chat_template` strategy over a dataset."""
    library = quiet_datasets()
    strategies = importlib.import_module("axolotl.prompt_strategies.chat_template")
    wrapped = importlib.import_module("axolotl.datasets")
    prompter = strategies.ChatTemplatePrompter(
        tokenizer,
        chat_template=tokenizer.chat_template,
        message_property_mappings={"role": "role", "content": "content"},
        max_length=1 << 20,
    )
    strategy = strategies.ChatTemplateStrategy(
        prompter, tokenizer=tokenizer, train_on_inputs=False, sequence_len=1 << 20, roles_to_train=["assistant"]
    )

    def run() -> int:
        dataset = library.Dataset.from_list(list(rows))
        return num_tokens(wrapped.TokenizedPromptDataset(strategy, dataset, process_count=1))

    return run


def num_tokens(dataset: Any) -> int:
    """Tokens of a prepared dataset of `datasets`, without a Python object for each."""
    lists = dataset.with_format("arrow")[:]["input_ids"]
    return len(importlib.import_module("pyarrow.compute").list_flatten(lists))


def write_tiktoken(folder: Path, target: Path) -> Path:
    """The vocabulary of a byte-level `tokenizer.json` in the format of tiktoken: token in base64, and its rank."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    to_byte = {char: byte for byte, char in byte_characters().items()}
    ranked = sorted(vocabulary.items(), key=lambda item: item[1])[:LLAMA_3_TOKENS]
    lines = (f"{base64.b64encode(bytes(to_byte[char] for char in token)).decode()} {rank}\n" for token, rank in ranked)
    target.write_text("".join(lines))
    return target


def byte_characters() -> dict[int, str]:
    """How byte-level BPE writes bytes as characters (`bytes_to_unicode` of GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
