"""Python and the installed packages, against the ranges that llmforge was published with.

In: the metadata of the installed packages. Out: a `Check` of the interpreter, of the light client and of every extra.
Nothing is imported here: whether a package works is for `compute.py` to find out.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from llmforge.doctor.check import Check

FindVersion = Callable[[str], "str | None"]
"""The installed version of a package; None where it is not installed."""

_PURPOSES = {
    "train": "training, preparing data and answering on this machine",
    "serve": "llmforge serve",
    "serve-ray": "llmforge serve on a Ray cluster",
    "quantization": "quantization (QLoRA) and the optimizer adamw_8bit",
    "liger": "liger_kernel",
}
_FOR_DEVELOPERS = "dev"


def check_python(allowed: SpecifierSet | None = None, found: str | None = None) -> Check:
    """Whether this interpreter is one that llmforge runs with."""
    allowed = SpecifierSet(str(metadata("llmforge")["Requires-Python"])) if allowed is None else allowed
    found = found or platform.python_version()
    if found in allowed:
        return Check("python", "ok", found)
    return Check("python", "failure", f"{found}, allowed is {allowed}", "make an environment with an allowed Python")


def check_packages(*, runs_here: bool, find_version: FindVersion | None = None) -> Iterator[Check]:
    """The packages of the client, then of every extra; `runs_here`: jobs run on this machine, and not on a cluster."""
    find = find_version or installed_version
    described = metadata("llmforge")
    required = [Requirement(text) for text in described.get_all("Requires-Dist") or ()]
    client = [requirement for requirement in required if _applies(requirement)]
    yield _check_group("client", client, find, is_needed=True)
    for extra in described.get_all("Provides-Extra") or ():
        if extra != _FOR_DEVELOPERS:
            members = [one for one in required if not _applies(one) and _applies(one, extra)]
            yield _check_group(extra, members, find, is_needed=runs_here and extra == "train")


def installed_version(name: str) -> str | None:
    """By the metadata of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _applies(requirement: Requirement, extra: str = "") -> bool:
    """Whether a requirement holds on this platform, with an extra asked for."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _check_group(group: str, required: list[Requirement], find: FindVersion, *, is_needed: bool) -> Check:
    name, versions = f"packages: {group}", {one.name: find(one.name) for one in required}
    install = "pip install " + ("llmforge" if group == "client" else f"'llmforge[{group}]'")
    missing = [package for package, found in versions.items() if found is None]
    if missing:
        purpose = f"; {_PURPOSES[group]} needs them" if group in _PURPOSES else ""
        found = f"not installed: {', '.join(missing)}{purpose}"
        return Check(name, "failure" if is_needed else "note", found, f"where that is wanted: {install}")
    outside = [
        f"{one.name} {versions[one.name]} (allowed is {one.specifier})"
        for one in required
        if not one.specifier.contains(versions[one.name] or "", prereleases=True)
    ]
    if outside:
        found = f"outside of the versions that llmforge is tested with: {', '.join(outside)}"
        return Check(name, "failure" if is_needed else "warning", found, f"{install} --upgrade")
    return Check(name, "ok", f"{len(required)} installed, all of allowed versions")
