"""The page of a job's data: complete, escaped, self-contained, and the same numbers in the terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmforge.config.memory_plan import GIB, MemoryPart, MemoryPlan
from llmforge.metrics.data_facts import LengthBin, Lengths, length_lines
from llmforge.metrics.data_html import render_data_page, write_data_page
from llmforge.metrics.data_page import DataPage, Memory, data_lines
from llmforge.metrics.summary import Tile
from tests.metrics.pages import HOSTILE, Page, assert_opens_offline, data_facts, text_of

PLAN = MemoryPlan((MemoryPart("parameters", 6 * GIB, "3,000 x 2 B"), MemoryPart("activations", GIB // 2, "layers")))
PAGE = DataPage(
    title="job.yaml: its data before training",
    facts={"model": "tiny", "method": "LoRA, r = 8"},
    warnings=["the format is odd"],
    tiles=[Tile("Rows used", "1,200", "of 1,234; 34 dropped")],
    data=data_facts(),
    memory=Memory("largest batch: 4 x 512 tokens", PLAN, 8.0, "6.50 GiB fit into 90% of 8 GiB"),
    expected={"steps": "120, 30 an epoch", "time": "about 3 min"},
)
UNKNOWN = Memory("largest batch: 4 x 512 tokens", None, None, "not known: the sizes are not known")


@pytest.fixture(scope="module")
def rendered() -> str:
    return render_data_page(PAGE)


def test_everything_is_on_the_page(rendered: str) -> None:
    text = text_of(rendered)
    for expected in (
        "job.yaml: its data before training",
        "method LoRA, r = 8",
        "the format is odd",
        "Rows used 1,200 of 1,234; 34 dropped",
        "used 1,200 97.24 %",
        "Every row that is not used, with its reason: runs/data/ab12/dropped.jsonl",
        "training 1,100 90 44,000 25 % 95.5 %",
        "Median 40, 95 % up to 300.",
        "257 to 900 234",
        "The last bars, in another colour, hold examples longer than context_length.",
        "6.50 GiB in all of 8 GiB, the width of the bars",
        "parameters 6.00 GiB 3,000 x 2 B",
        "activations 512.00 MiB layers",
        "time about 3 min",
    ):
        assert expected in text


def test_bars_of_memory_are_as_wide_as_their_share_of_the_device(rendered: str) -> None:
    assert re.findall(r'class="bar"><span style="width: ([0-9.]+)%', rendered) == ["75.00", "6.25"]
    alone = replace(PAGE, memory=replace(PAGE.memory, device_gib=None))
    assert re.findall(r'class="bar"><span style="width: ([0-9.]+)%', render_data_page(alone)) == ["92.31", "7.69"]


def test_what_is_not_known_is_said() -> None:
    text = text_of(render_data_page(replace(PAGE, memory=UNKNOWN)))
    assert "not known: the sizes are not known" in text
    assert "in all" not in text


def test_a_plan_that_does_not_fit_is_a_warning_and_nothing_dropped_needs_no_file() -> None:
    memory = replace(PAGE.memory, verdict="6.50 GiB do not fit", is_warning=True)
    facts = replace(data_facts(), num_dropped=0, rows=data_facts().rows[:1], notes=[])
    page = replace(PAGE, memory=memory, data=facts)
    rendered = render_data_page(page)
    assert '<p class="warning" role="note">6.50 GiB do not fit</p>' in rendered
    assert "dropped.jsonl" not in rendered
    assert not [line for line in data_lines(page) if line.startswith("dropped")]


def test_the_page_needs_nothing_from_outside_and_runs_nothing(rendered: str) -> None:
    assert_opens_offline(rendered)


def test_the_page_is_as_wide_as_a_phone(rendered: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in rendered


def test_whatever_a_user_names_is_escaped() -> None:
    page = render_data_page(
        replace(
            PAGE,
            title=HOSTILE,
            facts={HOSTILE: HOSTILE},
            warnings=[HOSTILE],
            data=data_facts(HOSTILE),
            memory=replace(PAGE.memory, verdict=HOSTILE),
            expected={"time": HOSTILE},
        )
    )
    assert not {"script", "img"} & set(Page(page).elements)
    assert HOSTILE in Page(page).text


def test_lines_for_the_terminal() -> None:
    assert list(data_lines(PAGE)) == [
        "dropped rows: runs/data/ab12/dropped.jsonl",
        "    1 to 256      1,000  ████████████████████████████████████████",
        "  257 to 900        234  █████████",
        "memory of each device, largest batch: 4 x 512 tokens: 6.50 GiB",
        "  parameters     6.00 GiB  3,000 x 2 B",
        "  activations  512.00 MiB  layers",
        "memory: 6.50 GiB fit into 90% of 8 GiB",
        "steps: 120, 30 an epoch",
        "time: about 3 min",
    ]
    assert list(data_lines(replace(PAGE, memory=UNKNOWN)))[3] == "memory: not known: the sizes are not known"


def test_control_characters_do_nothing_to_the_terminal() -> None:
    page = replace(PAGE, data=data_facts("a\x1b[2Jb"), expected={"time": "\x07"})
    assert not any("\x1b" in line or "\x07" in line for line in data_lines(page))


@pytest.mark.parametrize(
    ("bins", "has_bar"),
    [
        ([LengthBin(1, 8, 1), LengthBin(9, 16, 0), LengthBin(17, 1200, 1)], [True, False, True]),
        ([LengthBin(1, 8, 1), LengthBin(9, 16, 100_000)], [True, True]),
    ],
)
def test_bars_in_the_terminal(bins: list[LengthBin], has_bar: list[bool]) -> None:
    """No bar without examples, and none that is too short to be seen."""
    found = list(length_lines(Lengths("", bins, 16)))
    assert ["█" in line for line in found] == has_bar
    assert [line.endswith("  longer than context_length") for line in found] == [bin.shortest > 16 for bin in bins]


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_data_page(path, PAGE)
    assert "its data before training" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]
