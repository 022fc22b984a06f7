"""The chat page: one file that opens without any other, and may load and run nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send


class ChatPage:
    """Serves `page.html`."""

    def __init__(self) -> None:
        text = files("llmforge.inference.server").joinpath("page.html").read_text(encoding="utf-8")
        policy = [
            "default-src 'none'",
            f"script-src {_hash_of('script', text)}",
            f"style-src {_hash_of('style', text)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
        headers = {
            "Content-Security-Policy": "; ".join(policy),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        self._response = HTMLResponse(text, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        await self._response(scope, receive, send)


def _hash_of(tag: str, text: str) -> str:
    """By which a browser knows the one inline element that may be used."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
