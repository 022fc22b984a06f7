"""The jobs that come with llmforge: found, described in a line each, and copied.

In: the folder `job_configs`. Out: a `ShippedJob` for each file. What a job is for, and what it needs, stands in the
first lines of its file: `# <a sentence>`, then `# Needs: <a sentence>`, either of them on as many lines as it takes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import llmforge
from llmforge.config.job import parse_job, read_job_text
from llmforge.errors import ConfigError

_NEEDS = "Needs: "
_SUFFIX = ".yaml"


@dataclass(frozen=True)
class ShippedJob:
    """One job that comes with llmforge."""

    name: str
    """Of the file, without `.yaml`."""
    path: Path
    summary: str
    """What it is for."""
    needs: str
    """Devices, memory, time."""
    model_id: str
    method: str
    """`lora` or `full`."""
    num_devices: int


def shipped_folder() -> Path:
    """Where the jobs lie: inside the installed package, or beside it in a checkout."""
    package = Path(llmforge.__file__).parent
    installed = package / "job_configs"
    return installed if installed.is_dir() else package.parent / "job_configs"


def shipped_jobs(folder: Path) -> list[ShippedJob]:
    """The jobs in `folder`, by name. Raises ConfigError where there are none, or one is not a job."""
    paths = sorted(folder.glob(f"*{_SUFFIX}"))
    if not paths:
        raise ConfigError(f"{folder}: found no job here, expected those that come with llmforge; install it again")
    return [_describe(path) for path in paths]


def find_shipped(name: str, folder: Path) -> Path:
    """The file of the job called `name`, with or without `.yaml`. Raises ConfigError with what is meant, perhaps."""
    names = [path.stem for path in sorted(folder.glob(f"*{_SUFFIX}"))]
    wanted = name.removesuffix(_SUFFIX)
    if wanted in names:
        return folder / f"{wanted}{_SUFFIX}"
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    suggestion = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"found {name}, allowed is the name of a job that `llmforge configs` lists{suggestion}")


def copy_shipped(name: str, target: Path, folder: Path) -> Path:
    """Copy a job to `target`, a file or a folder, and give the file. Raises ConfigError where one stands there."""
    source = find_shipped(name, folder)
    file = target / source.name if target.is_dir() else target
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{file}: found a file here, which is not replaced; remove it or name another") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; name a file in a folder of yours") from error
    return file


def _describe(path: Path) -> ShippedJob:
    text = read_job_text(path)
    job = parse_job(text, path.name).job
    summary, _, needs = _opening(text).partition(_NEEDS)
    return ShippedJob(path.stem, path, summary.strip(), needs.strip(), job.model_id, job.method, job.max_devices)


def _opening(text: str) -> str:
    """The words of the first paragraph of comments."""
    paragraph = re.match(r"(# .*\n)+", text)
    return "" if paragraph is None else " ".join(line.removeprefix("# ") for line in paragraph[0].splitlines())
