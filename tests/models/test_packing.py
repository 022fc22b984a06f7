"""The proof that a model keeps the examples of a pack apart."""

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM

from llmforge.errors import ModelError
from llmforge.models.packing import check_examples_stay_apart


def test_a_model_that_keeps_them_apart_passes_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).train()
    check_examples_stay_apart(model)
    assert model.training


def test_a_model_that_does_not_is_refused() -> None:
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=False)
    model = FalconForCausalLM(config)
    with pytest.raises(
        ModelError, match=r"^packing: falcon lets the examples of a pack see each other .*packing: false$"
    ):
        check_examples_stay_apart(model)
