"""Who may ask: an API key where one is set, and otherwise only this machine's own programs.

Without a key a web page that the user has open must not be able to ask in the user's name: a page can send requests to
this machine under a name that its own server resolves to it (DNS rebinding), so the `Host` of a request is checked.
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from llmforge.errors import ConfigError
from llmforge.inference.server.api_errors import ApiError

API_KEY_VARIABLE = "LLMFORGE_API_KEY"
_PROTECTED = ("/v1/", "/metrics")


def check_binding(host: str, api_key: str | None) -> None:
    """Raises `ConfigError` for an address that others can reach, without a key."""
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            f"--host: found {host}, which other machines can reach, without an API key; set {API_KEY_VARIABLE} in the "
            "environment, or leave --host at 127.0.0.1"
        )
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key):
        raise ConfigError(f"{API_KEY_VARIABLE}: found a key that is empty or no plain text, which no header can carry")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests before anything of them is read."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
        await JSONResponse(refusal.body, refusal.status, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._expected is None:
            return None if is_loopback(_host_name(headers.get("host", ""))) else _WRONG_HOST
        if not scope["path"].startswith(_PROTECTED):
            return None
        given = headers.get("authorization", "").encode("latin-1")
        return None if hmac.compare_digest(given, self._expected) else _WRONG_KEY


_WRONG_KEY = ApiError(
    401,
    "the API key is missing or wrong; send the header `Authorization: Bearer KEY`",
    "authentication_error",
    code="invalid_api_key",
)
_WRONG_HOST = ApiError(
    403,
    f"the server answers to this machine's own names only, such as 127.0.0.1; set {API_KEY_VARIABLE} to lift this",
    "permission_error",
    param="Host",
)


def _host_name(host: str) -> str:
    """Without the port; `[::1]:8000` without the brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
