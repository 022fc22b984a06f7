"""New tokens of a vocabulary: their rows at the start, in training, in a saved adapter, and merged into the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from llmforge.config.model import LoraConfig
from llmforge.errors import ModelError
from llmforge.export.merge import merge_adapter
from llmforge.models.adapter_files import add_saved_adapter, load_adapter, resume_adapter, save_adapter, start_adapter
from llmforge.models.vocabulary import make_room
from llmforge.train.losses import LogitScaling, OutputLoss
from tests.models.tiny import TOKENS, llama, logits, trained

NEW = (64, 65)
"""Ids behind the last of the model."""
LORA = LoraConfig(r=4, target_modules=("q_proj", "v_proj"))


def grown(*, is_tied: bool, seed: int = 5) -> PreTrainedModel:
    model = llama(tie_word_embeddings=is_tied, hidden_size=32)
    torch.manual_seed(seed)
    make_room(model, NEW, like_others=True)
    return model


def train(adapted: PeftModel, num_steps: int = 2) -> list[float]:
    """Losses of the new tokens behind the two prompts, by the output layer's own loss."""
    base = adapted.get_base_model()
    loss_of = OutputLoss(base.get_output_embeddings(), base.config.vocab_size, LogitScaling())
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(num_steps):
        hidden = base.get_decoder()(input_ids=TOKENS).last_hidden_state[:, -1]
        loss = loss_of(hidden, torch.tensor(NEW), None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("is_tied", [False, True])
def test_new_rows_are_those_of_transformers_and_old_ones_stay(is_tied: bool) -> None:
    expected = llama(tie_word_embeddings=is_tied, hidden_size=32)
    torch.manual_seed(5)
    expected.resize_token_embeddings(66)
    found, old = grown(is_tied=is_tied), llama(tie_word_embeddings=is_tied, hidden_size=32)
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    assert found.config.vocab_size == 66
    assert torch.equal(logits(found)[..., :64], logits(old))
    make_room(found, (3, 65), like_others=True)  # where there are rows already
    assert found.config.vocab_size == 66


@pytest.mark.parametrize("is_tied", [False, True])
def test_an_adapter_trains_the_new_rows_alone(is_tied: bool, tmp_path: Path) -> None:
    adapted = start_adapter(grown(is_tied=is_tied), LORA, "base", NEW)
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    names = {name for name in trained(adapted) if ".lora_" not in name}
    assert names == {"base_model.model.lm_head.token_adapter.trainable_tokens_delta.default"}
    losses = train(adapted)
    assert losses[-1] < losses[0]
    changed = {name for name, weight in adapted.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == set(trained(adapted))
    weight = adapted.get_base_model().get_output_embeddings().weight
    hidden = torch.randn(3, 32)
    expected = functional.linear(hidden, weight.detach())
    torch.testing.assert_close(adapted.get_base_model().get_output_embeddings()(hidden), expected)
    start = grown(is_tied=is_tied).get_output_embeddings().weight
    assert torch.equal(weight[:64], start[:64]) and not torch.isclose(weight[64:], start[64:]).all(dim=1).any()


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_saved_adapter_brings_its_rows_and_goes_on(is_tied: bool, tmp_path: Path) -> None:
    """Over the base as it was published, whose vocabulary is smaller."""
    adapted = start_adapter(grown(is_tied=is_tied), LORA, "base", NEW)
    train(adapted)
    save_adapter(adapted, trained(adapted), tmp_path)
    published = llama(tie_word_embeddings=is_tied, hidden_size=32)
    loaded = load_adapter(published, tmp_path, is_trainable=False)
    assert torch.equal(logits(loaded), logits(adapted))
    resumed = resume_adapter(grown(is_tied=is_tied, seed=6), LORA, tmp_path)
    assert {name: weight.tolist() for name, weight in trained(resumed).items()} == {
        name: weight.tolist() for name, weight in trained(adapted).items()
    }
    assert train(resumed, 1) == pytest.approx(train(adapted, 1), abs=0.2)
    with pytest.raises(ModelError, match="new tokens of the vocabulary"):
        add_saved_adapter(loaded, tmp_path, "other")


@pytest.mark.parametrize("is_tied", [False, True])
def test_merged_weights_have_the_rows(is_tied: bool, tmp_path: Path) -> None:
    adapted = start_adapter(grown(is_tied=is_tied), LORA, "base", NEW)
    train(adapted)
    expected = logits(adapted)
    merged = merge_adapter(adapted, torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    assert merged.config.vocab_size == 66 and merged.config.tie_word_embeddings is is_tied
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path)), logits(merged))
