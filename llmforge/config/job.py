"""The job: a YAML file and `key=value` overrides in, a checked `JobConfig` out.

All problems are reported at once, each as `file:line: field: message`, sorted by line. A `JobConfig` travels to workers
as JSON and is checked again there. Defaults that depend on the model, the cluster or the data are filled in later, by
`resolve.py`; files that the job names are looked at by `llmforge validate`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from llmforge.config.finding import Finding, Path, descend, path_text
from llmforge.config.keys import JobKeys
from llmforge.config.legacy import Translation, translate_legacy
from llmforge.config.overrides import Override, apply_override, nested, parse_override
from llmforge.config.pasted import QuoteRepair, find_odd_templates, repair_quotes
from llmforge.config.prompt_format import PromptFormat
from llmforge.config.rules import find_contradictions
from llmforge.config.secrets import find_secrets
from llmforge.config.training import REWARD_ACCURACY
from llmforge.config.unsupported import find_unsupported
from llmforge.config.wording import find_schema_problems
from llmforge.config.yaml_file import YamlDocument, parse_yaml
from llmforge.errors import ConfigError, Problem

_LOG = logging.getLogger(__name__)
_COMMAND_LINE = "command line"
_STAND_INS = {"model_id": "unknown", "train_path": "unknown.jsonl"}


class JobConfig(JobKeys):
    """A whole job. Its keys are right one by one and together; what is not given is still at its default."""

    @property
    def method(self) -> Literal["lora", "full"]:
        """Whether an adapter or all weights are trained."""
        return "full" if self.lora_config is None else "lora"

    @property
    def is_paired(self) -> bool:
        """Whether the rows of a resolved job are pairs of a chosen and a rejected answer."""
        return self.task == "preference_tuning" and not self.is_rated

    @property
    def is_rated(self) -> bool:
        """Whether every row of a job is one answer that is desirable or not."""
        return self.preference_tuning_config is not None and self.preference_tuning_config.loss == "kto"

    @property
    def best_by(self) -> str | None:
        """The measure of evaluations whose highest value is the best; None: the lowest loss."""
        preference, classifier = self.preference_tuning_config, self.classifier_config
        if classifier is not None and classifier.best_by != "loss":
            return classifier.best_by
        return REWARD_ACCURACY if preference is not None and preference.best_by == "accuracy" else None

    @property
    def labels(self) -> tuple[str, ...]:
        """What the last answers of rows are, where the job trains a classifier; else empty."""
        return () if self.classifier_config is None else self.classifier_config.label_tokens

    @property
    def prompt_format(self) -> PromptFormat:
        """The prompt format of a resolved job, which always has one."""
        assert self.generation_config is not None and self.generation_config.prompt_format is not None
        return self.generation_config.prompt_format

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> JobConfig:
        faulty = info.context["faulty"] if info.context else ()
        findings = find_unsupported(self.model_dump(mode="json")) + find_contradictions(self, faulty)
        if findings:
            text = "; ".join(f"{path_text(finding.path)}: {finding.message}" for finding in findings)
            raise PydanticCustomError("job_rules", "{text}", {"text": text, "findings": tuple(findings)})
        return self


def job_json_schema() -> dict[str, Any]:
    """JSON schema of a job file, with descriptions, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | JobConfig.model_json_schema()
    _unwrap_descriptions(schema)
    return schema | {"title": "llmforge job", "description": "A fine-tuning job of llmforge."}


@dataclass(frozen=True)
class LoadedJob:
    """A checked job that still knows where each of its values was written."""

    job: JobConfig
    _draft: _Draft

    def locate(self, findings: Iterable[Finding]) -> list[Problem]:
        """What later checks found, with the file and line of the keys."""
        return [self._draft.problem(finding) for finding in findings]


