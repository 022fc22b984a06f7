"""List what the image installs: python list_requirements.py --device cpu --folder FOLDER

Writes torch.txt, requirements.txt and constraints.txt into FOLDER: torch alone, since its layer is the largest and
changes least, then everything else that llmforge needs on a node, and the exact versions. It reads pyproject.toml and
constraints.txt in the working directory, and needs Python 3.11 and nothing else.
"""

import argparse
from pathlib import Path

import tomllib

_EVERYWHERE = ("train", "serve", "serve-ray")
EXTRAS = {"cpu": _EVERYWHERE, "cuda": (*_EVERYWHERE, "quantization", "liger")}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def requirements(device: str) -> list[str]:
    """What a node with such a device needs beside torch."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name in EXTRAS[device] for one in extras[name])]
    return [*(one for one in wanted if not one.startswith("torch>")), "ray[default]"]


def torch_lines(device: str, constraints: str) -> list[str]:
    """Torch in its exact version; on a CPU from the index that has the build without CUDA."""
    pinned = next(line for line in constraints.splitlines() if line.startswith("torch=="))
    return [f"--extra-index-url {CPU_INDEX}", f"{pinned}+cpu"] if device == "cpu" else [pinned]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=sorted(EXTRAS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    constraints = Path("constraints.txt").read_text(encoding="utf-8")
    asked.folder.mkdir(parents=True, exist_ok=True)
    files = {"torch": torch_lines(asked.device, constraints), "requirements": requirements(asked.device)}
    for name, lines in files.items():
        (asked.folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (asked.folder / "constraints.txt").write_text(constraints, encoding="utf-8")


if __name__ == "__main__":
    main()
