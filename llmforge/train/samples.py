"""Answers to the job's prompts by the model as it stands, in the middle of its training.

In: the engine, the prompts of the resolved job, and how a trained model is asked and read. Out: `Sample`s, the same
text that the model gives once this step's checkpoint is loaded, at temperature 0. Every rank answers its share; where
the weights are partitioned over the ranks, all go through the model together. Weights, optimizer and random numbers of
the training stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from peft import PeftModel
from pydantic import JsonValue
from transformers import PreTrainedModel

from llmforge.answers.answer_format import AnswerFormat, end_of_sequence_ids
from llmforge.answers.batch import Answer, BatchLimits, Pace, Prompt, answer_batch, plan_batches, tokens_that_fit
from llmforge.answers.evaluation_prompts import messages_of
from llmforge.answers.sampling import Sampling
from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ModelError
from llmforge.metrics.samples import Sample
from llmforge.models.answering import ready_to_answer
from llmforge.train.engine import TrainingEngine
from llmforge.train.memory import is_shortage
from llmforge.train.model import PreparedModel, build_tokenizer, read_job_tokenizer

_IDLE = Prompt([0], 1, -1)
"""What a rank without a batch of its own goes through the model with."""


@dataclass(frozen=True)
class Asked:
    """The prompts of a job and how its model is asked."""

    format: AnswerFormat
    raw_messages: Sequence[Sequence[object]]
    sampling: Sampling

    def prompts(self) -> list[Prompt]:
        """As the model is given them."""
        ids = [self.format.prompt_ids(self.format.parse(messages)) for messages in self.raw_messages]
        return [Prompt(ids, self.format.room(len(ids), self.sampling), index) for index, ids in enumerate(ids)]


class Sampler:
    """Answers the same prompts again and again. Collective: every rank calls it after the same step."""

    def __init__(
        self, engine: TrainingEngine, attention: str, asked: Asked, advance: Callable[[], None] = lambda: None
    ) -> None:
        """`attention` is what the model had when it was loaded; `advance` is called with every token."""
        self._engine = engine
        self._attention = attention
        self._asked = asked
        self._prompts = asked.prompts()
        self._pace = Pace(is_shared=engine.is_partitioned and engine.num_workers > 1, on_token=advance)

    def __call__(self, step: int) -> list[Sample]:
        """The answers of all ranks to all prompts, in their order, on every rank.

        Raises `ModelError` where the memory does not suffice.
        """
        model = _base_model(self._engine)
        with ready_to_answer(model, self._attention):
            answers = self._answer(model)
        shares: list[list[Answer]] = [[]] * self._engine.num_workers
        dist.all_gather_object(shares, answers)
        found = sorted((answer for share in shares for answer in share), key=lambda answer: answer.index)
        return [self._sample(step, answer) for answer in found]

    def _answer(self, model: PreTrainedModel) -> list[Answer]:
        try:
            return [
                answer
                for batch in self._batches(model)
                for answer in answer_batch(model, self._asked.format, batch, self._asked.sampling, self._pace)
                if answer.index != _IDLE.index
            ]
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            longest = max(len(prompt.ids) for prompt in self._prompts)
            raise ModelError(
                f"evaluation.prompts: out of memory while they were answered (up to {longest} tokens each, and "
                f"{self._asked.sampling.max_tokens} of the answer; {str(error).strip().splitlines()[0]}); shorten the "
                "longest, lower evaluation.max_tokens, or remove the key, and go on with --resume"
            ) from error

    def _batches(self, model: PreTrainedModel) -> list[list[Prompt]]:
        """Those of this rank; equally many on every rank where all keep in step."""
        by_length = sorted(self._prompts, key=lambda prompt: (-len(prompt.ids), prompt.index))
        share = by_length[self._engine.rank :: self._engine.num_workers]
        # Any prompt leaves room for the longest answer, so no row goes beyond the positions that a model has.
        batches = plan_batches(share, BatchLimits(num_tokens=tokens_that_fit(model)), mixes_rooms=True)
        if not self._pace.is_shared:
            return batches
        most = torch.tensor(len(batches), device=self._engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return batches + [[_IDLE]] * (int(most) - len(batches))

    def _sample(self, step: int, answer: Answer) -> Sample:
        messages = cast(list[dict[str, JsonValue]], list(self._asked.raw_messages[answer.index]))
        return Sample(step, answer.index, messages, answer.text, "stop" if answer.is_complete else "length")


def prepare_sampler(job: JobConfig, model: PreparedModel, advance: Callable[[], None]) -> Sampler | None:
    """That of a resolved job; None without prompts."""
    if job.evaluation is None:
        return None
    assert not isinstance(job.evaluation.prompts, str) and job.generation_config is not None  # all is written out
    base, tokenizer = _base_model(model.engine), build_tokenizer(job)
    asked = Asked(
        AnswerFormat(
            prompt_format=job.prompt_format,
            generation=job.generation_config,
            encoder=SegmentTokenizer(read_job_tokenizer(job)),
            context_length=getattr(base.config.get_text_config(), "max_position_embeddings", None),
            decoder=tokenizer,
            end_of_sequence_ids=end_of_sequence_ids(base.generation_config, tokenizer),
        ),
        [messages_of(prompt) for prompt in job.evaluation.prompts],
        Sampling(max_tokens=job.evaluation.max_tokens, temperature=0.0),
    )
    return Sampler(model.engine, model.loaded_attention, asked, advance)


def _base_model(engine: TrainingEngine) -> PreTrainedModel:
    """With its adapter in its layers, where it has one."""
    module = engine.module
    return cast(PreTrainedModel, module.get_base_model() if isinstance(module, PeftModel) else module)
