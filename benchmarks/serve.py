"""A server under many clients: whether it fails, leaks or lets anyone wait unduly, and how fast it is.

    PYTHONPATH=. python benchmarks/serve.py MODEL_FOLDER [--requests 1000] [--clients 32] [--places 16]

`llmforge serve` runs in a process of its own, with a model of that folder as a run would leave it. Clients send one
request after another; most read a stream to its end, some leave in the middle of it, some send what cannot be answered.
With fewer places than clients there is always a queue. Reported are: replies that were not as expected; the memory of
the server, a tenth of the requests at a time; the time to the first piece; how many answers began after one that was
asked for clearly later; and what the server itself counts at the end. Some of the prompts are then answered one at a
time by `Generator` in this process, for the tokens per second.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
import openai
import psutil
import torch

from llmforge.answers.sampling import Sampling
from llmforge.inference.find import find_trained_model
from llmforge.inference.generate import Generator, open_generator
from tests.export.trained_runs import OPENINGS, full_run

Kind = Literal["whole", "left", "malformed"]
MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b'{"model": "mine", "messages": []}', 400),
    (b'{"model": "mine", "messages": [{"role": "user", "content": "a"}], "tools": [{}]}', 400),
    (b'{"model": "other", "messages": [{"role": "user", "content": "a"}]}', 404),
    (json.dumps({"model": "mine", "messages": [{"role": "user", "content": "a " * 600}]}).encode(), 400),
    (b'{"model": "\xff"}', 400),
)
MARGIN_SECONDS = 0.25
"""A few steps: the first tokens of an answer may have no text, and clients share one event loop."""


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    kind: Kind
    sent: float
    first: float | None
    """When the first text came."""
    num_pieces: int
    problem: str | None = None


@contextmanager
def server_of(run: Path, folder: Path, places: int) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process and its address."""
    program = [str(Path(sys.executable).parent / "llmforge"), "serve", str(run), "--name", "mine", "--port", "0"]
    environment = os.environ | {"LLMFORGE_CACHE": str(folder / "cache")}
    with (folder / "stderr").open("w+") as log:
        process = subprocess.Popen([*program, "--max-concurrency", str(places)], stderr=log, env=environment, text=True)
        try:
            while not (found := re.search(r"serving at (\S+)/v1", (folder / "stderr").read_text())):
                assert process.poll() is None, (folder / "stderr").read_text()
                time.sleep(0.1)
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


async def ask(client: openai.AsyncOpenAI, number: int, draw: random.Random) -> Asked:
    """One streamed request, left in the middle or read to its end."""
    kind: Kind = "left" if draw.random() < 0.1 else "whole"
    leaves_after = draw.randint(1, 20) if kind == "left" else None
    sent, first, num_pieces = time.perf_counter(), None, 0
    stream = await client.chat.completions.create(
        model="mine",
        messages=[{"role": "user", "content": f"{OPENINGS[number % len(OPENINGS)]} {number}"}],
        max_tokens=draw.randint(5, 60),
        temperature=draw.choice([0, 1]),
        seed=number,
        stream=True,
    )
    reason = None
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            num_pieces += 1
        reason = chunk.choices[0].finish_reason
        if num_pieces == leaves_after:
            await stream.close()
            return Asked(kind, sent, first, num_pieces)
    return Asked(kind, sent, first, num_pieces, None if reason in ("stop", "length") else f"ended with {reason}")


async def ask_nonsense(http: httpx2.AsyncClient, draw: random.Random) -> Asked:
    """A request that cannot be answered."""
    body, expected = draw.choice(MALFORMED)
    sent = time.perf_counter()
    reply = await http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    problem = (
        None if reply.status_code == expected else f"found {reply.status_code}, expected {expected} for {body[:40]!r}"
    )
    return Asked("malformed", sent, None, 0, problem)


async def one_client(
    numbers: Iterator[int], client: openai.AsyncOpenAI, http: httpx2.AsyncClient, seed: int
) -> list[Asked]:
    """Requests one after another until there are none left."""
    found = []
    for number in numbers:
        draw = random.Random(seed * 1_000_003 + number)
        try:
            found.append(await (ask_nonsense(http, draw) if draw.random() < 0.1 else ask(client, number, draw)))
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            found.append(Asked("whole", 0, None, 0, repr(error)))
    return found


