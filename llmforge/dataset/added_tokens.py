"""New control tokens of a tokenizer.

In: the text of a `tokenizer.json`, and tokens that it has not. Out: the text with them, behind all others. It does not
know what they are for, nor whether a model has weights for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

from llmforge.dataset.tokenize import special_tokens
from llmforge.errors import ModelError


def with_added_tokens(tokenizer_json: str, tokens: Sequence[str]) -> str:
    """The tokenizer with these tokens, in their order; the same text where there are none.

    They are found as they stand and never within white space or letters that belong to them. Raises `ModelError` where
    the tokenizer has no free ids behind its own.
    """
    if not tokens:
        return tokenizer_json
    tokenizer = Tokenizer.from_str(tokenizer_json)
    taken = set(tokenizer.get_vocab(with_added_tokens=True).values())
    tokenizer.add_special_tokens([control_token(token) for token in tokens])
    collides = [token for token in tokens if tokenizer.token_to_id(token) in taken]
    if collides:
        raise ModelError(
            f"the tokenizer cannot take {', '.join(map(repr, collides))} as new tokens: found ids that other tokens "
            "have, allowed is a vocabulary without gaps; choose texts that are one token already"
        )
    text: str = tokenizer.to_str()
    return text


def control_token(text: str) -> AddedToken:
    """As it is added, here and to the tokenizer of a checkpoint."""
    return AddedToken(text, special=True, normalized=False)


def added_tokens(before: str, after: str) -> dict[str, int]:
    """The control tokens that only the second of two tokenizers has: text to id."""
    known = special_tokens(before)
    return {text: number for text, number in special_tokens(after).items() if text not in known}
