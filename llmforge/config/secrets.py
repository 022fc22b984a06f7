"""Finds literal secrets in a job, and hides them in messages.

Secrets come from the environment, a file, or the cluster's secret store by name; a job is copied into logs, checkpoints
and dashboards. Works on the plain data of a job, before anything of it is printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmforge.config.finding import Finding, Path

_PATTERNS = {
    "an AWS access key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{12,}",
    "a Hugging Face token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}(?![A-Za-z0-9_/-])",
    "an API key": r"(?<![A-Za-z0-9])sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{8,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{16,}",
    "a password in a uri": r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_SECRET_KEY = re.compile(r"(?i)(?:^|[_-])(?:token|password|passwd|api[_-]?key|secret|access[_-]?key|secret[_-]?key)$")
_ANY_SECRET = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS.values()))
_ADVICE = "; a job is copied into logs and checkpoints: remove it and set it in the environment of the cluster"


def find_secrets(data: object) -> list[Finding]:
    """All literal secrets in plain data: what looks like one, and text under a key that names one."""
    return list(_search(data, ()))


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced by `***`."""
    return _ANY_SECRET.sub("***", text)


def _search(data: object, path: Path) -> Iterator[Finding]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _search(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _search(value, (*path, index))
    elif isinstance(data, str) and data:
        yield from _judge(data, path)


def _judge(text: str, path: Path) -> Iterator[Finding]:
    for name, pattern in _PATTERNS.items():
        if re.search(pattern, text):
            yield Finding(path, f"found {name}, allowed is no literal secret{_ADVICE}")
            return
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if _SECRET_KEY.search(key):
        yield Finding(path, f"found a literal value under a key that names a secret, allowed is none{_ADVICE}")
