"""The mailbox between workers and driver, as it is when no process boundary is in the way."""

from __future__ import annotations

from dataclasses import replace

from llmforge.train.channel import Beat, Event, Mailbox
from llmforge.train.requests import Request

BEAT = Beat(
    group=1,
    rank=0,
    num_workers=2,
    phase="saving",
    step=3,
    number=4,
    progress=9,
    is_watched=True,
    node_id="ab12",
    pid=1,
    process_started_at=0.0,
    stack_file="",
)


def test_events_are_taken_once_and_in_order() -> None:
    mailbox = Mailbox()
    events = [Event("metrics", step=step) for step in range(3)]
    for event in events:
        mailbox.put(event)
    assert mailbox.take() == events
    assert mailbox.take() == []


def test_the_last_beat_of_every_rank_of_the_newest_group() -> None:
    mailbox = Mailbox()
    assert mailbox.begin_group() == 1
    for rank in (1, 0):
        mailbox.beat(replace(BEAT, rank=rank, progress=8))
    mailbox.beat(BEAT)
    assert sorted((beat.rank, beat.progress) for beat in mailbox.beats()) == [(0, 9), (1, 8)]
    assert mailbox.begin_group() == 2
    assert mailbox.beats() == []
    mailbox.beat(BEAT)  # of a process that has not died yet
    assert mailbox.beats() == []


def test_a_group_that_has_failed_is_heard_no_more() -> None:
    mailbox = Mailbox()
    mailbox.begin_group()
    mailbox.beat(BEAT)
    mailbox.end_group()
    mailbox.beat(BEAT)
    assert mailbox.beats() == []


def test_what_is_asked_comes_with_the_answer_to_a_beat() -> None:
    mailbox = Mailbox()
    mailbox.begin_group()
    assert mailbox.beat(BEAT) == Request()
    mailbox.ask(Request(num_saves=2, stop=True))
    assert mailbox.beat(BEAT) == Request(num_saves=2, stop=True)


def test_a_new_group_has_nothing_to_make_up_for_but_stops_where_a_stop_was_asked_for() -> None:
    mailbox = Mailbox()
    mailbox.begin_group()
    mailbox.ask(Request(num_saves=2))
    mailbox.begin_group()
    assert mailbox.beat(replace(BEAT, group=2)) == Request()
    mailbox.ask(Request(num_saves=1, stop=True))
    mailbox.begin_group()
    assert mailbox.beat(replace(BEAT, group=3)) == Request(stop=True)


def test_a_group_that_is_to_leave_is_asked_to_stop_and_its_successor_is_not() -> None:
    mailbox = Mailbox()
    assert not mailbox.is_group_moving()
    mailbox.begin_group()
    mailbox.ask(Request(num_saves=1))
    assert mailbox.is_group_moving()
    mailbox.let_leave()
    assert mailbox.beat(BEAT) == Request(num_saves=1, stop=True)
    mailbox.put(Event("stopped", step=3))
    assert not mailbox.is_group_moving()
    mailbox.begin_group()
    assert mailbox.beat(replace(BEAT, group=2)) == Request()
