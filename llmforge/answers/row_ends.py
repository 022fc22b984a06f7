"""Where each row of a batch ends while it is generated.

In: the tokens so far. Out: which rows are done, and at what length. A row is done at a stop token, sequence or text, or
when its room is used up; what follows in it is not read.
"""

import torch
from transformers import StoppingCriteria

from llmforge.answers.answer_format import AnswerFormat
from llmforge.answers.stops import Stops


class RowEnds(StoppingCriteria):  # type: ignore[misc] # transformers is untyped here
    """Asked by `generate` behind every token; `rooms` are the most tokens of every row's answer."""

    def __init__(self, answer_format: AnswerFormat, stops: Stops, prompt_width: int, rooms: torch.Tensor) -> None:
        self._format = answer_format
        self._stops = stops
        self._prompt_width = prompt_width
        self._rooms = rooms
        self._stop_ids = torch.tensor(sorted(stops.token_ids), dtype=torch.long, device=rooms.device)
        self._sequences = [torch.tensor(sequence, device=rooms.device) for sequence in stops.token_sequences]
        # No token is less than a byte, so these hold any stop text that ends in the last of them.
        self._num_tail_tokens = 1 + max((len(text.encode()) for text in stops.texts), default=0)
        self.lengths = torch.zeros_like(rooms)
        """Tokens of every row with those of its stop; 0 while it goes on."""
        self.is_stopped = torch.zeros_like(rooms, dtype=torch.bool)
        """Rows that came to a stop."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        """Which rows are done."""
        tokens = input_ids[:, self._prompt_width :]
        goes_on = self.lengths == 0
        stops = self._at_stop_tokens(tokens)
        if self._stops.texts:
            stops |= self._at_stop_text(tokens, goes_on & ~stops)
        length = tokens.shape[1]
        self.is_stopped |= goes_on & stops
        self.lengths = torch.where(goes_on & (stops | (self._rooms <= length)), length, self.lengths)
        return self.lengths > 0

    def _at_stop_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        found = torch.isin(tokens[:, -1], self._stop_ids)
        for sequence in self._sequences:
            if len(sequence) <= tokens.shape[1]:
                found |= (tokens[:, -len(sequence) :] == sequence).all(dim=1)
        return found

    def _at_stop_text(self, tokens: torch.Tensor, goes_on: torch.Tensor) -> torch.Tensor:
        rows = goes_on.nonzero().flatten()
        tails = self._format.decode_all(tokens[rows, -self._num_tail_tokens :].tolist())
        near = [row for row, tail in zip(rows, tails, strict=True) if any(text in tail for text in self._stops.texts)]
        found = torch.zeros_like(self.is_stopped)
        for row in near:
            # Only the whole answer tells it from what a template puts before the content.
            found[row] = self._format.holds_stop_text(tokens[row].tolist(), self._stops)
        return found
