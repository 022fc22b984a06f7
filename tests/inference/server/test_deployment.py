"""Two replicas behind Ray Serve, asked by the real `openai` client: everything holds as in one process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from llmforge.answers.sampling import Sampling, row_seed
from llmforge.errors import ClusterError, ConfigError
from llmforge.inference.generate import Generator
from llmforge.inference.server.deployment import DeploymentOptions, deployed, drain
from llmforge.inference.server.replica import ReplicaPlan, node_api_key
from tests.inference.server.servers import ASK, OPTIONS, completed, streamed, text_of, wait_until
from tests.ray_fixtures import NODE_API_KEY

pytestmark = [
    pytest.mark.slow,
    # Ray Serve runs its router in a loop that it never closes.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
REPLICAS = 2


@dataclass(frozen=True)
class Cluster:
    """Replicas, and clients that end with them."""

    replicas: DeploymentHandle
    port: int
    closing: ExitStack

    def client(self, api_key: str = NODE_API_KEY) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return self.closing.enter_context(openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=60))

    def http(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {NODE_API_KEY}"}
        client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60)
        self.closing.callback(client.close)
        return client

    def counted(self, *parts: str) -> list[float]:
        """One number for each replica: the sum of its samples whose lines have all the parts."""
        sums: dict[str, float] = {}
        for line in self.http().get("/metrics").text.splitlines():
            if all(part in line for part in parts) and not line.startswith("#"):
                replica = line.partition('replica="')[2].partition('"')[0]
                sums[replica] = sums.get(replica, 0) + float(line.rpartition(" ")[2])
        return list(sums.values())


@pytest.fixture(scope="module")
def cluster(shared_ray: None, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    plan = ReplicaPlan(
        uris=(str(run),),
        names=("mine",),
        models=OPTIONS,
        cache_folder=tmp_path_factory.mktemp("cache"),
        host="127.0.0.1",
        max_body_bytes=100_000,
        needs_key=True,
    )
    with deployed(plan, DeploymentOptions(REPLICAS, port, 60)) as replicas, ExitStack() as closing:
        yield Cluster(replicas, port, closing)


def test_answers_are_those_of_one_process_and_come_from_all_replicas(cluster: Cluster, generator: Generator) -> None:
    client, conversation = cluster.client(), generator.parse(ASK)
    greedy = generator.answer(conversation, Sampling(max_tokens=60))
    hot: dict[str, Any] = {"temperature": 1.5, "max_tokens": 15, "seed": 7}
    expected = [
        generator.answer(conversation, Sampling(temperature=1.5, max_tokens=15, seed=row_seed(7, index)))
        for index in range(3)
    ]
    while len(cluster.counted("llmforge_answers_total{")) < REPLICAS:
        chunks = list(streamed(client, max_tokens=60, stream_options={"include_usage": True}))
        assert text_of(chunks) == greedy
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 60
        assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 20
        assert [choice.message.content for choice in completed(client, n=3, **hot).choices] == expected
    assert cluster.replicas.broadcast("engine").results() == ["transformers (no GPU)"] * REPLICAS


def test_refusals_have_the_shape_of_openai(cluster: Cluster) -> None:
    client, http = cluster.client(), cluster.http()
    with pytest.raises(openai.BadRequestError) as caught:
        completed(client, extra_body={"frequency_penalty": 0.5})
    assert (caught.value.param, caught.value.code) == ("frequency_penalty", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="model: found 'gpt-4', allowed is mine"):
        completed(client, model="gpt-4")
    assert (
        http.post("/v1/completions", content=b" " * 100_001, headers={"Content-Type": "application/json"})
        .json()["error"]["message"]
        .startswith("the body is larger than 100000 bytes")
    )
    with pytest.raises(openai.RateLimitError) as full, ExitStack() as open_streams:
        for _ in range(50):
            stream = streamed(client, max_tokens=400, n=16, temperature=2)
            open_streams.callback(stream.close)
    assert full.value.response.headers["Retry-After"] == "1"
    wait_until(lambda: sum(cluster.counted("llmforge_running_answers{")) == 0)


def test_the_key_is_asked_for_and_stands_nowhere_in_ray(cluster: Cluster) -> None:
    for wrong in ("wrong", NODE_API_KEY[:-1]):
        with pytest.raises(openai.AuthenticationError):
            cluster.client(wrong).models.list()
    assert [model.id for model in cluster.client().models.list()] == ["mine"]
    shown = json.dumps(_get_global_client().get_serve_details(), default=str)
    assert "max_ongoing_requests" in shown
    for text in (shown, str(serve.status())):
        assert "mine" in text or "llmforge" in text
        assert NODE_API_KEY not in text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(stream: bool, cluster: Cluster) -> None:
    body = json.dumps({"model": "mine", "messages": ASK, "max_tokens": 400, "n": 8, "stream": stream, "temperature": 2})
    before = sum(cluster.counted("llmforge_answers_total{"))
    with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        key = f"Authorization: Bearer {NODE_API_KEY}\r\n"
        connection.sendall(f"{head}{key}Content-Type: application/json\r\n\r\n{body}".encode())
        wait_until(lambda: sum(cluster.counted("llmforge_running_answers{")) > 0)
    wait_until(lambda: sum(cluster.counted("llmforge_answers_total{")) - before == 8)
    wait_until(lambda: sum(cluster.counted("llmforge_running_answers{")) == 0)
    assert sum(cluster.counted("llmforge_answers_total{", 'end="unfinished"')) > 0


def test_a_node_without_the_key_does_not_answer_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ReplicaPlan((), (), OPTIONS, tmp_path, "127.0.0.1", 1000, needs_key=True)
    monkeypatch.delenv("LLMFORGE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"^LLMFORGE_API_KEY: found it where `llmforge serve` runs and not on a node"):
        node_api_key(asked)
    assert node_api_key(replace(asked, needs_key=False)) is None
    with pytest.raises(ConfigError, match=r"^--host: found 0\.0\.0\.0, which other machines can reach"):
        node_api_key(replace(asked, needs_key=False, host="0.0.0.0"))
    monkeypatch.setenv("LLMFORGE_API_KEY", "k3y")
    assert node_api_key(replace(asked, host="0.0.0.0")) == "k3y"


def test_no_more_replicas_than_the_cluster_holds_and_no_second_ray_serve(
    cluster: Cluster, run: Path, tmp_path: Path
) -> None:
    plan = ReplicaPlan((str(run),), ("mine",), OPTIONS, tmp_path, "127.0.0.1", 1000, needs_key=False)
    for num_replicas, message in (
        (REPLICAS + 1, "--num-replicas: found 3, allowed are at most 2 in this cluster"),
        (REPLICAS, "--num-replicas: found a Ray Serve that runs on this cluster already"),
    ):
        with pytest.raises(ClusterError, match=message), deployed(plan, DeploymentOptions(num_replicas, 1, 1)):
            raise AssertionError("deployed")


def test_draining(cluster: Cluster) -> None:
    """What runs ends whole, whichever replica it is on; what comes later is refused. The last test: it ends them."""
    client = cluster.client()
    streams = [streamed(client, max_tokens=200) for _ in range(4)]
    pieces = [[next(stream)] for stream in streams]
    draining = threading.Thread(target=drain, args=(cluster.replicas, 60, threading.Event()))
    draining.start()
    http = cluster.http()
    wait_until(lambda: http.get("/health").status_code == 503)
    with pytest.raises(openai.APIStatusError) as caught:
        completed(client)
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
    for found, stream in zip(pieces, streams, strict=True):
        found += stream
        assert found[-1].choices[0].finish_reason in ("length", "stop")
    draining.join(timeout=60)
    assert not draining.is_alive()