async def all_rounds(address: str, num_clients: int, num_requests: int, server: psutil.Process) -> list[Asked]:
    """Ten rounds, with the memory of the server after each; clients take the next number when they are done."""
    asked: list[Asked] = []
    memory = []
    async with (
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        httpx2.AsyncClient(base_url=address, timeout=600) as http,
    ):
        for part in range(10):
            numbers = iter(range(num_requests // 10))
            found = await asyncio.gather(*(one_client(numbers, client, http, part) for _ in range(num_clients)))
            asked += itertools.chain.from_iterable(found)
            memory.append(server.memory_info().rss / 2**20)
    print(f"memory of the server, MiB: {' '.join(f'{size:.0f}' for size in memory)}")
    return asked


def num_overtaken(asked: list[Asked]) -> int:
    """Answers that began after one which was asked for later, with a margin on both sides."""
    begun = [(one.sent, one.first) for one in asked if one.first is not None]
    return sum(
        any(
            other_sent > sent + MARGIN_SECONDS and other_first < first - MARGIN_SECONDS
            for other_sent, other_first in begun
        )
        for sent, first in begun
    )


def alone(run: Path, folder: Path, num_answers: int) -> float:
    """Tokens per second of `generate`, one answer at a time."""
    generator: Generator = open_generator(find_trained_model(str(run), "best", folder / "cache"))
    began, num_tokens = time.perf_counter(), 0
    for number in range(num_answers):
        conversation = generator.parse([{"role": "user", "content": f"{OPENINGS[number % len(OPENINGS)]} {number}"}])
        answer = generator.answer(conversation, Sampling(max_tokens=65))
        num_tokens += len(generator.trained.decoder.encode(answer, add_special_tokens=False))
    return num_tokens / (time.perf_counter() - began)


def measure(address: str, process: "subprocess.Popen[str]", arguments: argparse.Namespace) -> list[Asked]:
    """Ask, and print what the server counted."""
    began = time.perf_counter()
    asked = asyncio.run(all_rounds(address, arguments.clients, arguments.requests, psutil.Process(process.pid)))
    seconds = time.perf_counter() - began
    metrics = httpx2.get(f"{address}/metrics").text
    counted = re.findall(r"^llmforge_answer_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    tokens = sum(map(float, counted))
    print(f"{len(asked)} requests in {seconds:.1f} s: {dict(Counter(one.kind for one in asked))}")
    print(f"{tokens:.0f} tokens, {tokens / seconds:.0f} a second")
    shown = r"llmforge_((requests|answers)_total|(running|waiting)_answers )"
    print("\n".join(line for line in metrics.splitlines() if re.match(shown, line)))
    return asked


def main() -> None:
    """Serve, ask, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--places", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = full_run(arguments.model, folder / "made").uri
        with server_of(run, folder, arguments.places) as (process, address):
            asked = measure(address, process, arguments)
            process.send_signal(signal.SIGTERM)
            print(f"exit code after SIGTERM: {process.wait(timeout=60)}")
        first = [one.first - one.sent for one in asked if one.first is not None]
        cuts = statistics.quantiles(first, n=100)
        print(f"first piece, s: median {cuts[49]:.3f}, 99 of 100 {cuts[98]:.3f}, longest {max(first):.3f}")
        print(f"answers that began after one asked for later: {num_overtaken(asked)}")
        problems = Counter(one.problem for one in asked if one.problem)
        print(f"not as expected: {sum(problems.values())} {dict(problems) or ''}")
        complaints = [
            line for line in (folder / "stderr").read_text().splitlines() if "rror" in line or "Traceback" in line
        ]
        print(f"errors in the server's log: {len(complaints)} {complaints[:3] or ''}")
        print(f"one at a time by generate: {alone(run, folder, 20):.0f} tokens a second")


if __name__ == "__main__":
    main()
