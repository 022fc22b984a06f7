"""How other programs train on packed rows, each by its own code; none of them is a dependency of llmforge.

    python benchmarks/train_peers.py PROGRAM FOLDER

In: a folder with `plan.json` and `rows.json` (see train_plan.py). Out: `PROGRAM.json` there. PROGRAM is one of

raw      a loop in plain PyTorch: Hugging Face's own loss over all positions, its block-diagonal mask from positions
         that start anew
strong   the strongest loop that is simple: all documents of a step in one row, attention one document at a time, logits
         at trained positions only
trainer  `transformers.Trainer` on the same rows as `raw`
trl      `trl.SFTTrainer` with its own packing of the same documents

All take AdamW (fused), the same learning rate and the same limit on the norm of the gradient. In bf16, all weights are
kept in fp32 and computed with under autocast; under LoRA the base is in bf16 and the adapter in fp32.
"""

import argparse
import functools
import importlib
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional
from train_plan import (
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    Document,
    Pack,
    Plan,
    Result,
    StepLog,
    read_plan,
    read_rows,
    steps_of,
    write_result,
)
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

Program = Callable[[Plan, Any, Sequence[Pack]], StepLog]
LossFunction = Callable[[Any, Sequence[Pack]], torch.Tensor]


def main() -> None:
    """Run one program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    plan, packs = read_plan(arguments.folder / "plan.json"), read_rows(arguments.folder / "rows.json")
    torch.set_num_threads(plan.threads)
    if plan.method == "lora":
        importlib.import_module("peft")
    if arguments.program == "trl":
        importlib.import_module("datasets"), importlib.import_module("trl")
    import_bytes = process_peak_bytes()
    log = PROGRAMS[arguments.program](plan, build_model(plan), packs)
    result = Result.of(log, peak_bytes(plan), import_bytes if plan.device == "cpu" else 0)
    write_result(arguments.folder / f"{arguments.program}.json", result)


def process_peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes(plan: Plan) -> int:
    """The most memory that the device has held for this process."""
    return torch.cuda.max_memory_allocated() if plan.device == "cuda" else process_peak_bytes()


def build_model(plan: Plan) -> Any:
    """On its device, with an adapter where the plan has one."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if plan.precision == "bf16" and plan.method == "lora" else torch.float32
    if list(Path(plan.model_folder).glob("*.safetensors")):
        model = AutoModelForCausalLM.from_pretrained(plan.model_folder, dtype=dtype).to(plan.device)
    else:
        with torch.device(plan.device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plan.model_folder), dtype=dtype)
    if plan.method == "lora":
        peft = importlib.import_module("peft")
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config)
    return model


def base_of(model: Any) -> Any:
    """The model without the wrapper of PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def loop(loss_of: LossFunction, plan: Plan, model: Any, packs: Sequence[Pack]) -> StepLog:
    """A loop in plain PyTorch."""
    log = StepLog()
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    model.train()
    for step in steps_of(packs, plan):
        log.add_batch(step)
        with torch.autocast(plan.device, torch.bfloat16, enabled=plan.precision == "bf16"):
            loss = loss_of(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        log.losses.append(loss.item())
        log.seconds.append(time.perf_counter())
    return log


def rows_of(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """A row for each pack, padded to the longest, and positions that start anew with each document and the padding."""
    width = max(sum(len(document.input_ids) for document in pack) for pack in packs)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for pack in packs:
        padding = width - sum(len(document.input_ids) for document in pack)
        filled = [*pack, Document([0] * padding, [-100] * padding)]
        rows["input_ids"].append([token for document in filled for token in document.input_ids])
        rows["labels"].append([label for document in filled for label in document.labels])
        rows["position_ids"].append([place for document in filled for place in range(len(document.input_ids))])
    return {name: torch.tensor(values) for name, values in rows.items()}


def loss_over_all_positions(model: Any, packs: Sequence[Pack]) -> torch.Tensor:
    """As Hugging Face's models compute it."""
    batch = {name: tensor.to(model.device) for name, tensor in rows_of(packs).items()}
    loss: torch.Tensor = model(**batch, use_cache=False).loss
    return loss


