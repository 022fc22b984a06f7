"""Adapters for tests that want one which does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN_SIZE = 4096
"""Of the model that the adapter fits; no model of the tests is that large."""


def write_misfit(folder: Path) -> Path:
    """A LoRA adapter, as PEFT saves it, for a model of another size."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": np.zeros((4, HIDDEN_SIZE), np.float32),
        f"{layer}.lora_B.weight": np.zeros((HIDDEN_SIZE, 4), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
