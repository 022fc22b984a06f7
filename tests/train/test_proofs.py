"""What is proven before training: examples stay apart, and the logits are the model's own."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig, FalconForCausalLM

from llmforge.errors import ModelError
from llmforge.train.batches import Batch, Layout
from llmforge.train.losses import NextTokenLoss
from llmforge.train.proofs import Evaluate, check_examples_stay_apart, choose_logits

SHAPE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LAYOUT = Layout()


def build(family: str, **settings: object) -> NextTokenLoss:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHAPE | {"num_key_value_heads": 2} | settings))
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return NextTokenLoss(model).eval()


def evaluation(loss: NextTokenLoss) -> Evaluate:
    @torch.no_grad()
    def evaluate(batch: Batch) -> float:
        return float(loss(batch))

    return evaluate


def test_a_model_that_keeps_examples_apart_passes() -> None:
    loss = build("llama")
    check_examples_stay_apart(evaluation(loss), LAYOUT, "llama")


def test_a_mixture_of_experts_passes() -> None:
    """Other tokens in one example send other tokens of the batch to an expert, whose sums then round otherwise."""
    loss = build("mixtral", num_local_experts=4, num_experts_per_tok=2)
    check_examples_stay_apart(evaluation(loss), LAYOUT, "mixtral")


def test_a_model_that_does_not_is_refused() -> None:
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=False)
    loss = NextTokenLoss(FalconForCausalLM(config)).eval()
    with pytest.raises(
        ModelError, match=r"^packing: falcon lets the examples of a pack see each other .*packing: false$"
    ):
        check_examples_stay_apart(evaluation(loss), LAYOUT, "falcon")


@pytest.mark.parametrize("family", ["llama", "granite", "cohere"])
def test_logits_of_known_families_are_computed_in_chunks(family: str) -> None:
    loss = build(family, **({"logits_scaling": 8.0} if family == "granite" else {}))
    choose_logits(loss, evaluation(loss), LAYOUT, torch.float32)
    assert not loss.uses_own_logits


def test_a_model_that_does_more_to_its_logits_keeps_them(caplog: pytest.LogCaptureFixture) -> None:
    loss = build("llama")
    # What Falcon H1 does after its output layer, by a factor that is not in the configuration.
    loss.model.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 3))
    with caplog.at_level(logging.INFO, logger="llmforge"):
        choose_logits(loss, evaluation(loss), LAYOUT, torch.float32)
    assert loss.uses_own_logits
    assert "they are left to the model" in caplog.text
