"""The loss of rated answers as computed by TRL 1.16, on the rows and models of `answers.py`.

`python -m tests.train.trl_kto`, in an environment with TRL, writes as JSON the fixed numbers of `test_kto.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer  # type: ignore[import-not-found]

from tests.train.answers import RATED_ROWS, fixed_model
from tests.train.trl_losses import tokenizer

PHASES = {"behind": (0.0, 0.4), "ahead": (0.4, 0.0)}
"""Which model and which reference model are taken: those of the first give a reference point of 0, by its clamp."""
CASES = (("behind", 0.1, 1.0, 1.0), ("ahead", 0.1, 1.0, 1.0), ("ahead", 0.2, 1.5, 0.75))
"""Which models, beta, and the weights of desirable and undesirable answers."""


def kto(models: str, beta: float, desirable_weight: float, undesirable_weight: float, folder: str) -> dict[str, float]:
    """Loss and metrics of `KTOTrainer` on all rows as one batch."""
    model, reference = map(fixed_model, PHASES[models])
    row: dict[str, Any] = {"prompt": "w1", "completion": "w3", "label": True}
    trainer: Any = KTOTrainer(
        model=model,
        ref_model=reference,
        args=KTOConfig(
            folder, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight, use_cpu=True,
            report_to="none", bf16=False, per_device_train_batch_size=2, train_sampling_strategy="sequential",
        ),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([row, row | {"label": False}]),
    )  # fmt: skip
    batch = trainer.data_collator(
        [
            {
                "prompt_ids": row.prompt,
                "completion_ids": row.answer,
                "KL_completion_ids": row.mismatched,
                "label": row.is_desirable,
            }
            for row in RATED_ROWS
        ]
    )
    value = trainer.compute_loss(trainer.model.train(), batch).item()
    return {"loss": value} | {name: found[-1] for name, found in trainer._metrics["train"].items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump([[*case, kto(*case, place)] for case in CASES], sys.stdout)
