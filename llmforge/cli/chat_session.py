"""A conversation by text lines: what a line asks for, and the messages so far.

In: lines as a person writes them. Out: `Turn`s: a notice to show, messages to answer, or the wish to leave. It reads
and prints nothing itself.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

HELP = """\
/system TEXT   give the model this system message from now on; without TEXT: none
/reset         forget the conversation, keep the system message
/help          this text
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer. A text of several lines can be pasted. // begins a message that starts with a slash."""
_COMMANDS = ("/system", "/reset", "/help", "/exit")


@dataclass(frozen=True)
class Turn:
    """What follows from a line; nothing from a blank one."""

    notice: str | None = None
    messages: list[dict[str, str]] | None = None
    """To be answered."""
    leaves: bool = False


class ChatSession:
    """The messages of one conversation."""

    def __init__(self, system: str | None = None) -> None:
        self._system = system or None
        self._history: list[dict[str, str]] = []
        self._asked: list[dict[str, str]] = []

    def read(self, text: str) -> Turn:
        """What a line, or a pasted text, asks for."""
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            return self._obey(text)
        if not text:
            return Turn()
        content = text[1:] if text.startswith("//") else text
        self._asked = [*self._history, {"role": "user", "content": content}]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return Turn(messages=[*system, *self._asked])

    def answered(self, text: str) -> None:
        """Keep the last question and its answer, as far as it came; a question without any is forgotten."""
        if text.strip():
            self._history = [*self._asked, {"role": "assistant", "content": text}]

    def _obey(self, text: str) -> Turn:
        command, _, rest = text.partition(" ")
        match command:
            case "/exit":
                return Turn(leaves=True)
            case "/help":
                return Turn(notice=HELP)
            case "/reset":
                self._history = []
                return Turn(notice="The conversation begins anew.")
            case "/system":
                self._system = rest.strip() or None
                return Turn(notice="There is no system message now." if self._system is None else "System message set.")
            case _:
                close = difflib.get_close_matches(command, _COMMANDS, n=1)
                advice = f"did you mean {close[0]}? " if close else ""
                return Turn(notice=f"{command}: no such command; {advice}/help lists them, // begins a message with /")
