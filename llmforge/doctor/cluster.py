"""A Ray cluster, seen from this machine: whether it answers, with which Ray, and what its clock says.

In: an address as Ray has it: `http://head:8265` for the Jobs API, `head:6379` or `ray://head:10001` for a driver here.
Out: a `Check` of each thing asked. Nothing of Ray is imported.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from time import time
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, proxy_bypass, urlopen

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from llmforge.doctor.check import Check

_TIMEOUT_SECONDS = 10
_TOLERATED_SECONDS = 30
_REFUSED_SECONDS = 15 * 60
"""S3 refuses requests whose time is further from its own."""
_NAMES = ("auto", "local")


@dataclass(frozen=True)
class Answer:
    """What a server said to one request."""

    status: int
    body: bytes
    seconds_ahead: float | None
    """Of its clock before this machine's; None where it does not tell the time."""


def ask(url: str) -> Answer:
    """One request, whatever its status. Raises OSError where there is no answer."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    started = time()
    try:
        with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as reply:
            return _answer(reply.status, reply.headers, reply.read(), (started + time()) / 2)
    except HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read(), (started + time()) / 2)


def check_cluster(address: str, allowed_ray: SpecifierSet) -> Iterator[Check]:
    """Whether a cluster answers at `address`, with a Ray of the `allowed_ray` versions."""
    if address in _NAMES:
        found = f"{address}: the cluster that runs on this machine, or a new one"
        yield Check("ray", "note", found, "name its address to have it looked at")
    elif address.startswith(("http://", "https://")):
        yield from _check_dashboard(address.rstrip("/"), allowed_ray)
    else:
        yield _check_socket(address)


def check_clock(url: str) -> Check:
    """This machine's clock against that of a server."""
    try:
        ahead = ask(url).seconds_ahead
    except OSError as error:
        return Check("clock", "note", f"not compared: {url} does not answer: {_reason(error)}")
    if ahead is None:
        return Check("clock", "note", f"not compared: {url} does not tell the time")
    found = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} {url}"
    if abs(ahead) <= _TOLERATED_SECONDS:
        return Check("clock", "ok", found)
    advice = "set the clock, best by NTP: S3 refuses requests that are 15 minutes off, and the times of a run are wrong"
    return Check("clock", "failure" if abs(ahead) >= _REFUSED_SECONDS else "warning", found, advice)


def _check_dashboard(address: str, allowed_ray: SpecifierSet) -> Iterator[Check]:
    try:
        version, jobs = ask(f"{address}/api/version"), ask(f"{address}/api/jobs/")
    except OSError as error:
        yield Check("ray", "failure", f"{address} does not answer: {_reason(error)}", _reach_advice(address))
        return
    if jobs.status in (401, 403):
        advice = "set RAY_AUTH_TOKEN to the token of the cluster"
        yield Check("ray", "failure", f"{address} wants a token (status {jobs.status})", advice)
        return
    if version.status != 200 or jobs.status != 200:
        found = f"{address} answers, but not as the Jobs API of Ray (status {jobs.status})"
        advice = "name the dashboard's port, 8265 by default, and install ray[default] on the head"
        yield Check("ray", "failure", found, advice)
        return
    yield _judge_version(address, version.body, allowed_ray)


def _judge_version(address: str, body: bytes, allowed_ray: SpecifierSet) -> Check:
    try:
        found = Version(str(json.loads(body)["ray_version"]))
    except (ValueError, KeyError, TypeError, InvalidVersion):
        return Check("ray", "failure", f"{address} does not tell its version of Ray", "name the dashboard of a cluster")
    if not allowed_ray.contains(found, prereleases=True):
        advice = "start the cluster with an image or an environment of llmforge's own versions (docker/README.md)"
        return Check("ray", "failure", f"{address} runs Ray {found}, allowed is {allowed_ray}", advice)
    return Check("ray", "ok", f"{address} runs Ray {found}, and takes jobs")


def _check_socket(address: str) -> Check:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return Check("ray", "failure", f"{address}: {error}", _FORMS)
    if host is None or port is None:
        return Check("ray", "failure", f"found {address}, which names no host and port", _FORMS)
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS):
            return Check("ray", "ok", f"{address} takes connections")
    except OSError as error:
        return Check("ray", "failure", f"{address} does not answer: {_reason(error)}", _reach_advice(address))


_FORMS = "write http://head:8265 for the Jobs API, head:6379 or ray://head:10001 for a driver on this machine"


def _reach_advice(address: str) -> str:
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    advice = (
        "check that the cluster runs and its port can be reached from here: ray dashboard CLUSTER.yaml, "
        "kubectl port-forward service/NAME-head-svc 8265, or ssh -L 8265:localhost:8265 HEAD"
    )
    proxied = address.startswith("http") and urlsplit(address).scheme in getproxies() and not proxy_bypass(host)
    return f"{advice}; requests go through a proxy: add {host} to no_proxy" if proxied else advice


def _reason(error: OSError) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(cause)


def _answer(status: int, headers: Message, body: bytes, asked_at: float) -> Answer:
    told = headers.get("Date")
    ahead = None if told is None else parsedate_to_datetime(told).timestamp() - asked_at
    return Answer(status, body, ahead)
