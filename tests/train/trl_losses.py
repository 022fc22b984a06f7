"""The same losses as computed by TRL 1.16, on the rows and models of `answers.py`.

`python -m tests.train.trl_losses`, in an environment with TRL, writes as JSON the fixed numbers of
`test_preference.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found]

from tests.train.answers import ROWS, VOCABULARY, fixed_model

CASES = (("dpo", 0.1), ("dpo", 0.5), ("ipo", 0.3))
DPO_TYPES = {"dpo": "sigmoid", "ipo": "ipo"}
"""What TRL calls a loss."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Of words that stand for ids; a trainer wants one, though the rows are ids already."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")


def dpo(loss: str, beta: float, folder: str) -> dict[str, float]:
    """Loss and metrics of `DPOTrainer` on all rows as one batch."""
    trainer: Any = DPOTrainer(
        model=fixed_model(0.0),
        ref_model=fixed_model(0.4),
        args=DPOConfig(folder, loss_type=[DPO_TYPES[loss]], beta=beta, use_cpu=True, report_to="none", bf16=False),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "w1", "chosen": "w3", "rejected": "w4"}]),
    )
    batch = trainer.data_collator(
        [{"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in ROWS]
    )
    value = trainer.compute_loss(trainer.model.train(), batch).item()
    return {"loss": value} | {name: found[-1] for name, found in trainer._metrics["train"].items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump([[*case, dpo(*case, place)] for case in CASES], sys.stdout)
