"""The model card of an export: what it is, what it was trained on, how it is asked, how it is served.

In: `CardFacts`. Out: the text of `README.md`, with the YAML in front of it that the Hugging Face hub reads. Plain text
from plain values; nothing is looked up.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from llmforge.checkpoint.lineage import Lineage, lineage_text
from llmforge.config.job import JobConfig
from llmforge.config.job_yaml import job_to_yaml
from llmforge.config.prompt_format import PromptFormat
from llmforge.dataset.stats import DatasetStats
from llmforge.export.label_card import label_lines
from llmforge.export.launch import LaunchFile, ServedFolder
from llmforge.export.markdown import quoted

CARD_FILE = "README.md"


@dataclass(frozen=True)
class CardFacts:
    """What a card says."""

    job: JobConfig
    run_name: str
    checkpoint: str
    step: int
    metrics: dict[str, float]
    """Of the exported step, those that were measured."""
    data_prefix: str | None
    """Name of the prepared dataset: the hash of all that decides it."""
    stats: DatasetStats | None
    folder: ServedFolder
    example: str
    """One prompt of the run as text."""
    proofs: tuple[str, ...]
    """What was checked, a line each."""
    launch_files: tuple[LaunchFile, ...]
    lineage: Lineage = ()
    """The checkpoints that the run and its ancestors started from."""


def model_card(facts: CardFacts) -> str:
    """The text of the card."""
    sections = (
        ("", _head(facts)),
        ("Training", _training(facts)),
        ("Prompt format", _prompt_format(facts)),
        _answers(facts),
        ("How to serve it", _serving(facts)),
        ("What was checked at export", [f"- {proof}" for proof in facts.proofs]),
        ("Licence", _licence(facts)),
        ("The job", ["```yaml", job_to_yaml(facts.job).rstrip("\n"), "```"]),
    )
    body = "\n\n".join("\n".join([f"## {title}", "", *lines] if title else lines) for title, lines in sections)
    return f"---\n{yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True)}---\n\n{body}\n"


def front_matter(facts: CardFacts) -> dict[str, object]:
    """What the hub reads. A base model that is a folder has no name there, and its licence is not known here."""
    is_adapter = facts.folder.adapter is not None
    base = _base(facts.job)
    named: dict[str, object] = {}
    if not Path(base).is_absolute() and base.count("/") == 1 and not base.startswith("."):
        named = {"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    return {
        **named,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmforge", str(facts.job.task), *(["lora"] if facts.job.method == "lora" else [])],
    }


def _base(job: JobConfig) -> str:
    reference = job.initial_base_model_ckpt_path or job.model_id
    return reference if isinstance(reference, str) else reference.repo_id


def _head(facts: CardFacts) -> list[str]:
    what = "Weights"
    if facts.folder.adapter is not None:
        what = "A LoRA adapter"
    elif facts.job.method == "lora":
        what = "A LoRA adapter merged into its base, as weights"
    return [
        f"# {facts.folder.name}",
        "",
        f"{what} in {facts.folder.precision}, made with llmforge from the base model `{_base(facts.job)}`: checkpoint "
        f"`{facts.checkpoint}` (step {facts.step}) of the run `{facts.run_name}`.",
    ]


def _training(facts: CardFacts) -> list[str]:
    lines = [f"- task: {facts.job.task}, method: {facts.job.method}"]
    if facts.lineage:
        lines.append(f"- trained in: {lineage_text(facts.lineage, f'{facts.run_name} (step {facts.step})')}")
    if facts.job.quantization is not None:
        lines.append(
            f"- the adapter was trained on the base in {facts.job.quantization.bits} bits; merged weights are not "
            "quantized, so answers may differ slightly from those of the run"
        )
    lines += [f"- {name} at step {facts.step}: {value:.6g}" for name, value in facts.metrics.items()]
    if facts.data_prefix is not None:
        lines.append(f"- data: `{facts.data_prefix}`, a hash of rows, prompt format, tokenizer and settings")
    return [*lines, *_counts(facts.stats)]


def _counts(stats: DatasetStats | None) -> Iterator[str]:
    if stats is None:
        yield "- the counts of the prepared data were not at hand when this was exported"
        return
    for line in stats.describe().splitlines():
        yield f"- {line}"


def _prompt_format(facts: CardFacts) -> list[str]:
    prompt_format = facts.job.prompt_format
    return [
        "The tokenizer's chat template writes exactly this; nothing has to be retyped.",
        "",
        *(f"- {line}" for line in prompt_format_in_words(prompt_format)),
        "",
        "One prompt, as the model sees it (a JSON string, so that every character shows):",
        "",
        "```json",
        json.dumps(facts.example, ensure_ascii=False),
        "```",
    ]


def prompt_format_in_words(prompt_format: PromptFormat) -> Iterator[str]:
    """A line for each part of a format."""
    yield f"a conversation begins with {quoted(prompt_format.bos)}" if prompt_format.bos else "no text opens it"
    if prompt_format.system_in_user:
        turn = "last" if prompt_format.system_in_last_user else "first"
        yield f"the system message stands in the {turn} user turn, as {quoted(prompt_format.system)}"
    else:
        yield f"a system message is {quoted(prompt_format.system)}"
    if prompt_format.default_system_message:
        yield f"without one, the system message is {quoted(prompt_format.default_system_message)}"
    yield f"a user turn is {quoted(prompt_format.user)}"
    yield f"an answer is {quoted(prompt_format.assistant)}"
    if prompt_format.tool is not None:
        yield f"a tool message is {quoted(prompt_format.tool)}"
    if prompt_format.trailing_assistant:
        yield f"{quoted(prompt_format.trailing_assistant)} asks for an answer"
    yield (
        "white space around messages is stripped"
        if prompt_format.strip_whitespace
        else "white space around messages is kept"
    )
    yield (
        "messages may hold control tokens"
        if prompt_format.parse_special_in_content
        else "in training a message never became a control token, whatever it spells"
    )


def _answers(facts: CardFacts) -> tuple[str, list[str]]:
    """The section on what comes behind a prompt."""
    classifier = facts.folder.classifier
    if classifier is None:
        return "Answers end at", _stops(facts)
    return "Labels", label_lines(classifier, is_adapter=facts.folder.adapter is not None)


def _stops(facts: CardFacts) -> list[str]:
    generation = facts.folder.generation
    tokens = zip(generation.stop_tokens, generation.stop_ids, strict=True)
    lines = [f"- the token `{text}` ({token})" for text, token in tokens]
    lines += [f"- the text {quoted(text)}: name it in `stop` of every request" for text in generation.stop_texts]
    return lines or ["- nothing but the limit of tokens"]


def _serving(facts: CardFacts) -> list[str]:
    lines = ["- `llmforge chat FOLDER`, `llmforge generate FOLDER`, `llmforge serve FOLDER`"]
    if facts.folder.classifier is not None:
        lines[0] += ", which give labels and probabilities; other servers give the likeliest token alone"
    names = {file.name for file in facts.launch_files}
    known = {
        "serve_vllm.sh": "`./serve_vllm.sh` starts vLLM",
        "ray_serve_llm.yaml": "`serve run ray_serve_llm.yaml` starts Ray Serve LLM",
        "Modelfile": f"`ollama create {facts.folder.name} -f Modelfile` makes a model of Ollama",
    }
    lines += [f"- {text}" for name, text in known.items() if name in names]
    if facts.folder.adapter is None:
        lines.append("- `transformers.AutoModelForCausalLM.from_pretrained(FOLDER)`")
    else:
        lines.append(f"- `peft.PeftModel.from_pretrained(base, FOLDER)` over `{facts.folder.adapter.base}`")
    return lines


def _licence(facts: CardFacts) -> list[str]:
    return [
        f"llmforge does not know the licence of `{_base(facts.job)}` nor that of the data. Check both before you hand "
        "this on: most licences of base models bind what is made from them."
    ]
