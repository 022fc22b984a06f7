"""Room in a model for new tokens of its vocabulary.

In: a whole model without an adapter. Out: the same with a row in embedding and output layer for every id. A model often
has more rows than its tokenizer has tokens; then it is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel


def make_room(model: PreTrainedModel, token_ids: Iterable[int], *, like_others: bool) -> None:
    """Give every id its rows.

    `like_others`: new rows start next to the mean of all others (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"), by torch's random numbers, so that nothing else that the model says changes; without
    it they are there to be replaced.
    """
    needed = max(token_ids, default=-1) + 1
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=like_others)
