"""All checks, in the order in which a person would make them.

In: what the jobs will use. Out: one `Check` after another, as they are made. Looks only at what is named: no server is
asked that the request, or the environment of this machine, does not name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

from boto3.session import Session
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from llmforge.doctor.check import Check
from llmforge.doctor.cluster import check_clock, check_cluster
from llmforge.doctor.compute import check_compute
from llmforge.doctor.machine import check_disks, check_name, check_ports, check_shared_memory
from llmforge.doctor.packages import check_packages, check_python, installed_version
from llmforge.errors import StorageError
from llmforge.storage.base import check_writable, open_storage
from llmforge.storage.uri import is_s3

_AMAZON = "https://s3.amazonaws.com"


@dataclass(frozen=True)
class DiagnosisRequest:
    """What the jobs will use."""

    cache_folder: Path
    address: str | None = None
    """Of the Ray cluster that runs them; None where this machine does."""
    storages: tuple[str, ...] = ()
    """Folders and `s3://` addresses that they write to."""


def diagnose(request: DiagnosisRequest) -> Iterator[Check]:
    """Make all checks. Each is made when it is asked for, and some take seconds."""
    runs_here = request.address is None
    yield check_python()
    yield from check_packages(runs_here=runs_here)
    if runs_here:
        yield from _check_this_machine()
    else:
        yield from check_cluster(str(request.address), _allowed_ray())
    yield from check_disks(_folders(request))
    yield from _check_storages(request.storages)
    yield _check_clock(request)


def _check_this_machine() -> Iterator[Check]:
    if installed_version("torch") is not None and installed_version("deepspeed") is not None:
        yield from check_compute()
    yield check_name()
    yield check_shared_memory()
    yield from check_ports()


def _allowed_ray() -> SpecifierSet:
    required = (Requirement(text) for text in metadata("llmforge").get_all("Requires-Dist") or ())
    return next(one.specifier for one in required if one.name == "ray")


def _folders(request: DiagnosisRequest) -> dict[str, Path]:
    """The places that fill, by what fills them; of the hub's package only its own variables are asked."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return {
        "copies of what lies in object stores": request.cache_folder,
        "models of the hub": Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),
        "Ray and temporary files": Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()),
        "this folder": Path.cwd(),
    }


def _check_storages(storages: tuple[str, ...]) -> Iterator[Check]:
    if not any(is_s3(uri) for uri in storages):
        yield _check_credentials()
    for uri in storages:
        try:
            check_writable(open_storage(uri))
        except StorageError as error:
            yield Check("storage", "failure", str(error))
        else:
            yield Check("storage", "ok", f"{uri}: written, listed, read and removed a small file")


def _check_credentials() -> Check:
    """Where credentials for S3 come from; never what they are."""
    found = Session().get_credentials()
    if found is None:
        advice = "for s3:// set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        return Check("storage", "note", "no credentials for S3 on this machine", advice)
    advice = "llmforge doctor --storage s3://bucket/prefix tries them"
    return Check("storage", "note", f"credentials for S3 come from: {found.method}; not tried", advice)


def _check_clock(request: DiagnosisRequest) -> Check:
    """Against the first server that is named."""
    if request.address is not None and request.address.startswith("http"):
        return check_clock(request.address)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint or any(is_s3(uri) for uri in request.storages):
        return check_clock(endpoint or _AMAZON)
    return Check("clock", "note", "not compared: no server is named", "llmforge doctor --storage s3://bucket/prefix")
