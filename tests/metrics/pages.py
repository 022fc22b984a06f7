"""Reads the HTML pages that tests look at."""

import re
from html.parser import HTMLParser

from llmforge.metrics.data_facts import DataFacts, LengthBin, Lengths, RowCount, SplitLine

HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(1)>&amp; \"'{{ 7 * 7 }}"

VOID_ELEMENTS = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements and attributes of a page; fails on elements that are closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes.extend((name, value or "") for name, value in attrs)
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes.extend((name, value or "") for name, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", Page(page).text)


def assert_opens_offline(text: str) -> None:
    """The page names no address and runs nothing."""
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name.endswith("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "http" not in text and "@import" not in text


def data_facts(name: str = "runs/data/ab12/dropped.jsonl") -> DataFacts:
    """Made by hand; `name` wherever a name of the user's may stand."""
    return DataFacts(
        rows=[
            RowCount("in", 1234, 1.0),
            RowCount("used", 1200, 1200 / 1234),
            RowCount(f"dropped: {name}", 34, 34 / 1234),
        ],
        num_dropped=34,
        dropped_file=name,
        splits=[SplitLine("training", 1100, 90, 44_000, 11_000, 0.955)],
        lengths=Lengths("Median 40, 95 % up to 300.", [LengthBin(1, 256, 1000), LengthBin(257, 900, 234)], 512),
        notes=[f"checks: all rows are right, says {name}"],
    )
