"""What the HTML pages have in common: styles, marked text, and how a page is rendered and written.

In: the name of a template beside this module, and plain values. Out: a page that opens without a network and runs no
script. All values are escaped, for messages and job files may hold HTML.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmforge.metrics.meters import duration_text, perplexity
from llmforge.metrics.summary import bytes_text, decimal_text, number_text, printable_text, visible_text


@dataclass(frozen=True)
class ExampleSegment:
    """A piece of an example's text, and whether the model learns to write it."""

    text: str
    trained: bool
    control: bool = False
    """The text is one control token, such as `<|eot_id|>`, not characters that look like one."""


def render_page(template: str, **values: object) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("llmforge.metrics", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number_text,
        bytes=bytes_text,
        decimal=decimal_text,
        duration=duration_text,
        visible=visible_text,
        printable=printable_text,
        perplexity=perplexity,
        svg=Markup,
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, page: str) -> None:
    """Write a page to `path`, replacing an older one in one move."""
    temporary = path.with_name(path.name + ".tmp")
    # Rows of JSON may hold halves of surrogate pairs, which no encoding can write.
    temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
