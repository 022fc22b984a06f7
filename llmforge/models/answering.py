"""A model in the middle of its training, made to answer as it does once it is saved and loaded again.

In: a base model as the training set it up. Out: the same model, changed for the length of a context and put back
afterwards. Its weights, and where they lie, are not touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def ready_to_answer(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Within this context the model drops nothing out, keeps keys and values instead of computing activations again,
    uses `attention`, which knows both padding and a cache, and has none of its publisher's wishes about sampling.
    """
    was_training, trained_with, published = model.training, model.config._attn_implementation, model.generation_config
    model.eval()
    model.set_attn_implementation(attention)
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = published
        model.set_attn_implementation(trained_with)
        model.train(was_training)
