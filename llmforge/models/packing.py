"""Proof that a model keeps the examples of a pack apart, before anything is trained on packs.

Positions that start anew tell `transformers` where an example begins, but not every architecture listens (linear
attention, convolutions, ALiBi). One that does not would learn from text that it never sees together when it is served.
"""

import torch
from transformers import PreTrainedModel

from llmforge.errors import ModelError

EXAMPLE_TOKENS = 6


@torch.no_grad()
def check_examples_stay_apart(model: PreTrainedModel) -> None:
    """Change the first example of a pack and look at the logits of the second; raise `ModelError` where they move."""
    was_training = model.training
    model.eval()
    first, second = torch.arange(2 * EXAMPLE_TOKENS).view(2, EXAMPLE_TOKENS)
    positions = torch.cat([torch.arange(EXAMPLE_TOKENS)] * 2)
    logits = [
        model(
            input_ids=torch.cat([example, second])[None].to(model.device),
            position_ids=positions[None].to(model.device),
            use_cache=False,
        ).logits[0, EXAMPLE_TOKENS:]
        for example in (first, first.flip(0))
    ]
    model.train(was_training)
    if not torch.equal(*logits):
        raise ModelError(
            f"packing: {model.config.model_type} lets the examples of a pack see each other with attention "
            f"{model.config._attn_implementation}; set packing: false"
        )
