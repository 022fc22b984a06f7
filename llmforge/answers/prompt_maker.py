"""Messages to the ids that a model is given.

In: what a run has stored about its prompt format and its tokenizer; messages. Out: prompt ids, and how many tokens they
leave for an answer. The prompt is rendered and tokenized by the same code as in training, so control tokens written in
a message stay text. It needs no weights, so prompts can be checked before a model is loaded.
"""

from dataclasses import dataclass

from llmforge.answers.sampling import Sampling
from llmforge.config.prompt_format import GenerationConfig, PromptFormat
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import DataError
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import render_prompt_segments


@dataclass(frozen=True)
class PromptMaker:
    """How one trained model is asked."""

    prompt_format: PromptFormat
    generation: GenerationConfig
    encoder: SegmentTokenizer
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

    def check_room(self, conversation: Conversation, max_tokens: int) -> None:
        """Raise `DataError` where an answer of `max_tokens` might not fit behind the prompt."""
        num_prompt_tokens = len(self.prompt_ids(conversation))
        if self.room(num_prompt_tokens, Sampling(max_tokens=max_tokens)) < max_tokens:
            raise DataError(
                f"the prompt has {num_prompt_tokens} tokens and its answer may have {max_tokens} (max_tokens): "
                f"together more than the {self.context_length} of the model; shorten the messages, or lower max_tokens"
            )
