"""Which attention back end a model gets; that each keeps examples apart is shown with the losses."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmforge.errors import ModelError
from llmforge.models.attention import use_attention
from llmforge.models.document_attention import Documents

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(family: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHAPE | settings))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model


@pytest.mark.parametrize(
    ("family", "settings", "chosen"),
    [
        ("llama", {}, "sdpa_per_document"),
        ("mistral", {"sliding_window": 4}, "sdpa_per_document"),
        ("qwen3", {"head_dim": 8}, "sdpa_per_document"),
        ("gemma2", {"head_dim": 8}, "eager"),  # a soft cap of attention scores, which SDPA does not have
        ("gpt_oss", {"num_local_experts": 2, "head_dim": 8}, "eager"),  # attention sinks
    ],
)
def test_auto_takes_the_best_and_says_why(
    family: str, settings: dict[str, object], chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(family, **settings)
    with caplog.at_level(logging.INFO, logger="llmforge"):
        assert use_attention(model, "auto", device=CPU) == chosen
    assert f"attention: {chosen} (flash_attention_2: it needs a GPU; varlen: it needs a GPU" in caplog.text


@pytest.mark.parametrize(
    ("family", "asked", "reason"),
    [
        ("llama", "flash_attention_2", "it needs a GPU"),
        ("llama", "varlen", "it needs a GPU of compute capability 8.0"),
        ("llama", "flex", "torch has no backward pass of it for CPUs"),
        ("gemma2", "sdpa_per_document", "gemma2 does more than plain attention"),
        ("gemma2", "sdpa", "gemma2 does more than plain attention"),
    ],
)
def test_what_cannot_be_used_is_refused(family: str, asked: str, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        use_attention(build(family), asked, device=CPU)
    assert str(caught.value) == (
        f"attention: found {asked}, which cannot be used: {reason}; write auto, or another back end"
    )


def test_a_layer_that_asks_for_more_is_refused() -> None:
    """What one back end knows and another does not is never passed over in silence."""
    model = build("llama")
    use_attention(model, "sdpa_per_document", device=CPU)
    documents = Documents.of([3, 5])
    ids = torch.arange(8)[None]
    with pytest.raises(ModelError, match="the model's layers ask for softcap, which attention by documents does not"):
        model(input_ids=ids, softcap=3.0, **documents.arguments)
    with pytest.raises(ModelError, match="does not hand the lengths of documents to its layers"):
        model(input_ids=ids)
