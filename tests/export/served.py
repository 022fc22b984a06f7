"""One exported folder as launch files and cards see it."""

from __future__ import annotations

from llmforge.export.launch import ServedFolder
from llmforge.export.stopping import ServedGeneration

GENERATION = ServedGeneration(
    stop_ids=(2, 128009),
    stop_tokens=("</s>", "<|eot_id|>"),
    stop_texts=("###",),
    pad_id=0,
    temperature=0.7,
    top_p=0.9,
    top_k=None,
    min_p=None,
    max_tokens=64,
)
FOLDER = ServedFolder(
    uri="/data/out",
    name="out",
    precision="bf16",
    generation=GENERATION,
    chat_template="{{- messages -}}",
    context_length=2048,
    adapter=None,
)
