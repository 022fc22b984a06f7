"""`llmforge serve` as a process: what it says, how it stops, what it refuses."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.cli.conftest import PROGRAM, Llmforge
from tests.export.trained_runs import full_run
from tests.inference.server.servers import completed, streamed

Serve = Callable[..., "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def run(material: Path, tmp_path: Path) -> Path:
    return full_run(material / "models" / "stories260K-hf", tmp_path / "made", run_name="tales").uri


@pytest.fixture
def serve(run: Path, tmp_path: Path, machine: dict[str, str]) -> Iterator[Serve]:
    """`serve("--max-tokens", "5")`: a server of the run on a free port; its process and address."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [str(PROGRAM), "serve", str(run), "--port", "0", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, env=machine | environment, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            found = re.match(r"serving at (http://127.0.0.1:\d+)/v1, chat page at \1/", line)
            if found:
                return process, found[1]
        raise AssertionError("it ended without an address")

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(number: signal.Signals, serve: Serve) -> None:
    process, address = serve()
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        stream = streamed(client, model="tales", max_tokens=300)
        chunks = [next(stream)]
        process.send_signal(number)
        chunks += stream
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_options_and_key(serve: Serve) -> None:
    _, address = serve("--max-tokens", "5", "--name", "short", "--max-body-bytes", "1000", LLMFORGE_API_KEY="k3y")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="k3y", max_retries=0) as client:
        reply = completed(client, model="short")
        assert reply.usage is not None and reply.usage.completion_tokens == 5
        with pytest.raises(openai.BadRequestError, match="max_tokens: found 6, allowed is 1 to 5"):
            completed(client, model="short", max_tokens=6)
        with pytest.raises(openai.APIStatusError) as caught:
            completed(client, model="short", messages=[{"role": "user", "content": "a" * 1000}])
        assert caught.value.status_code == 413
    assert httpx2.get(f"{address}/v1/models").status_code == 401


def test_an_open_address_without_a_key(llmforge: Llmforge) -> None:
    done = llmforge("serve", "runs/mine", "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "--host: found 0.0.0.0, which other machines can reach, without an API key; set LLMFORGE_API_KEY in the "
        "environment, or leave --host at 127.0.0.1\n"
    )
