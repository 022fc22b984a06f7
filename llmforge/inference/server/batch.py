"""The steps of a causal model: reading a prompt piece by piece, and one token for every row of a batch that may change
between any two steps.

In: `Generation`s. Out: logits of the next tokens. Which step is due is the engine's business.
"""

import inspect
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from llmforge.answers.batch import left_padded
from llmforge.inference.server.generation import Generation
from llmforge.inference.server.kv_cache import can_stack, keep_rows, stacked


class Prefill:
    """A prompt that is being read."""

    def __init__(self, generation: Generation, cache: DynamicCache) -> None:
        self.generation = generation
        self.cache = cache
        self.num_read = 0

    @property
    def num_left(self) -> int:
        """Tokens of the prompt that the model has not read yet."""
        return len(self.generation.prompt) - self.num_read


class Batch:
    """Answers that are decoded together. `logits` are of shape (rows, vocabulary)."""

    def __init__(self, model: PreTrainedModel, *, has_adapters: bool) -> None:
        self._model = model
        self._has_adapters = has_adapters
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self._accepts_keys = frozenset(inspect.signature(base.forward).parameters)
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []
        """Tokens of every row that are in the cache."""
        self.generations: list[Generation] = []

    def can_share(self) -> bool:
        """Whether the model's past can be held for several rows at once."""
        return can_stack(self._new_cache())

    def begin(self, generation: Generation) -> Prefill:
        """A prompt of which nothing has been read."""
        return Prefill(generation, self._new_cache())

    def read(self, prefill: Prefill, num_tokens: int) -> torch.Tensor:
        """Read some tokens of a prompt; the logits behind them, as one row."""
        end = prefill.num_read + num_tokens
        tokens = prefill.generation.prompt[prefill.num_read : end]
        logits = self._forward(
            torch.tensor([tokens]),
            torch.arange(prefill.num_read, end)[None],
            torch.ones((1, end), dtype=torch.long),
            prefill.cache,
            [prefill.generation],
        )
        prefill.num_read = end
        return logits

    def read_whole(self, generations: Sequence[Generation]) -> torch.Tensor:
        """Read whole prompts in one pass, of which nothing is kept; the logits behind each."""
        input_ids, mask = left_padded([generation.prompt for generation in generations])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._forward(input_ids, positions, mask, self._new_cache(), generations)

    def join(self, prefills: Sequence[Prefill]) -> None:
        """Let rows in whose prompts are read."""
        if not prefills:
            return
        caches = [prefill.cache for prefill in prefills]
        self._cache = stacked(caches if self._cache is None else [self._cache, *caches])
        self._lengths += [prefill.num_read for prefill in prefills]
        self.generations += [prefill.generation for prefill in prefills]

    def decode(self) -> torch.Tensor:
        """One step for all rows: reads the last token of each; the logits behind it."""
        width = max(self._lengths) + 1
        lengths = torch.tensor(self._lengths)[:, None]
        logits = self._forward(
            torch.tensor([[generation.last_token] for generation in self.generations]),
            lengths,
            (torch.arange(width)[None] >= width - 1 - lengths).long(),
            self._cache,
            self.generations,
        )
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only some rows."""
        if len(rows) == len(self.generations):
            return
        self.generations = [self.generations[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]
        if not rows:
            self._cache = None
        elif self._cache is not None:
            keep_rows(self._cache, rows, max(self._lengths))

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def _forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: DynamicCache | None,
        generations: Sequence[Generation],
    ) -> torch.Tensor:
        device = self._model.device
        optional = {"position_ids": position_ids.to(device), "logits_to_keep": 1}
        arguments = {key: value for key, value in optional.items() if key in self._accepts_keys}
        if self._has_adapters:
            arguments["adapter_names"] = [generation.adapter for generation in generations]
        output = self._model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            past_key_values=cache,
            use_cache=True,
            **arguments,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits
