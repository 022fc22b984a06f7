"""Who may ask, and what the chat page may do."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files

import pytest
from starlette.types import Message, Receive, Scope, Send

from llmforge.errors import ConfigError
from llmforge.inference.server.guard import Guard, check_binding
from llmforge.inference.server.page import ChatPage


def status_of(api_key: str | None, path: str, headers: dict[str, str]) -> int:
    """Of a reply through a guard before an application that says 204 to everything."""
    statuses: list[int] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def receive() -> Message:
        raise AssertionError("nothing of the request is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    asyncio.run(Guard(inner, api_key)({"type": "http", "path": path, "headers": raw}, receive, send))
    return statuses[0]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 204), ("localhost", 204), ("localhost:80", 204), ("[::1]:8000", 204), ("127.8.0.1", 204),
        ("evil.example:8000", 403), ("localhost.evil.example", 403), ("10.0.0.1", 403), ("", 403), ("[::2]", 403),
    ],
)  # fmt: skip
def test_without_a_key_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    assert status_of(None, "/v1/models", {"host": host}) == status


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/v1/models", "Bearer key", 204), ("/metrics", "Bearer key", 204), ("/health", "", 204), ("/", "", 204),
        ("/v1/models", "", 401), ("/v1/models", "Bearer", 401), ("/v1/models", "Bearer ke", 401),
        ("/v1/models", "Bearer key2", 401), ("/v1/models", "bearer key", 401), ("/v1/models", "Bearer k\xe9y", 401),
        ("/v1/chat/completions", "Basic key", 401), ("/metrics", "", 401),
    ],
)  # fmt: skip
def test_with_a_key(path: str, authorization: str, status: int) -> None:
    assert status_of("key", path, {"host": "llm.example", "authorization": authorization}) == status


def test_addresses_that_others_can_reach_need_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_binding(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.7", "myhost"):
        check_binding(host, "key")
        with pytest.raises(ConfigError, match=rf"^--host: found {re.escape(host)}, which other machines can reach"):
            check_binding(host, None)
    with pytest.raises(ConfigError, match=r"^LLMFORGE_API_KEY: found a key"):
        check_binding("127.0.0.1", "two words")


def test_the_page_names_no_other_address_and_shows_text_as_text() -> None:
    page = files("llmforge.inference.server").joinpath("page.html").read_text(encoding="utf-8")
    assert "//" not in page.replace("<!doctype", "")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Storage|\son\w+=|src=|style=", page
    )
    assert page.count("<script>") == page.count("<style>") == 1


def test_the_page_may_run_nothing_but_itself() -> None:
    policies: list[str] = []

    async def send(message: Message) -> None:
        policies.extend(
            value.decode() for name, value in message.get("headers", ()) if name == b"content-security-policy"
        )

    async def receive() -> Message:
        raise AssertionError("nothing of the request is read")

    asyncio.run(ChatPage()({"type": "http", "method": "GET"}, receive, send))
    directives = dict(directive.split(" ", 1) for directive in policies[0].split("; "))
    assert directives["default-src"] == directives["base-uri"] == directives["frame-ancestors"] == "'none'"
    assert directives["connect-src"] == "'self'"
    assert all(re.fullmatch(r"'sha256-[\w+/=]{44}'", directives[name]) for name in ("script-src", "style-src"))
