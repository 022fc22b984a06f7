"""The image, and the files that start clusters of it, against the schemas of the programs that read them.

Nothing is built or started here: that needs a Docker daemon and a Kubernetes cluster.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyOptions
from jsonschema import Draft7Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llmforge.config.job import parse_job
from llmforge.config.secrets import find_secrets
from tests.docker.crd import resource_validator

HADOLINT = Path(sys.executable).parent / "hadolint"
SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "docker"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def refusals(validator: Draft7Validator, document: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(document)]


@pytest.fixture(scope="module")
def cluster_validator(material: Path) -> Draft7Validator:
    return resource_validator(material / "kuberay" / "ray.io_rayclusters.yaml")


@pytest.fixture(scope="module")
def job_validator(material: Path) -> Draft7Validator:
    return resource_validator(material / "kuberay" / "ray.io_rayjobs.yaml")


def pod_specs(node: object) -> list[dict[str, Any]]:
    """Everything below a document that has containers."""
    if isinstance(node, list):
        return [spec for item in node for spec in pod_specs(item)]
    if not isinstance(node, dict):
        return []
    return ([node] if "containers" in node else []) + [spec for item in node.values() for spec in pod_specs(item)]


def test_the_ray_cluster_is_what_kuberay_reads(folder: Path, cluster_validator: Draft7Validator) -> None:
    (cluster,) = documents(folder / "kuberay" / "raycluster.yaml")
    assert refusals(cluster_validator, cluster) == []


@pytest.mark.parametrize(
    ("path", "key", "value", "refused"),
    [
        (("spec",), "enableIntreeAutoscaling", True, "'enableIntreeAutoscaling' was unexpected"),
        (("spec", "headGroupSpec", "template", "spec"), "runAsNonRoot", True, "'runAsNonRoot' was unexpected"),
        (("spec", "workerGroupSpecs", 0), "maxReplicas", "four", "'four' is not of type 'integer'"),
        (("spec", "headGroupSpec", "rayStartParams"), "num-gpus", 0, "0 is not of type 'string'"),
        (("spec", "workerGroupSpecs", 0), "template", None, "None is not of type 'object'"),
        ((), "apiVersion", "ray.io/v2", "'ray.io/v1' was expected"),
    ],
)
def test_what_a_cluster_would_drop_is_refused(
    folder: Path, cluster_validator: Draft7Validator, path: tuple[str | int, ...], key: str, value: object, refused: str
) -> None:
    (cluster,) = documents(folder / "kuberay" / "raycluster.yaml")
    place: Any = cluster
    for part in path:
        place = place[part]
    place[key] = value
    (found,) = refusals(cluster_validator, cluster)
    assert refused in found


def test_the_ray_job_is_what_kuberay_reads(folder: Path, job_validator: Draft7Validator) -> None:
    config_map, ray_job = documents(folder / "kuberay" / "rayjob.yaml")
    assert refusals(job_validator, ray_job) == []
    assert "'entrypiont' was unexpected" in refusals(job_validator, ray_job | {"spec": {"entrypiont": ""}})[0]
    job = parse_job(config_map["data"]["job.yaml"], "rayjob.yaml").job
    worker = pod_specs(ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"])[0]["containers"][0]
    assert str(job.num_devices) == worker["resources"]["limits"]["nvidia.com/gpu"]
    head = pod_specs(ray_job["spec"]["rayClusterSpec"]["headGroupSpec"])[0]
    mounted = next(mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "job")
    volume = next(volume for volume in head["volumes"] if volume["name"] == "job")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert ray_job["spec"]["entrypoint"] == f"llmforge train {mounted['mountPath']}/job.yaml"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_pods_are_not_root_and_secrets_come_by_name(folder: Path, constraints: dict[str, str], name: str) -> None:
    text = (folder / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8")
    specs = [spec for document in documents(folder / "kuberay" / f"{name}.yaml") for spec in pod_specs(document)]
    assert len(specs) == 2
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        mounts = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}
        variables = {variable["name"]: variable for variable in spec["containers"][0]["env"]}
        for secret in SECRET_VARIABLES:
            assert set(variables[secret]) == {"name", "valueFrom"}
            assert set(variables[secret]["valueFrom"]) == {"secretKeyRef"}
    assert re.findall(r'rayVersion: "(.*)"', text) == [constraints["ray"]]


def test_the_aws_cluster_is_what_rays_launcher_reads(folder: Path) -> None:
    (cluster,) = documents(folder / "ray-cluster-aws.yaml")
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    schema = json.loads(Path(spec.origin).parent.joinpath("autoscaler", "ray-schema.json").read_text(encoding="utf-8"))
    validator = Draft7Validator(schema)
    assert refusals(validator, cluster) == []
    assert "'setup_comands' was unexpected" in refusals(validator, cluster | {"setup_comands": []})[0]
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert all("IamInstanceProfile" in kind["node_config"] for kind in types.values())
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == cluster["max_workers"]


def interpolated(text: str) -> str:
    """As Compose reads a file where the variables without a default are set."""
    return re.sub(r"\$\{\w+:(-(\w+)|\?[^}]*)\}", lambda found: found[2] or "given", text)


def read_compose(text: str) -> dict[str, Any]:
    """The data of a file of the Compose specification. Raises ValueError."""
    compose = PyOptions(apply_merge=True).from_yaml(interpolated(text))
    compose.validate()
    return compose.to_dict()


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_compose_files_are_of_the_compose_specification(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert "worker" in read_compose(text)["services"]
    with pytest.raises(ValueError, match="shm_sise"):
        read_compose(text.replace("  worker:\n", "  worker:\n    shm_sise: 2gb\n"))


def test_the_local_cluster_starts_in_order(folder: Path) -> None:
    text = (folder / "compose.yaml").read_text(encoding="utf-8")
    services = read_compose(text)["services"]
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert {name: {other: how["condition"] for other, how in each.items()} for name, each in waits.items()} == {
        "s3": {},
        "bucket": {"s3": "service_healthy"},
        "head": {"bucket": "service_completed_successfully"},
        "worker": {"head": "service_healthy"},
    }
    assert all("healthcheck" in services[name] for name in ("head", "s3"))
    (overlay,) = documents(folder / "compose.gpu.yaml")
    assert set(overlay["services"]) <= set(services)
    assert all(re.search(rf"{name}: \$\{{{name}:\?", text) for name in SECRET_VARIABLES[:2])


@pytest.mark.parametrize(
    "name", ["compose.gpu.yaml", "ray-cluster-aws.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
)
def test_no_secret_stands_in_a_file(folder: Path, name: str) -> None:
    assert [finding for document in documents(folder / name) for finding in find_secrets(document)] == []


def lint(text: str) -> list[str]:
    """The codes of hadolint's complaints."""
    done = subprocess.run(
        [str(HADOLINT), "--format", "json", "-"], input=text, capture_output=True, text=True, check=False
    )
    return [complaint["code"] for complaint in json.loads(done.stdout)]


