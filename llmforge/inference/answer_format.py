"""The two ends of an answer: messages to the ids that a model is given, and the ids that it writes to text.

In: what a run has stored about its prompt format, its stops and its tokenizer. Out: prompt ids, and the text of an
answer, cut where a stop begins. The prompt is rendered and tokenized by the same code as in training, so control tokens
written in a message stay text. It runs no model, and does not know which program does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.inference.answer_text import decode_tokens, without_head
from llmforge.inference.sampling import Sampling
from llmforge.inference.stops import Stops, cut_text, cut_tokens, find_stops
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import Segment, compile_templates, render_prompt_segments

_ANY_WORD = Segment("word")


@dataclass(frozen=True)
class AnswerFormat:
    """How one trained model is asked and read."""

    prompt_format: PromptFormat
    generation: GenerationConfig
    encoder: SegmentTokenizer
    decoder: PreTrainedTokenizerFast
    end_of_sequence_ids: frozenset[int]
    context_length: int | None
    """Most tokens of prompt and answer together; None where the model has no limit."""

    def parse(self, raw_messages: object) -> Conversation:
        """Check messages that end with the user's. Raises `DataError`."""
        return parse_conversation(raw_messages, self.prompt_format, for_training=False)

    def render(self, conversation: Conversation) -> str:
        """The text of the prompt."""
        return "".join(segment.text for segment in render_prompt_segments(conversation, self.prompt_format))

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids that the model is given."""
        return self.encoder.encode_prompt(render_prompt_segments(conversation, self.prompt_format))

    def stops(self, sampling: Sampling) -> Stops:
        """What ends an answer: the stops of the format, of the model, of the job, and those asked for."""
        stopping = (*(self.generation.stopping_sequences or ()), *sampling.stop)
        generation = self.generation.model_copy(update={"stopping_sequences": stopping})
        return find_stops(self.prompt_format, generation, self.encoder.special_ids, self.end_of_sequence_ids)

    def room(self, num_prompt_tokens: int, sampling: Sampling) -> int:
        """Most tokens of an answer. Raises `DataError` where the prompt leaves none."""
        if num_prompt_tokens == 0:
            raise DataError("the prompt is empty: the format puts nothing around the messages, and they have no text")
        wanted = self.generation.max_tokens if sampling.max_tokens is None else sampling.max_tokens
        longest = self.context_length
        if longest is None:
            return wanted
        if num_prompt_tokens >= longest:
            raise DataError(
                f"the prompt has {num_prompt_tokens} tokens; the model takes at most {longest - 1}, to leave room for "
                "an answer: shorten the messages"
            )
        return min(wanted, longest - num_prompt_tokens)

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