def load_job(path: str | FilePath, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a job file, lay the overrides over it and check it all.

    Raises ConfigError with every problem. Logs a warning for each old spelling that was translated, each value whose
    quotes were repaired, and each template that hardly means what it says.
    """
    return parse_job(read_job_text(path), str(path), overrides).job


def parse_job(text: str, source: str, overrides: Iterable[str] = ()) -> LoadedJob:
    """As `load_job`, from the text of a job file; `source` names it in messages."""
    draft = _read_draft(text, source, overrides)
    for finding in find_odd_templates(draft.data):
        _LOG.warning("%s", draft.problem(finding))
    job, findings = _validate(draft.data)
    problems = draft.problems + [draft.problem(finding) for finding in find_secrets(draft.data) + findings]
    if problems or job is None:
        raise ConfigError.from_problems(problems)
    return LoadedJob(job, draft)


@dataclass(frozen=True)
class _Origin:
    """Where a value was written."""

    source: str
    line: int | None


@dataclass
class _Draft:
    """The data of a job before it is checked, in today's spelling, and where each value was written.

    The one object here that changes: translation and overrides are laid over it one after the other.
    """

    data: dict[str, Any]
    origins: dict[Path, _Origin]
    renames: dict[Path, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, finding: Finding) -> Problem:
        """A finding with its place: the line of the key, or of the nearest key around it."""
        path = finding.path
        while path not in self.origins:
            path = path[:-1]
        origin = self.origins[path]
        old = next((old for new, old in self.renames.items() if finding.path[: len(new)] == new), None)
        message = finding.message if old is None else f"{finding.message} (written as {path_text(old)})"
        return Problem(message, path_text(finding.path), origin.source, origin.line)

    def take_over(self, translation: Translation) -> None:
        """Put translated data in place; a translated key keeps the line of the old one."""
        for notice in translation.notices:
            _LOG.warning("%s", self.problem(notice))
        self.problems += [self.problem(conflict) for conflict in translation.conflicts]
        for new, old in translation.renames.items():
            moved = {path: origin for path, origin in self.origins.items() if path[: len(old)] == old}
            self.origins |= {(*new, *path[len(old) :]): origin for path, origin in moved.items()}
        self.renames |= translation.renames
        self.data = translation.data

    def override(self, override: Override) -> None:
        """Lay one value over the data, old spellings included."""
        translation = translate_legacy(nested(override))
        for notice in translation.notices:
            _LOG.warning("%s", Problem(notice.message, path_text(notice.path), _COMMAND_LINE))
        path = next((new for new, old in translation.renames.items() if old == override.path), override.path)
        present, value = descend(translation.data, path) if translation.renames or translation.notices else (True, None)
        if not present:
            return
        changed = apply_override(self.data, Override(path, value) if translation.renames else override)
        if isinstance(changed, Finding):
            self.problems.append(Problem(changed.message, path_text(changed.path), _COMMAND_LINE))
            return
        self.data = changed
        kept = {place: origin for place, origin in self.origins.items() if place[: len(path)] != path}
        above = {path[:depth]: _Origin(_COMMAND_LINE, None) for depth in range(1, len(path))}
        self.origins = above | kept | {path: _Origin(_COMMAND_LINE, None)}
        self.renames = {new: old for new, old in self.renames.items() if new[: len(path)] != path} | translation.renames


def _read_draft(text: str, source: str, overrides: Iterable[str]) -> _Draft:
    text, repairs = repair_quotes(text)
    document = parse_yaml(text, source)
    for repair in repairs:
        field_name = path_text(_path_of(repair, document))
        _LOG.warning("%s", Problem(repair.notice, field_name, source, repair.line))
    if not isinstance(document.data, dict):
        found = "an empty file" if document.data is None else "no mapping"
        raise ConfigError(f"{source}:1: found {found}, allowed is a job: lines of `key: value` (see docs/job-file.md)")
    origins = {place: _Origin(source, line) for place, line in document.lines.items()}
    draft = _Draft(document.data, {(): _Origin(source, 1)} | origins, problems=list(document.problems))
    draft.take_over(translate_legacy(draft.data))
    for word in overrides:
        key, equals, value = word.partition("=")
        value, repairs = repair_quotes(value)
        for repair in repairs:
            _LOG.warning("%s", Problem(repair.notice, key, _COMMAND_LINE))
        try:
            override = parse_override(f"{key}{equals}{value}")
        except ConfigError as error:
            draft.problems += _override_problems(word, error)
            continue
        draft.override(override)
    return draft


def _path_of(repair: QuoteRepair, document: YamlDocument) -> Path:
    """The key in whose line a repaired value stands; the root where it stands in a line of its own."""
    keys = (path for path, line in document.lines.items() if line == repair.line)
    return next((path for path in keys if descend(document.data, path)[1] == repair.value), ())


def _override_problems(word: str, error: ConfigError) -> list[Problem]:
    if not error.problems:
        return [Problem(str(error), source=_COMMAND_LINE)]
    key = word.partition("=")[0]
    return [Problem(p.message, f"{key}.{p.field}" if p.field else key, _COMMAND_LINE) for p in error.problems]


def read_job_text(path: str | FilePath) -> str:
    """The text of a job file. Raises ConfigError."""
    try:
        return FilePath(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path of the job file") from error


def _validate(data: dict[str, Any]) -> tuple[JobConfig | None, list[Finding]]:
    """The job, or everything that is wrong with it: single values, keys that contradict, what is not supported yet."""
    job, findings = _try(data, faulty=())
    if job is not None:
        return job, []
    faulty = {finding.path[0] for finding in findings if finding.path}
    rest = _STAND_INS | {key: value for key, value in data.items() if key not in faulty}
    known = {finding.path for finding in findings}
    further = [finding for finding in find_unsupported(data) if finding.path not in known] + _try(rest, faulty)[1]
    return None, list(dict.fromkeys(findings + further))


def _try(data: dict[str, Any], faulty: Iterable[str | int]) -> tuple[JobConfig | None, list[Finding]]:
    try:
        # As JSON, since only there a strict model takes a list for a tuple.
        return JobConfig.model_validate_json(json.dumps(data), strict=True, context={"faulty": faulty}), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    broken = [finding for entry in errors if entry["type"] == "job_rules" for finding in entry["ctx"]["findings"]]
    return None, broken or find_schema_problems(errors, data, job_json_schema())


def _unwrap_descriptions(node: Any) -> None:
    """Undo the line breaks of docstrings, in place."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _unwrap_descriptions(child)
    if isinstance(node, dict) and isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
