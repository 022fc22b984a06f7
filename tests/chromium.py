"""A headless Chromium for tests of pages, driven by its own protocol over pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Tab:
    """One page. Protocol: https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, commands: BinaryIO, events: BinaryIO) -> None:
        self._commands = commands
        self._events = events
        self._num_sent = 0
        self._session: str | None = None
        self.problems: list[str] = []
        """What the page logged as an error, and what its policy refused."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to an address."""
        self._ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true; the page itself looks again and again."""
        look = f"const look = () => ({condition}) ? done(true) : Date.now() < end ? setTimeout(look, 20) : done(false)"
        held = self.run(f"new Promise((done) => {{ const end = Date.now() + 30000; {look}; look(); }})")
        assert held, f"it did not come to pass: {condition}"

    def emulate(self, scheme: str) -> None:
        """Prefer `dark` or `light`."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._num_sent:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\0"):
            byte = self._events.read(1)
            assert byte, "the browser has ended"
            data += byte
        event: dict[str, Any] = json.loads(data[:-1])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(event["params"]["exceptionDetails"]["text"])
        return event


@contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    """A browser with a new profile in `folder`; the test is skipped where the machine has none."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(_NAMES)} on PATH")
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser reads descriptor 3 and writes descriptor 4.
    shell = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    with (folder.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *options], pass_fds=(to_browser[0], from_browser[1]), stdout=log, stderr=log
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            with os.fdopen(to_browser[1], "wb") as commands, os.fdopen(from_browser[0], "rb") as events:
                yield Tab(commands, events)
        finally:
            process.terminate()
            process.wait(timeout=30)
