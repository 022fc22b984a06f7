"""A `Verification` for the terminal: counts for each way, and where the first rows part, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.text import Text

from llmforge.export.comparison import Finding, Kind, TokensAround, Verification
from llmforge.metrics.summary import printable_text

MAX_SHOWN = 3
"""Findings of a kind that are shown whole."""
_TITLES: dict[Kind, str] = {
    "difference": "different",
    "refusal": "refused",
    "control text": "control tokens spelled in a message, kept as text by llmforge only",
}
_STYLES: dict[Kind, str] = {"difference": "bold red", "refusal": "bold red", "control text": "yellow"}


class VerificationPrinter:
    """Prints to one console; colours only where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def print(self, verification: Verification) -> None:
        """All of it, the verdict last."""
        self._line(_text(f"compared: {verification.origin}"))
        for tally in verification.tallies:
            style = "bold red" if tally.num_different else ""
            self._line(_text(f"  {tally.describe()}", style))
        for kind, title in _TITLES.items():
            findings = [finding for finding in verification.findings if finding.kind == kind]
            self._findings(findings, title, _STYLES[kind])
        self._line(_verdict(verification))

    def _findings(self, findings: Sequence[Finding], title: str, style: str) -> None:
        for finding in islice(findings, MAX_SHOWN):
            self._line(_text(f"{title}: {finding.place} ({finding.way})", style))
            for line in _lines(finding):
                self._line(line)
        if len(findings) > MAX_SHOWN:
            self._line(Text(f"  ... and {len(findings) - MAX_SHOWN} more {title}"))

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _verdict(verification: Verification) -> Text:
    if not verification.is_equal:
        return Text("DIFFERENT", "bold red")
    if verification.findings:
        return Text("equal, but where a message spells a control token", "bold yellow")
    return Text("equal", "bold green")


def _lines(finding: Finding) -> Iterator[Text]:
    yield _text(f"  {finding.reason}")
    if finding.ours is not None and finding.theirs is not None:
        yield _side("llmforge", finding.ours)
        yield _side(finding.way, finding.theirs)


def _side(name: str, side: TokensAround) -> Text:
    """The tokens where two sides part, the one that differs marked."""
    text = Text(f"  {name:>13}: ")
    text.append(_joined(side.before))
    token = "(ends here)" if side.token is None else f"[{side.token}]({side.token_id})"
    text.append(f" >> {printable_text(token)} << ", "bold reverse")
    text.append(_joined(side.after))
    return text


def _text(text: str, style: str = "") -> Text:
    """Names of files and tokens may hold anything."""
    return Text(printable_text(text), style)


def _joined(tokens: Sequence[str]) -> str:
    return " ".join(f"[{printable_text(token)}]" for token in tokens)
