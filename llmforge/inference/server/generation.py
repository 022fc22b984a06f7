"""One answer in the making, as the engine sees it.

In: the ids of a prompt, how its tokens are drawn and read, and where its pieces go. Out: pieces, of the text that its
tokens come to, or of a label. It knows nothing of HTTP.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList

from llmforge.answers.sampling import Sampling
from llmforge.config.classifier import Classifier
from llmforge.inference.server.answer import AnswerReader, AnswerRules, Piece, ScoredToken

Deliver = Callable[[Piece | None], None]
"""Called in the engine's thread with every piece; None: the engine has ended before the answer did."""


@dataclass(frozen=True)
class Labelling:
    """How an answer is a label."""

    classifier: Classifier
    threshold: float | None
    """None for the classifier's own."""


@dataclass(eq=False)
class Generation:
    """A prompt and its answer so far."""

    prompt: list[int]
    rules: AnswerRules
    deliver: Deliver
    sampling: Sampling
    """How tokens are drawn, every value filled in; the seed is that of this answer alone."""
    num_top: int | None = None
    """Scores of how many tokens are wanted beside the one taken; None for no scores at all."""
    adapter: str | None = None
    """Name of the adapter, where the model has several."""
    labelling: Labelling | None = None
    """Of a classifier, whose answer is whole with its prompt."""
    is_cancelled: bool = field(default=False, init=False)
    """Nobody waits for it any more."""
    processors: LogitsProcessorList | None = field(default=None, init=False)
    """Makes the most probable token a draw; None takes it as it is. Set by an engine that chooses tokens itself."""
    last_token: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begin to read."""
        self._reader = AnswerReader(self.rules)

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together."""
        return len(self.prompt) + self.rules.max_tokens

    def take(self, token: int, score: ScoredToken | None) -> bool:
        """Add a token; whether the answer has ended with it."""
        self.last_token = token
        piece = self._reader.push(token, score)
        if piece is None:
            return False
        self.deliver(piece)
        return piece.finish_reason is not None

    def end_with_label(self, logits: torch.Tensor) -> None:
        """Give the label by the logits behind the prompt, of shape (vocabulary). Only with a `labelling`."""
        assert self.labelling is not None
        classifier = self.labelling.classifier
        found = classifier.classify(logits[list(classifier.token_ids)].tolist(), self.labelling.threshold)
        scores: tuple[ScoredToken, ...] = ()
        if self.num_top is not None:
            token = classifier.token_ids[classifier.labels.index(found.label)]
            scores = (_score(token, logits.float(), self.num_top),)
        self.deliver(Piece(found.label, 1, scores, "stop", found.probabilities))


def choose(generations: list[Generation], logits: torch.Tensor) -> list[tuple[int, ScoredToken | None]]:
    """The next token of every row of `logits` (rows, vocabulary), by the rules of its generation."""
    logits = logits.float()
    chosen = logits.argmax(dim=-1)
    no_ids = torch.empty((1, 0), dtype=torch.long, device=logits.device)
    for row, generation in enumerate(generations):
        if generation.processors is not None:
            chosen[row] = generation.processors(no_ids, logits[row : row + 1]).argmax()
    tokens: list[int] = chosen.tolist()
    return [
        (token, None if generation.num_top is None else _score(token, logits[row], generation.num_top))
        for row, (token, generation) in enumerate(zip(tokens, generations, strict=True))
    ]


def _score(token: int, logits: torch.Tensor, num_top: int) -> ScoredToken:
    """By the model itself, before temperature and the like."""
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return ScoredToken(token, float(logprobs[token]), pairs)
