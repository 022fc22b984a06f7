"""The operations counted of a model, against those that PyTorch counts while it computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from llmforge.config.operations import StepOperations, StepTokens, Weights
from llmforge.models.operations import count_operations, peak_operations_per_second

LENGTHS = (12, 12)
STEP = StepTokens(num_tokens=24, num_trained_tokens=24, num_token_pairs=2 * 12**2)
LAYERS, WIDTH = 2, 32


def llama(**changes: object) -> PreTrainedModel:
    settings: dict[str, object] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "attn_implementation": "eager",
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            attn_implementation="eager",
            experts_implementation="eager",
        )
    )


def adapted(model: PreTrainedModel, **lora: object) -> PreTrainedModel:
    # The gradient of the first layer's input is counted, as it is taken under gradient checkpointing.
    model.enable_input_require_grads()
    return cast(PreTrainedModel, get_peft_model(model, LoraConfig(r=3, task_type="CAUSAL_LM", **lora)))


def counted_by_torch(model: PreTrainedModel) -> int:
    """Of a forward and a backward pass over two documents; eager attention multiplies also pairs that do not see each
    other.
    """
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(50, (len(LENGTHS), LENGTHS[0])), use_cache=False).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "build",
    [
        llama,
        lambda: llama(tie_word_embeddings=True),
        lambda: adapted(llama(), target_modules="all-linear"),
        lambda: adapted(llama(), target_modules=["q_proj", "lm_head"], exclude_modules=r".*layers\.1.*"),
        lambda: adapted(llama(), target_modules=["o_proj"], modules_to_save=["lm_head"]),
        mixtral,
        lambda: adapted(mixtral(), target_modules=["q_proj", "v_proj"]),
    ],
    ids=["full", "tied", "LoRA", "LoRA on the head", "head in modules_to_save", "experts", "LoRA beside experts"],
)
def test_as_many_operations_as_pytorch_counts(build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model = build()
    unseen_half = STEP.num_token_pairs * 12 * LAYERS * WIDTH / 2
    assert count_operations(model).needed(STEP) + unseen_half == counted_by_torch(model)


def test_the_parts_of_a_model_by_hand() -> None:
    inner = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 40  # queries, keys and values, output; gate, up, down
    norms = 5 * 16
    assert count_operations(llama()) == StepOperations(
        decoder=Weights(trained=2 * inner),
        head=Weights(trained=800),
        num_layers=2,
        attention_width=32,
        num_parameters=2 * inner + 2 * 800 + norms,
    )
    assert count_operations(llama(tie_word_embeddings=True)).num_parameters == 2 * inner + 800 + norms
    # On one projection of 16 to 32 in each layer, and on the output layer of 16 to 50.
    adapter = count_operations(adapted(llama(), target_modules=["q_proj", "lm_head"]))
    assert adapter.decoder == Weights(frozen=2 * inner, trained=2 * 3 * (16 + 32))
    assert adapter.head == Weights(frozen=800, trained=3 * (16 + 50))


def test_a_token_goes_through_some_of_the_experts() -> None:
    attention = 16 * 32 + 2 * 16 * 16 + 32 * 16
    expert, router, norms = 3 * 16 * 40, 4 * 16, 5 * 16
    operations = count_operations(mixtral())
    assert operations.decoder == Weights(trained=2 * (attention + 2 * expert + router))
    assert operations.num_parameters == operations.decoder.trained + 2 * 800 + norms
    on_experts = count_operations(adapted(mixtral(), target_modules=[], target_parameters=["mlp.experts.gate_up_proj"]))
    assert on_experts.decoder == Weights(operations.decoder.trained, 2 * 2 * 3 * (16 + 2 * 40))


def test_look_ups_are_no_operations() -> None:
    on_embedding = count_operations(adapted(llama(), target_modules=["embed_tokens"]))
    assert on_embedding.decoder.trained == 3 * 16  # the second matrix: the first one gives a row
    some_tokens = adapted(llama(), target_modules=["o_proj"], trainable_token_indices={"embed_tokens": [1, 2]})
    assert count_operations(some_tokens).decoder.trained == 2 * 3 * (32 + 16)


def test_layers_that_store_their_weights_otherwise() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=4))
    assert count_operations(gpt2).decoder == Weights(trained=2 * 12 * 16**2)
    assert count_operations(gpt2).attention_width == 16


def test_attention_of_other_families() -> None:
    with torch.device("meta"):
        latent = DeepseekV3ForCausalLM(
            DeepseekV3Config(
                vocab_size=50,
                hidden_size=16,
                num_hidden_layers=1,
                first_k_dense_replace=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                qk_nope_head_dim=8,
                qk_rope_head_dim=4,
                v_head_dim=8,
            )
        )
        hybrid = Qwen3NextForCausalLM(
            Qwen3NextConfig(
                vocab_size=50,
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                layer_types=["linear_attention"] * 3 + ["full_attention"],
                num_experts=4,
            )
        )
    assert count_operations(latent).attention_width == 2 * (12 + 8) // 2
    assert count_operations(hybrid).num_layers == 1


def test_a_parameter_of_which_deepspeed_left_a_part() -> None:
    """Under ZeRO 3 a parameter is empty, and DeepSpeed keeps its shape in `ds_shape`."""
    whole = count_operations(mixtral())
    model = mixtral()
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert count_operations(model) == whole


def test_a_cpu_and_fp32_have_no_peak() -> None:
    assert peak_operations_per_second(torch.device("cpu"), "bf16") is None
    assert peak_operations_per_second(torch.device("cuda"), "fp32") is None
