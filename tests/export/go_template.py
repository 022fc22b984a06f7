"""The part of Go's `text/template` that exported Modelfiles use, to run them where there is no Go.

It was compared with Go 1.19 itself on all formats of the tests and of the families, and gave the same texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

_ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"}])*) \}\}')
Message = dict[str, str]


class _Run:
    """Executes one template; its parts are alternately raw text and the inside of an action."""

    def __init__(self, template: str, system: str, messages: list[Message]) -> None:
        self._parts = _ACTION.split(template)
        self._values: dict[str, Any] = {"$.System": system, "$.Messages": messages}

    def text(self, start: int, end: int, message: Message | None = None, index: int = 0) -> str:
        found = ""
        while start < end:
            part = self._parts[start]
            if start % 2 == 0:
                found += part
            elif part.startswith("range "):
                close = self._branches(start)[-1]
                for number, each in enumerate(self._values["$.Messages"]):
                    found += self.text(start + 1, close, each, number)
                start = close
            elif part.startswith("if "):
                branches = self._branches(start)
                for begin, until in pairwise(branches):
                    condition = self._parts[begin].removeprefix("else").strip().removeprefix("if ")
                    if not condition or self._holds(condition, message, index):
                        found += self.text(begin + 1, until, message, index)
                        break
                start = branches[-1]
            elif part.startswith("$first"):
                self._values["$first"] = part.endswith("true")
            else:
                found += self._value(part, message)
            start += 1
        return found

    def _branches(self, start: int) -> list[int]:
        """Where an action opens, its `else` branches, and its `end`."""
        depth, found = 0, [start]
        for place in range(start + 2, len(self._parts), 2):
            part = self._parts[place]
            if part.startswith(("if ", "range ")):
                depth += 1
            elif part == "end" and depth:
                depth -= 1
            elif part == "end":
                return [*found, place]
            elif part.startswith("else") and not depth:
                found.append(place)
        raise AssertionError("an action without end")

    def _holds(self, condition: str, message: Message | None, index: int) -> bool:
        if condition.startswith("eq .Role "):
            assert message is not None
            return message["role"] == str(json.loads(condition.removeprefix("eq .Role ")))
        if condition == "eq (len (slice $.Messages $index)) 1":
            return len(self._values["$.Messages"][index:]) == 1
        return bool(self._values[condition])

    def _value(self, name: str, message: Message | None) -> str:
        if name.startswith('"'):
            return str(json.loads(re.sub(r"\\U0(\w{7})", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], name)))
        if name == ".Content":
            assert message is not None
            return message["content"]
        return str(self._values[name])


def run_template(template: str, messages: list[Message]) -> str:
    """What Ollama makes of messages: system messages stand among them, and joined in `.System`."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    run = _Run(template, system, messages)
    return run.text(0, len(run._parts))


def templates_in(modelfile: str) -> Iterator[str]:
    """What stands in triple quotes behind TEMPLATE."""
    yield from re.findall(r'^TEMPLATE """(.*?)"""$', modelfile, flags=re.DOTALL | re.MULTILINE)
