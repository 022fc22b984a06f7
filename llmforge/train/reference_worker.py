"""The reference model in a process of its own: log-probabilities of the answers of samples.

In: what `train/reference.py` hands over. Out: numbers. Apart from the driver, which does not import what loads models.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

from llmforge.config.job import JobConfig
from llmforge.dataset.shards import Sample
from llmforge.models.attention import BY_DOCUMENTS, use_attention
from llmforge.storage.base import open_storage
from llmforge.train.batches import Batch, Layout, collate
from llmforge.train.model import build_reference_model
from llmforge.train.preference import AnswerScorer
from llmforge.train.proofs import choose_logits
from llmforge.train.task import ReferenceTask


class ReferenceModel:
    """The model on this process's device, and the samples of all splits."""

    def __init__(self, task: ReferenceTask) -> None:
        """Raises `LlmforgeError` where this node cannot read the samples or the weights."""
        job = JobConfig.model_validate_json(task.job_json)
        cache_folder = Path(task.cache_folder)
        storage = open_storage(task.storage_uri)
        self._readers = [task.prepared.open(split, storage, cache_folder) for split in task.splits]
        self._device = torch.device("cuda" if job.accelerator == "gpu" else "cpu")
        model = build_reference_model(job, cache_folder).to(self._device)
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        flash = job.flash_attention_2
        attention = use_attention(base, job.attention, device=self._device, allow_flash_attention=flash)
        self._scorer = AnswerScorer(model).eval()
        layout = Layout(attention in BY_DOCUMENTS)
        choose_logits(self._scorer, self._loss_of, layout, model.dtype)
        self._layout = replace(layout, of_answers=True, alone=not job.packing)

    @torch.no_grad()
    def _loss_of(self, batch: Batch) -> float:
        return float(self._scorer(batch.to(self._device)).item())

    def score(self, indexes: Sequence[int]) -> list[NDArray[np.float32]]:
        """One number for each answer of each of these samples."""
        samples = [self._sample(index) for index in indexes]
        batch = collate(samples, self._layout).to(self._device)
        assert batch.answers is not None
        sums = self._scorer.answer_sums(batch, batch.answers).cpu().numpy()
        ends = np.cumsum([len(sample.example_lengths) for sample in samples])
        return np.split(sums, ends[:-1])

    def _sample(self, index: int) -> Sample:
        """By its number over all splits."""
        for reader in self._readers[:-1]:
            if index < len(reader):
                return reader[index]
            index -= len(reader)
        return self._readers[-1][index]
