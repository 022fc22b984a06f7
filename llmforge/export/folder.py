"""A run as a folder that other programs serve: composed, proven, and put in its place as a whole.

In: an `ExportRequest`. Out: an `ExportResult`, and the folder at its address; or an error, and nothing there. This is
the one place of the package that sees a whole job.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from llmforge.answers.stops import find_stops
from llmforge.checkpoint.exported import ExportRecord
from llmforge.checkpoint.find import CheckpointAddress
from llmforge.checkpoint.lineage import lineage_of
from llmforge.config.classifier import CLASSIFIER_FILE
from llmforge.config.job import JobConfig
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.errors import ConfigError, ModelError
from llmforge.export.adapter import adapter_facts, copy_adapter
from llmforge.export.card import CARD_FILE, CardFacts, model_card
from llmforge.export.comparison import Verification
from llmforge.export.launch import LAUNCH_TARGETS, LaunchFile, ServedFolder, ray_serve_files, vllm_files
from llmforge.export.ollama import ollama_files
from llmforge.export.places import ExportPlace
from llmforge.export.prompts import ProofRows, proof_rows
from llmforge.export.stopping import (
    ServedGeneration,
    hugging_face_generation,
    padding_id,
    served_generation,
)
from llmforge.export.stored import read_stats, stored_examples
from llmforge.export.tokenizer import begin_of_text, save_tokenizer, served_tokenizer
from llmforge.export.verify import verify
from llmforge.export.weights import ExportDtype, WeightProof, base_folder, write_weights
from llmforge.inference.find import TrainedSource, find_trained_model
from llmforge.inference.load import saved_end_of_sequence_ids
from llmforge.metrics.loggers import METRICS_FILE, read_metrics
from llmforge.models.folder import read_tokenizer_json
from llmforge.models.load import Precision
from llmforge.prompt.render import render_prompt, render_prompt_segments
from llmforge.storage.manifest import folder_records

NUM_VERIFIED_ROWS = 64
NUM_COMPARED_PROMPTS = 4
LONGEST_COMPARED_PROMPT = 128
"""Tokens: logits are held for all of them at once."""


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how."""

    source: str
    output: str
    checkpoint: str = "best"
    only_adapter: bool = False
    dtype: ExportDtype = "same"
    max_shard_size: str = "5GB"
    targets: tuple[str, ...] = ()
    """Of `LAUNCH_TARGETS`."""
    replace: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What stands at the address now."""

    uri: str
    checkpoint: str
    size_bytes: int
    weights: WeightProof | None
    """None for an adapter, whose files are those of the checkpoint."""
    verification: Verification
    launch_files: tuple[str, ...]


def export_run(request: ExportRequest, cache_folder: Path) -> ExportResult:
    """Export one checkpoint of a run. Raises `LlmforgeError`, and leaves nothing at the target then."""
    place = ExportPlace.of(request.output, replace=request.replace)
    source = find_trained_model(request.source, request.checkpoint, cache_folder)
    _check(request, source)
    with place.staging(cache_folder) as folder:
        return _Export(request, source, place, folder, cache_folder).run()


class _Export:
    """One export, step by step."""

    def __init__(
        self, request: ExportRequest, source: TrainedSource, place: ExportPlace, folder: Path, cache_folder: Path
    ) -> None:
        self._request = request
        self._source = source
        self._job: JobConfig = source.job
        self._place = place
        self._folder = folder
        self._cache_folder = cache_folder
        self._checkpoint = source.fetch()
        self._tokenizer = served_tokenizer(self._checkpoint, self._job.prompt_format)
        self._ours = SegmentTokenizer(read_tokenizer_json(self._checkpoint))
        self._generation = self._served_generation()

    def run(self) -> ExportResult:
        save_tokenizer(self._tokenizer, self._folder)
        rows = proof_rows(self._job, NUM_VERIFIED_ROWS, self._cache_folder)
        served = self._served_folder()
        launch_files = self._launch_files(served)  # before the weights: what cannot be served shows at once
        proof = self._write_weights(rows)
        if self._source.classifier is not None:
            shutil.copyfile(self._checkpoint / CLASSIFIER_FILE, self._folder / CLASSIFIER_FILE)
        verification = self._verify(rows)  # behind them: config.json has a say in how others load a tokenizer
        loaded = folder_records(self._folder)
        for file in launch_files:
            _write(self._folder, file)
        proofs = (verification.describe(), *([proof.describe()] if proof is not None else []))
        card = model_card(self._card_facts(served, rows, proofs, launch_files))
        (self._folder / CARD_FILE).write_text(card, encoding="utf-8")
        records = folder_records(self._folder)
        others = [record for record in records if record not in loaded]
        self._place.commit(self._folder, ExportRecord.of(self._job, self._source.checkpoint, loaded), others)
        return ExportResult(
            uri=self._place.uri,
            checkpoint=self._source.checkpoint.name,
            size_bytes=sum(record.size_bytes for record in records),
            weights=proof,
            verification=verification,
            launch_files=tuple(file.name for file in launch_files),
        )

    @property
    def _precision(self) -> Precision:
        asked = self._request.dtype
        return cast(Precision, self._job.precision if asked == "same" else asked)

    def _served_generation(self) -> ServedGeneration:
        described = self._checkpoint if self._job.method == "full" else base_folder(self._job, self._cache_folder)
        ends = saved_end_of_sequence_ids(described, self._tokenizer)
        generation, special_ids = self._source.generation, self._ours.special_ids
        stops = find_stops(self._job.prompt_format, generation, special_ids, ends)
        return served_generation(generation, stops, self._decode, padding_id(described, self._tokenizer))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _verify(self, rows: ProofRows) -> Verification:
        stored = stored_examples(self._source.uri, self._job, self._source.checkpoint, self._cache_folder)
        verification = verify(self._folder, self._job, rows, stored)
        first = verification.first_difference
        if not verification.is_equal and first is not None:
            raise ModelError(
                f"{first.place}: {first.way} does not make the ids of llmforge: {first.reason}; nothing was left at "
                f"{self._place.uri}, because other programs would give the model prompts that it was not trained on. "
                f"llmforge verify {self._request.source} shows where they part"
            )
        return verification

    def _write_weights(self, rows: ProofRows) -> WeightProof | None:
        if self._request.only_adapter:
            copy_adapter(self._checkpoint, self._folder)
            hugging_face_generation(self._generation).save_pretrained(self._folder)
            return None
        return write_weights(
            self._checkpoint,
            self._job,
            self._folder,
            precision=self._precision,
            served=self._generation,
            max_shard_size=self._request.max_shard_size,
            prompts=self._compared_prompts(rows),
            cache_folder=self._cache_folder,
        )

    def _compared_prompts(self, rows: ProofRows) -> list[list[int]]:
        """Prompts of the run, or random ids where its data cannot be read."""
        if not rows.are_data:
            generator = torch.Generator().manual_seed(0)
            shape = (NUM_COMPARED_PROMPTS, LONGEST_COMPARED_PROMPT // 4)
            random: list[list[int]] = torch.randint(len(self._tokenizer), shape, generator=generator).tolist()
            return random
        chosen = [
            render_prompt_segments(row.prompt, self._job.prompt_format) for row in rows.rows[:NUM_COMPARED_PROMPTS]
        ]
        prompts = [self._ours.encode_prompt(segments) for segments in chosen]
        return [prompt[:LONGEST_COMPARED_PROMPT] for prompt in prompts if prompt]

    def _served_folder(self) -> ServedFolder:
        lora = self._job.lora_config if self._request.only_adapter else None
        return ServedFolder(
            uri=self._place.uri,
            name=_served_name(self._place.uri),
            precision=self._precision,
            generation=self._generation,
            chat_template=str(self._tokenizer.chat_template),
            context_length=self._job.context_length,
            adapter=None
            if lora is None
            else adapter_facts(self._checkpoint, lora, base_folder(self._job, self._cache_folder)),
            classifier=self._source.classifier,
        )

    def _launch_files(self, served: ServedFolder) -> tuple[LaunchFile, ...]:
        files: list[LaunchFile] = []
        for target in dict.fromkeys(self._request.targets):
            match target:
                case "vllm":
                    files += vllm_files(served)
                case "ray-serve-llm":
                    files += ray_serve_files(served)
                case "ollama":
                    files += ollama_files(served, self._job.prompt_format, begin_of_text(self._folder))
        return tuple(files)

    def _card_facts(
        self, served: ServedFolder, rows: ProofRows, proofs: tuple[str, ...], launch_files: tuple[LaunchFile, ...]
    ) -> CardFacts:
        checkpoint = self._source.checkpoint
        data = checkpoint.metadata.get("data")
        run = CheckpointAddress.of(self._source.uri).run_uri.rstrip("/").rpartition("/")[2]
        return CardFacts(
            job=self._job,
            run_name=self._job.run_name or run,
            checkpoint=checkpoint.name,
            step=checkpoint.step,
            metrics=_metrics(self._checkpoint, checkpoint.step, checkpoint.eval_loss),
            data_prefix=data if isinstance(data, str) else None,
            stats=read_stats(self._source.uri, self._job, checkpoint),
            folder=served,
            example=render_prompt(rows.rows[0].prompt.messages, self._job.prompt_format) if rows.rows else "",
            proofs=proofs,
            launch_files=launch_files,
            lineage=lineage_of(checkpoint),
        )


def _check(request: ExportRequest, source: TrainedSource) -> None:
    if source.is_export:
        raise ConfigError(
            f"{request.source}: found an exported folder, allowed is a run or a checkpoint: export from the run again"
        )
    if request.only_adapter and source.job.method == "full":
        raise ConfigError(
            f"--adapter: found a run that trained all weights ({request.source}), allowed is one with lora_config; "
            "export without --adapter"
        )
    if request.only_adapter and request.dtype != "same":
        raise ConfigError(
            f"--dtype: found {request.dtype} with --adapter, allowed is same: an adapter is exported byte for byte; "
            "remove --dtype"
        )
    for target in request.targets:
        if target not in LAUNCH_TARGETS:
            raise ConfigError(f"--to: found {target!r}, allowed are {', '.join(LAUNCH_TARGETS)}")
    if re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?(KB|MB|GB)", request.max_shard_size) is None:
        raise ConfigError(f"--max-shard-size: found {request.max_shard_size!r}, allowed is a size such as 5GB or 500MB")


def _write(folder: Path, file: LaunchFile) -> None:
    path = folder / file.name
    path.write_text(file.text, encoding="utf-8")
    if file.is_executable:
        path.chmod(path.stat().st_mode | 0o111)


def _served_name(uri: str) -> str:
    """What clients call the model: the last part of its address, in characters that every server takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", uri.rstrip("/").rpartition("/")[2]).strip("-") or "model"


def _metrics(checkpoint: Path, step: int, eval_loss: float | None) -> dict[str, float]:
    """What was measured at the exported step."""
    path = checkpoint / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    losses = [record["train/loss"] for record in records if record.get("step") == step and "train/loss" in record]
    found = {"training loss": losses[-1]} if losses else {}
    return found if eval_loss is None else {**found, "validation loss": eval_loss}
