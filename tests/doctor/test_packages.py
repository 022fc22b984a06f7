"""Installed packages against the ranges that the metadata of llmforge say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from packaging.specifiers import SpecifierSet

from llmforge.doctor.check import Check
from llmforge.doctor.packages import check_packages, check_python, installed_version


def checks(changed: Mapping[str, str | None], *, runs_here: bool = True) -> dict[str, Check]:
    """As on this machine, but for the packages in `changed`."""

    def find_version(name: str) -> str | None:
        return changed[name] if name in changed else installed_version(name)

    return {check.name: check for check in check_packages(runs_here=runs_here, find_version=find_version)}


def test_this_environment_is_whole() -> None:
    found = checks({})
    assert (found["packages: client"].state, found["packages: train"].state) == ("ok", "ok")
    assert set(found) >= {"packages: client", "packages: train", "packages: serve", "packages: quantization"}
    assert "packages: dev" not in found


@pytest.mark.parametrize(("runs_here", "state"), [(True, "failure"), (False, "note")])
def test_the_light_client_can_submit_and_not_train(runs_here: bool, state: str) -> None:
    found = checks({"torch": None, "ray": None}, runs_here=runs_here)["packages: train"]
    assert found.state == state
    assert found.found.startswith("not installed: ray, torch; training, preparing data")
    assert found.advice.endswith("pip install 'llmforge[train]'")


def test_an_extra_that_is_missing_stops_nothing() -> None:
    found = checks({"starlette": None})["packages: serve"]
    assert (found.state, found.found) == ("note", "not installed: starlette; llmforge serve needs them")


def test_a_version_that_is_too_old() -> None:
    found = checks({"torch": "2.1.0"})["packages: train"]
    assert found.state == "failure"
    assert "torch 2.1.0 (allowed is <3,>=2.13)" in found.found
    assert checks({"torch": "2.13.0+cu128"})["packages: train"].state == "ok"
    assert checks({"uvicorn": "0.1"})["packages: serve"].state == "warning"


def test_another_python() -> None:
    found = check_python(SpecifierSet(">=3.10,<3.13"), "3.14.2")
    assert (found.state, found.found) == ("failure", "3.14.2, allowed is <3.13,>=3.10")
    assert check_python().state == "ok"