def test_the_dockerfile(folder: Path) -> None:
    text = (folder / "Dockerfile").read_text(encoding="utf-8")
    assert lint(text) == []
    assert lint(text.replace("USER 1000:1000", "USER root")) == ["DL3002", "DL3066"]
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert [words for name, words in instructions if name == "USER"] == ["1000:1000"]
    assert not any(secret in text for secret in SECRET_VARIABLES)
    copied = {word for name, words in instructions if name == "COPY" for word in words.split()[:-1]}
    sent = {line.removeprefix("!") for line in (folder / "Dockerfile.dockerignore").read_text().splitlines()}
    assert copied <= sent
    assert all((folder.parent / source).exists() for source in copied)


@pytest.fixture(scope="module")
def constraints(repository: Path) -> dict[str, str]:
    """Exact versions by name, of Python 3.11."""
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate({"python_version": "3.11"})
    }


def with_extras(requirement: Requirement) -> list[Requirement]:
    """A package, and what its extras bring."""
    brought = (Requirement(text) for text in requires(requirement.name) or ()) if requirement.extras else ()
    return [requirement, *(one for one in brought if is_brought(one, requirement.extras))]


def is_brought(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is not None and any(marker.evaluate({"extra": extra}) for extra in extras)


@pytest.mark.parametrize(("device", "torch"), [("cpu", "torch=={}+cpu"), ("cuda", "torch=={}")])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the image has Python 3.11, and tomllib with it")
def test_everything_in_the_image_is_pinned(
    repository: Path, tmp_path: Path, constraints: dict[str, str], device: str, torch: str
) -> None:
    command = [sys.executable, "docker/list_requirements.py", "--device", device, "--folder", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True)
    listed = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {one.name for line in listed for one in with_extras(Requirement(line))}
    assert {"ray", "deepspeed", "boto3", "uvicorn"} <= names
    assert ("bitsandbytes" in names) is (device == "cuda")
    assert {canonicalize_name(name) for name in names} - {canonicalize_name(name) for name in constraints} == set()
    assert "torch" not in names
    assert (tmp_path / "torch.txt").read_text(encoding="utf-8").splitlines()[-1] == torch.format(constraints["torch"])