def loss_at_trained_positions(model: Any, packs: Sequence[Pack]) -> torch.Tensor:
    """One row of all documents, and logits where a trained token follows."""
    base = base_of(model)
    row = rows_of([[document for pack in packs for document in pack]])
    (places,) = torch.nonzero(row["labels"][0] != -100, as_tuple=True)
    hidden = base.get_decoder()(
        input_ids=row["input_ids"].to(model.device),
        position_ids=row["position_ids"].to(model.device),
        use_cache=False,
        document_lengths=[len(document.input_ids) for pack in packs for document in pack],
    ).last_hidden_state
    logits = base.get_output_embeddings()(hidden[0, (places - 1).to(model.device)])
    return functional.cross_entropy(logits.float(), row["labels"][0, places].to(model.device))


def attention_per_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: list[int],
    scaling: float,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Torch's attention over each document by itself; tensors of shape (1, heads, tokens, head size)."""
    documents = zip(*(torch.split(tensor, document_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attend = functools.partial(functional.scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=True)
    return torch.cat([attend(*document) for document in documents], dim=2).transpose(1, 2), None


def no_mask(*arguments: object, **others: object) -> None:
    """Attention by documents needs none."""


def strong(plan: Plan, model: Any, packs: Sequence[Pack]) -> StepLog:
    """See the top of this file."""
    AttentionInterface.register("per_document", attention_per_document)
    AttentionMaskInterface.register("per_document", no_mask)
    base_of(model).set_attn_implementation("per_document")
    return loop(loss_at_trained_positions, plan, model, packs)


class StepEnds(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes when a step of a `Trainer` ends."""

    def __init__(self, log: StepLog) -> None:
        self._log = log

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        """Called by the trainer."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._log.seconds.append(time.perf_counter())


def trainer_arguments(plan: Plan) -> dict[str, Any]:
    """What `Trainer` and `SFTTrainer` are told."""
    return {
        "output_dir": str(Path(plan.model_folder).parent / "trainer"),
        "max_steps": plan.num_steps,
        "per_device_train_batch_size": plan.sequences_per_step,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "bf16": plan.precision == "bf16",
        "use_cpu": plan.device == "cpu",
        "gradient_checkpointing": plan.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trainer(plan: Plan, model: Any, packs: Sequence[Pack]) -> StepLog:
    """See the top of this file."""
    log = StepLog()

    def collate(samples: list[Pack]) -> dict[str, torch.Tensor]:
        log.add_batch(samples)
        return rows_of(samples)

    used = [pack for step in steps_of(packs, plan) for pack in step]
    arguments = transformers.TrainingArguments(**trainer_arguments(plan), remove_unused_columns=False)
    return run_trainer(
        transformers.Trainer(model=model, args=arguments, train_dataset=used, data_collator=collate), log
    )


def trl(plan: Plan, model: Any, packs: Sequence[Pack]) -> StepLog:
    """See the top of this file."""
    datasets, library = importlib.import_module("datasets"), importlib.import_module("trl")
    datasets.disable_progress_bars()
    log = StepLog()
    documents = [document for step in steps_of(packs, plan) for pack in step for document in pack]
    dataset = datasets.Dataset.from_dict(
        {
            "input_ids": [document.input_ids for document in documents],
            "labels": [document.labels for document in documents],
        }
    )
    arguments = library.SFTConfig(**trainer_arguments(plan), packing=True, max_length=plan.context_length)
    tokenizer = transformers.AutoTokenizer.from_pretrained(plan.model_folder)
    made = library.SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    collate = made.data_collator

    def counted(samples: list[dict[str, Any]]) -> Any:
        log.add_batch([packed_documents(sample) for sample in samples])
        return collate(samples)

    made.data_collator = counted
    return run_trainer(made, log)


def packed_documents(sample: dict[str, Any]) -> Pack:
    """The documents of a row that TRL packed."""
    documents, start = [], 0
    for length in sample["seq_lengths"]:
        part = slice(start, start + length)
        documents.append(Document(sample["input_ids"][part], sample["labels"][part]))
        start += length
    return documents


def run_trainer(made: transformers.Trainer, log: StepLog) -> StepLog:
    """All steps, without a word."""
    made.remove_callback(transformers.PrinterCallback)
    made.add_callback(StepEnds(log))
    made.train()
    log.losses += [record["loss"] for record in made.state.log_history if "loss" in record]
    return log


PROGRAMS: dict[str, Program] = {
    "raw": functools.partial(loop, loss_over_all_positions),
    "strong": strong,
    "trainer": trainer,
    "trl": trl,
}

if __name__ == "__main__":
    main()
