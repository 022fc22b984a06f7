"""What ends an answer and how one is sampled, as Hugging Face files and launch files say it.

In: a resolved job, the stops that were found for it, and its tokenizer. Out: a `ServedGeneration`: ids where the
tokenizer has one token for a stop, texts where it has none, and the job's own sampling. It writes no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers import GenerationConfig as HuggingFaceGenerationConfig

from llmforge.answers.stops import Stops
from llmforge.config.prompt_format import GenerationConfig

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class ServedGeneration:
    """How a server has to answer to answer as llmforge does."""

    stop_ids: tuple[int, ...]
    """Tokens that end an answer, sorted."""
    stop_tokens: tuple[str, ...]
    """The texts of these tokens, in the same order."""
    stop_texts: tuple[str, ...]
    """What ends an answer and is no single token: every request has to name it."""
    pad_id: int | None
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    max_tokens: int

    @property
    def sampling(self) -> dict[str, float]:
        """Settings of vLLM by its own names; temperature 0 always takes the likeliest token."""
        if self.temperature == 0:
            return {"temperature": 0.0}
        chosen = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {"temperature": self.temperature, **{name: value for name, value in chosen.items() if value is not None}}


def served_generation(
    generation: GenerationConfig, stops: Stops, decode: Callable[[Sequence[int]], str], pad_id: int | None
) -> ServedGeneration:
    """Sequences of several tokens become the texts that they spell."""
    stop_ids = sorted(stops.token_ids | {sequence[0] for sequence in stops.token_sequences if len(sequence) == 1})
    spelled = [decode(sequence) for sequence in stops.token_sequences if len(sequence) > 1]
    return ServedGeneration(
        stop_ids=tuple(stop_ids),
        stop_tokens=tuple(decode([token]) for token in stop_ids),
        stop_texts=tuple(dict.fromkeys([*stops.texts, *filter(None, spelled)])),
        pad_id=pad_id,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        min_p=generation.min_p,
        max_tokens=generation.max_tokens,
    )


def hugging_face_generation(served: ServedGeneration) -> HuggingFaceGenerationConfig:
    """As `transformers` reads it; stop texts have no place here, because `generate` would ask for a tokenizer."""
    is_sampled = served.temperature > 0
    sampling: dict[str, float | int | None] = {"do_sample": is_sampled}
    if is_sampled:
        # 0 takes every token: transformers and vLLM read it so, and their own default may be another.
        sampling |= {"temperature": served.temperature, "top_k": served.top_k or 0}
        sampling |= {name: getattr(served, name) for name in ("top_p", "min_p") if getattr(served, name) is not None}
    return HuggingFaceGenerationConfig(
        eos_token_id=list(served.stop_ids) or None,
        pad_token_id=served.pad_id,
        max_new_tokens=served.max_tokens,
        **sampling,
    )


def mark_ends(config: PreTrainedConfig, served: ServedGeneration) -> None:
    """Write the same stops and padding into a model's configuration, which some programs read instead."""
    ids = served.stop_ids[0] if len(served.stop_ids) == 1 else list(served.stop_ids) or None
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.eos_token_id = ids
        part.pad_token_id = served.pad_id


def padding_id(folder: Path, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The tokenizer's padding, else that of the model's configuration; None where neither names any."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    configured: int | None = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "pad_token_id", None)
    return configured if configured is not None and configured >= 0 else None
