"""Where the cluster's dashboard is, and what it wants to see before it answers.

In: `--address` and the environment. Out: a `ClusterAddress`, or a `ClusterError` that says how to give one. The token
of a cluster comes from the environment or a file, as for Ray's own programs, and is neither printed nor sent to
anything but that address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from llmforge.errors import ClusterError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_ALLOWED = (
    "allowed is the address of the cluster's dashboard, such as http://head:8265 (on Kubernetes: kubectl port-forward"
    " service/<cluster>-head-svc 8265:8265, then http://127.0.0.1:8265)"
)


@dataclass(frozen=True)
class ClusterAddress:
    """A dashboard and the headers of every request to it."""

    url: str
    """Without a slash at its end."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def find_address(given: str | None, environment: Mapping[str, str]) -> ClusterAddress:
    """The address that is given, or else stands in the environment. Raises `ClusterError`."""
    names = {"--address": given} | {name: environment.get(name) for name in ADDRESS_VARIABLES}
    place, found = next(((name, value) for name, value in names.items() if value), ("--address", ""))
    if not found:
        raise ClusterError(f"--address: found none, nor one in {' or '.join(ADDRESS_VARIABLES)}; {_ALLOWED}")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(f"{place}: found {found if '@' not in found else 'an address with a login'}; {_ALLOWED}")
    if parts.username is not None:
        raise ClusterError(f"{place}: found an address with a login, allowed is none; give it by RAY_JOB_HEADERS")
    return ClusterAddress(found.rstrip("/"), _headers(environment))


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    """`RAY_JOB_HEADERS`, and the token of a cluster that asks for one."""
    text = environment.get("RAY_JOB_HEADERS") or "{}"
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ClusterError('RAY_JOB_HEADERS: allowed is a JSON object of texts, such as {"Cookie": "..."}; correct it')
    token = _token(environment)
    return headers if token is None else {"Authorization": f"Bearer {token}"} | headers


def _token(environment: Mapping[str, str]) -> str | None:
    """In the order in which Ray looks for it: the variable, the file of the other, the file in the home folder."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    named, mode = environment.get("RAY_AUTH_TOKEN_PATH"), environment.get("RAY_AUTH_MODE", "").lower()
    file = Path(named) if named else Path(environment.get("HOME") or Path.home()) / ".ray" / "auth_token"
    if mode == "disabled" or not (named or mode == "token" or file.exists()):
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ClusterError(
            f"{'RAY_AUTH_TOKEN_PATH' if named else 'RAY_AUTH_MODE=token'}: the token file {file} cannot be read:"
            f" {error.strerror}; put the cluster's token there, or into RAY_AUTH_TOKEN"
        ) from error
