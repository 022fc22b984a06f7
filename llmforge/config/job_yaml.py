"""A resolved job as YAML for people, and back.

Every key stands there with its value; one that the submitted job did not give is marked `# default`. Reading the text
gives an equal job. There is no secret in it, since a job with a literal secret is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmforge.config.base import StrictModel
from llmforge.config.job import JobConfig, parse_job
from llmforge.config.keys import SECTIONS
from llmforge.config.yaml_file import dump_entry

_MARK = "  # default"


def job_to_yaml(job: JobConfig, submitted: JobConfig | None = None) -> str:
    """Every key of a job, group by group; keys that `submitted` did not give are marked (without it, none are)."""
    given = job if submitted is None else submitted
    lines: list[str] = []
    for section in SECTIONS:
        lines += ["", f"# {(section.__doc__ or '').rstrip('.')}"]
        lines += _key_lines(job, given, list(section.model_fields), mark=submitted is not None)
    return "\n".join(lines[1:]) + "\n"


def job_from_yaml(text: str, source: str = "resolved_job.yaml") -> JobConfig:
    """The job that `job_to_yaml` wrote. Raises ConfigError; `source` names the text in messages."""
    return parse_job(text, source).job


def _key_lines(model: StrictModel, given: object, names: list[str], mark: bool) -> Iterator[str]:
    plain = model.model_dump(mode="json")
    for name in names:
        is_default = mark and (not isinstance(given, StrictModel) or name not in given.model_fields_set)
        suffix = _MARK if is_default else ""
        value = getattr(model, name)
        if isinstance(value, StrictModel):
            yield f"{name}:{suffix}"
            inner = getattr(given, name, None)
            fields = list(type(value).model_fields)
            yield from (f"  {line}" for line in _key_lines(value, inner, fields, mark=mark and not is_default))
        else:
            first, *rest = dump_entry(name, plain[name]).splitlines()
            yield first + suffix
            yield from rest
