"""The page of a job's data: one HTML file that opens without a network and runs no script.

In: `DataPage`. Out: the file, written whole or not at all. The page is `data.html.jinja` beside this module; names of
files and models may hold HTML, and all is escaped there.
"""

from __future__ import annotations

from pathlib import Path

from llmforge.metrics.charts import draw_lengths
from llmforge.metrics.data_page import DataPage
from llmforge.metrics.page import render_page, write_page


def write_data_page(path: Path, page: DataPage) -> None:
    """Write the page to `path`, replacing an older one in one move."""
    write_page(path, render_data_page(page))


def render_data_page(page: DataPage) -> str:
    """The page as text."""
    return render_page("data.html.jinja", page=page, chart=draw_lengths(page.data.lengths))
