"""The two ends of an answer: messages to the ids that a model is given, and the ids that it writes to text.

In: what a run has stored about its prompt format, its stops and its tokenizer. Out: prompt ids, and the text of an
answer, cut where a stop begins. It runs no model, and does not know which program does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import GenerationConfig, PreTrainedTokenizerFast

from llmforge.answers.answer_text import decode_tokens, without_head
from llmforge.answers.prompt_maker import PromptMaker
from llmforge.answers.sampling import Sampling
from llmforge.answers.stops import Stops, cut_text, cut_tokens, find_stops
from llmforge.prompt.render import Segment, compile_templates

_ANY_WORD = Segment("word")


def end_of_sequence_ids(configured: GenerationConfig | None, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """What ends a text by a model's own configuration."""
    tokens = None if configured is None else configured.eos_token_id
    ids = tokens if isinstance(tokens, list) else [tokens]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)


@dataclass(frozen=True)
class AnswerFormat(PromptMaker):
    """How one trained model is asked and read."""

    decoder: PreTrainedTokenizerFast
    end_of_sequence_ids: frozenset[int]

    def stops(self, sampling: Sampling) -> Stops:
        """What ends an answer: the stops of the format, of the model, of the job, and those asked for."""
        stopping = (*(self.generation.stopping_sequences or ()), *sampling.stop)
        generation = self.generation.model_copy(update={"stopping_sequences": stopping})
        return find_stops(self.prompt_format, generation, self.encoder.special_ids, self.end_of_sequence_ids)

    def text(self, tokens: Iterable[int], stops: Stops) -> Iterator[str]:
        """The content of an answer in pieces, as soon as they are sure."""
        return cut_text(self._uncut_text(tokens, stops), stops.texts)

    def holds_stop_text(self, tokens: Sequence[int], stops: Stops) -> bool:
        """Whether an answer has come to one of the stop texts."""
        content = "".join(self._uncut_text(tokens, stops))
        return any(text in content for text in stops.texts)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens as the tokenizer has it, which may drop a space at the begin; no control token shows."""
        text: str = self.decoder.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def decode_all(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """As `decode`, for many rows in one call."""
        texts: list[str] = self.decoder.backend_tokenizer.decode_batch(rows, skip_special_tokens=True)
        return texts

    def _uncut_text(self, tokens: Iterable[int], stops: Stops) -> Iterator[str]:
        pieces = decode_tokens(cut_tokens(tokens, stops), self.decode, self.context)
        return without_head(pieces, self.answer_head)

    @cached_property
    def context(self) -> list[int]:
        """Tokens of any word, behind which an answer is decoded."""
        return self.encoder.encode_prompt([_ANY_WORD])

    @cached_property
    def answer_head(self) -> str:
        """What a trained model puts before the content of an answer, as it comes out of the decoder."""
        head = compile_templates(self.prompt_format, self.encoder.special_tokens).answer_head
        tokens = self.encoder.encode_prompt([_ANY_WORD, Segment(head, starts_answer=True)])
        return "".join(decode_tokens(tokens[len(self.context) :], self.decode, self.context))
