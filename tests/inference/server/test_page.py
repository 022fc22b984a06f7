"""The chat page in a real browser, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Tab, chromium
from tests.export.trained_runs import full_run
from tests.inference.classifiers import classifier_run, make_classifier, probabilities_of
from tests.inference.server.servers import Served, completed, serving

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror='document.title = 1'><b>Once</b> upon"


@pytest.fixture(scope="module")
def server(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    with serving(
        [full_run(material / "models" / "stories260K-hf", folder).uri], folder / "cache", api_key="k3y"
    ) as served:
        yield served


@pytest.fixture
def tab(server: Served, tmp_path: Path) -> Iterator[Tab]:
    with chromium(tmp_path / "profile") as tab:
        tab.open(f"http://127.0.0.1:{server.server.port}/")
        yield tab


def write(tab: Tab, field: str, text: str) -> None:
    tab.run(f"at({field!r}).value = {json.dumps(text)}; at({field!r}).dispatchEvent(new Event('change'))")


def send(tab: Tab, text: str) -> None:
    write(tab, "text", text)
    tab.run("at('send').click()")


def test_a_conversation(tab: Tab, server: Served) -> None:
    """Key, two turns and a system message; what is written stays text."""
    tab.wait("at('options').open")
    write(tab, "key", "k3y")
    tab.wait("at('model').value === 'mine'")
    write(tab, "system", "A story.")
    messages = [{"role": "system", "content": "A story."}]
    for turn, text in enumerate((HOSTILE, "Then he")):
        send(tab, text)
        tab.wait(f"document.querySelectorAll('.note').length === {turn + 1} && !at('send').disabled")
        messages.append({"role": "user", "content": text})
        answer = completed(server.client("k3y"), messages=messages).choices[0].message.content
        messages.append({"role": "assistant", "content": answer or ""})
    shown = tab.run("[...document.querySelectorAll('.turn')].map((turn) => turn.textContent)")
    assert shown == [message["content"] for message in messages[1:]]
    assert tab.run("document.querySelectorAll('img, b').length") == 0
    assert "20 tokens in" in tab.run("document.querySelector('.note').textContent")
    assert tab.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert [problem for problem in tab.problems if "401" not in problem] == []
    tab.run("at('reset').click()")
    assert tab.run("at('turns').children.length") == 0


def test_stopping_and_refusals(tab: Tab, server: Served) -> None:
    write(tab, "key", "k3y")
    tab.wait("at('model').value === 'mine'")
    send(tab, "a " * 600)
    tab.wait("document.querySelector('.problem') !== null")
    assert "shorten it" in tab.run("document.querySelector('.problem').textContent")
    assert tab.run("at('text').value.length") == 1200
    write(tab, "temperature", "hot")
    send(tab, "Once")
    tab.wait("document.querySelectorAll('.problem').length === 2")
    write(tab, "temperature", "")
    send(tab, "Once")
    tab.run("at('stop').click()")
    tab.wait("[...document.querySelectorAll('.note')].some((note) => note.textContent === 'stopped')")
    tab.wait("!at('send').disabled")


def test_a_classifier(stories: Path, tmp_path: Path) -> None:
    """Probabilities beneath each label, and every message by itself."""
    classifier = make_classifier(stories, "there", "he", temperature=1.7)
    run = classifier_run(stories, tmp_path, classifier)
    with serving([run], tmp_path / "cache") as served, chromium(tmp_path / "profile") as tab:
        tab.open(f"http://127.0.0.1:{served.server.port}/")
        tab.wait("at('model').value === 'mine'")
        for number, text in enumerate(("Lily", "Once upon a time")):
            send(tab, text)
            tab.wait(f"document.querySelectorAll('.note').length === {number + 1} && !at('send').disabled")
        shown = tab.run("[...document.querySelectorAll('.turn, .note')].map((part) => part.textContent)")
        lily, once = (probabilities_of(stories, classifier, f"<s>{text}") for text in ("Lily", "Once upon a time"))
        assert [shown[0], shown[1], shown[3], shown[4]] == ["Lily", "he", "Once upon a time", "there"]
        for note, found in ((shown[2], lily), (shown[5], once)):
            assert note.startswith(f"there {found['there']:.4f}, he {found['he']:.4f} · ") and "token" not in note


def test_light_and_dark(tab: Tab) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        tab.emulate(scheme)
        style = "getComputedStyle(document.body)"
        colours[scheme] = tab.run(f"[{style}.color, {style}.backgroundColor]")
    assert colours["light"] == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert colours["dark"][0] == "rgb(255, 255, 255)"
    assert colours["dark"][1] != "rgb(255, 255, 255)"
