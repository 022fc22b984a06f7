"""Launch files of vLLM and Ray Serve LLM: what they say, and what they refuse to say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmforge.errors import ConfigError
from llmforge.export.launch import AdapterFacts, ServedFolder, ray_serve_files, vllm_files
from tests.export.served import FOLDER, GENERATION

ADAPTER = replace(FOLDER, adapter=AdapterFacts("meta-llama/Llama-3.1-8B", 12, ()))
REMOTE_ADAPTER = replace(ADAPTER, uri="s3://bucket/adapters/out")


def ray_config(folder: ServedFolder) -> dict[str, Any]:
    [file] = ray_serve_files(folder)
    [application] = yaml.safe_load(file.text)["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    [config] = application["args"]["llm_configs"]
    return dict(config)


def test_vllm_serves_merged_weights_from_the_folder_itself() -> None:
    config, script = vllm_files(FOLDER)
    assert (config.name, script.name, script.is_executable) == ("vllm.yaml", "serve_vllm.sh", True)
    read = yaml.safe_load(config.text)
    assert json.loads(read.pop("override-generation-config")) == {"temperature": 0.7, "top_p": 0.9}
    assert read == {"model": ".", "served-model-name": "out", "dtype": "bfloat16", "generation-config": "."}
    assert '# every request has to name these stops, which are no single tokens: {"stop": ["###"]}' in config.text
    assert "</s>, <|eot_id|> and after at most 64 tokens" in config.text


def test_vllm_is_greedy_where_the_job_is() -> None:
    config, _ = vllm_files(replace(FOLDER, generation=replace(GENERATION, temperature=0.0, stop_texts=())))
    assert json.loads(yaml.safe_load(config.text)["override-generation-config"]) == {"temperature": 0.0}
    assert '"stop"' not in config.text


def test_vllm_serves_an_adapter_over_its_base() -> None:
    read = yaml.safe_load(vllm_files(ADAPTER)[0].text)
    assert read["model"] == "meta-llama/Llama-3.1-8B"
    assert (read["tokenizer"], read["chat-template"]) == (".", "./chat_template.jinja")
    assert (read["enable-lora"], read["lora-modules"], read["max-lora-rank"]) == (True, "out=.", 16)


def test_the_script_starts_vllm_inside_its_folder(tmp_path: Path) -> None:
    """With a `vllm` that says what it was asked to do."""
    folder, programs = tmp_path / "a folder", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "vllm").write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n')
    (programs / "vllm").chmod(0o755)
    for file in vllm_files(FOLDER):
        (folder / file.name).write_text(file.text)
    shell = shutil.which("sh")
    assert shell is not None
    done = subprocess.run(
        [shell, str(folder / "serve_vllm.sh"), "--port", "9000"],
        env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = ["serve", "--config", "vllm.yaml", "--host", "127.0.0.1", "--port", "9000"]
    assert done.stdout.splitlines() == [str(folder), *words]


def test_ray_serves_merged_weights() -> None:
    assert ray_config(FOLDER) == {
        "model_loading_config": {"model_id": "out", "model_source": "/data/out"},
        "engine_kwargs": {
            "dtype": "bfloat16",
            "override_generation_config": {"temperature": 0.7, "top_p": 0.9},
        },
    }
    remote = ray_config(replace(FOLDER, uri="s3://bucket/out"))
    assert remote["model_loading_config"]["model_source"] == {"bucket_uri": "s3://bucket/out"}


def test_ray_serves_an_adapter_from_an_object_store() -> None:
    config = ray_config(REMOTE_ADAPTER)
    assert config["model_loading_config"] == {"model_id": "out-base", "model_source": "meta-llama/Llama-3.1-8B"}
    assert config["lora_config"] == {"dynamic_lora_loading_path": "s3://bucket/adapters"}
    assert config["engine_kwargs"]["max_lora_rank"] == 16
    assert config["engine_kwargs"]["chat_template"] == "{{- messages -}}"
    assert "# Clients ask for the model out-base:out." in ray_serve_files(REMOTE_ADAPTER)[0].text


@pytest.mark.slow
def test_ray_accepts_what_it_is_given() -> None:
    """Its own model of a configuration, in a process of its own, where its packages for serving are installed."""
    program = """
import json, sys
try:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
except ImportError as error:
    sys.exit(f"not installed: {error}")
for config in json.load(sys.stdin):
    print(LLMConfig.model_validate(config).model_id)
"""
    folders = (FOLDER, replace(FOLDER, uri="s3://bucket/out"), REMOTE_ADAPTER)
    given = json.dumps([ray_config(folder) for folder in folders])
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=False)
    if "not installed: " in done.stderr:
        pytest.skip(f"Ray Serve LLM is {done.stderr.splitlines()[-1]}")
    assert (done.returncode, done.stdout.split()) == (0, ["out", "out", "out-base"]), done.stderr


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (replace(ADAPTER, adapter=AdapterFacts("b", 8, ("use_dora",))), "found an adapter with use_dora, allowed for"),
        (replace(ADAPTER, adapter=AdapterFacts("b", 513, ())), "found an adapter of rank 513, allowed in vLLM is"),
    ],
)
def test_adapters_that_no_server_loads(folder: ServedFolder, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vllm_files(folder)
    with pytest.raises(ConfigError, match=message):
        ray_serve_files(replace(folder, uri="s3://bucket/out"))


def test_ray_loads_no_adapter_from_a_folder() -> None:
    with pytest.raises(ConfigError, match="found --adapter and a local folder, allowed is an s3:// address"):
        ray_serve_files(ADAPTER)
