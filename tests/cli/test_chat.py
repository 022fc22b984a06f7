"""`llmforge chat` in a real terminal: what a person sees who types, pastes and presses Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM
from tests.inference.runs import make_run

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 90
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._side, other = pty.openpty()
        self._process = subprocess.Popen(
            [str(PROGRAM), *arguments], stdin=other, stdout=other, stderr=other, cwd=folder,
            env=environment | {"TERM": "xterm"}, start_new_session=True, preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(other)
        self._text = ""

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def until(self, pattern: str, key: str = "") -> str:
        """What is shown up to a pattern since the last call; `key` is pressed, and again after a second of silence."""
        deadline = time.monotonic() + LIMIT_SECONDS
        self.type(key)
        while (match := re.search(pattern, self._text)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._text!r}"
            if not self._read():
                self.type(key)
        shown, self._text = self._text[: match.end()], self._text[match.end() :]
        return shown

    def leave(self) -> int:
        """The exit code, once the program has ended."""
        code = self._process.wait(LIMIT_SECONDS)
        os.close(self._side)
        return code

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> bool:
        """Whether something came within a second."""
        if not select.select([self._side], [], [], 1.0)[0]:
            return False
        try:
            self._text += _STEERING.sub("", os.read(self._side, 4096).decode(errors="replace"))
        except OSError as error:  # the program has ended
            raise AssertionError(f"ended behind {self._text!r}") from error
        return True


def _own_terminal() -> None:
    """Make the pseudo-terminal that of the new session, so that Ctrl-C reaches the program."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


@pytest.fixture(scope="module")
def program(material: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("chat")
    make_run(material / "models" / "stories260K-hf", folder, generation_config={"max_tokens": 480})
    own = {"LLMFORGE_CACHE": str(folder / "cache"), "PYTHONPATH": str(repository), "COLUMNS": "200"}
    terminal = Terminal(["chat", "run"], folder, os.environ | own)
    terminal.until("you: ")
    yield terminal
    terminal.stop()


@pytest.fixture
def terminal(program: Terminal) -> Terminal:
    """At a prompt, with nothing said before."""
    program.type("/reset\n")
    program.until(r"The conversation begins anew\.\s+you: ")
    return program


def test_a_conversation(terminal: Terminal) -> None:
    terminal.type("/help\n")
    assert "/reset " in terminal.until("you: ")
    terminal.type("Once upon a time\n")
    assert "there was a little" in terminal.until("you: ")
    terminal.type("/nonsense\n")
    assert "/nonsense: no such command" in terminal.until("you: ")


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    for _ in range(5):  # the answer may be whole before the key is read
        terminal.type("Once upon a time\n")
        terminal.until("model: ,")
        terminal.type("\x03")
        shown = terminal.until("you: ")
        if "(stopped)" in shown:
            break
        terminal.type("/reset\n")
        terminal.until(r"The conversation begins anew\.\s+you: ")
    assert "(stopped)" in shown
    assert len(shown) < 1200  # of about 1300 characters
    terminal.type("half a line")
    terminal.until("half a line")
    # Python does not see a Ctrl-C that comes just as readline begins to wait; a person presses it again.
    terminal.until(r"\(Ctrl-D or /exit leaves\)", key="\x03")
    # Nor is it known which line the last of them takes away.
    terminal.until(r"System message set\.\s+you: ", key="/system A story.\n")
    terminal.type("/system\n")
    terminal.until(r"There is no system message now\.\s+you: ")


@pytest.mark.parametrize("paste", ["one\ntwo\nthree\n", "\x1b[200~one\ntwo\nthree\x1b[201~\n"])
def test_a_pasted_text_is_one_message(terminal: Terminal, paste: str) -> None:
    terminal.type(paste)
    terminal.until("model: ")
    terminal.type("\x03")
    shown = terminal.until("you: ")
    assert "model: " not in shown


def test_a_conversation_too_long(terminal: Terminal) -> None:
    terminal.type("a " * 600 + "\n")
    shown = terminal.until("you: ")
    assert "the model takes at most 511" in shown
    assert "the message is left out" in shown
    terminal.type("Once\n")
    assert "model: " in terminal.until("you: ")
    terminal.type("\x04")
    assert terminal.leave() == 0
