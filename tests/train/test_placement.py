"""What is told while workers wait for their places, and when the wait is over."""

from __future__ import annotations

import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from llmforge.errors import ClusterError
from llmforge.train.autoscaler import AutoscalerView, view_of_report, view_of_state
from llmforge.train.placement import Demand, Waiting, waiting_line

GPUS = Demand({"GPU": 1.0, "memory": 32 * 2.0**30}, 4, 4, None)


@pytest.mark.parametrize(
    ("timeout_seconds", "is_restart", "can_grow", "expected"),
    [
        (None, False, False, 20),
        (None, False, True, 1800),
        (None, True, False, 1800),
        (90, True, True, 90),
        (0, False, True, 0),
    ],
)
def test_how_long_it_waits(timeout_seconds: float | None, is_restart: bool, can_grow: bool, expected: float) -> None:
    demand = Demand({"CPU": 1.0}, 1, 2, timeout_seconds)
    assert demand.patience_seconds(is_restart=is_restart, can_grow=can_grow) == expected


def test_what_is_waited_for() -> None:
    line = "waiting for 4 x {GPU: 1, memory: 32 GiB}: 1 free"
    assert waiting_line(GPUS, 1, None) == line
    assert waiting_line(GPUS, 1, AutoscalerView(0)) == f"{line}, no node is starting"
    assert waiting_line(GPUS, 1, AutoscalerView(2)) == f"{line}, 2 nodes are starting"
    assert waiting_line(GPUS, 1, AutoscalerView(1, ("a", "b", "c"))) == f"{line}, 1 node is starting; a; b"


def test_what_is_news_is_told_at_once_and_the_rest_each_minute() -> None:
    told: list[str] = []
    waiting = Waiting(GPUS, told.append, 100.0, is_restart=False)
    for now, num_free in ((100.0, 1), (105.0, 1), (110.0, 2), (169.0, 2), (170.0, 2)):
        waiting.look(num_free, AutoscalerView(1), now)
    assert [line.split(": ")[-1] for line in told] == [f"{n} free, 1 node is starting" for n in (1, 2, 2)]


def test_the_end_of_the_wait_says_what_was_missing() -> None:
    waiting = Waiting(GPUS, lambda line: None, 100.0, is_restart=False)
    waiting.look(1, None, 119.9)
    with pytest.raises(ClusterError) as caught:
        waiting.look(1, None, 120.0)
    assert str(caught.value) == (
        "num_devices: the training workers have not found their places within 20 s (resource_timeout_seconds): waiting "
        "for 4 x {GPU: 1, memory: 32 GiB}: 1 free\n"
        "stop other jobs, lower num_devices, add nodes, or raise that time; what was saved is kept"
    )


def test_the_newer_autoscaler() -> None:
    state = AutoscalingState(autoscaler_state_version=3)
    state.pending_instance_requests.add(ray_node_type_name="gpu", count=2)
    state.pending_instances.add(ray_node_type_name="gpu", details="starting ray")
    state.failed_instance_requests.add(ray_node_type_name="gpu", reason="no capacity in this zone")
    state.failed_instance_requests.add(ray_node_type_name="gpu", reason="no capacity in this zone")
    state.infeasible_gang_resource_requests.add()
    assert view_of_state(state) == AutoscalerView(
        3, ("gpu: no capacity in this zone", "the autoscaler may start no nodes on which all would fit")
    )


REPORT = {
    "active_nodes": {"ray.head.default": 1},
    "pending_nodes": [["i-1", "10.0.0.2", "gpu", "setting-up"]],
    "pending_launches": {"gpu": 2},
    "failed_nodes": [["10.0.0.3", "gpu"]],
    "node_availability_summary": {
        "node_availabilities": {
            "gpu": {
                "node_type": "gpu",
                "is_available": False,
                "last_checked_timestamp": 1.0,
                "unavailable_node_information": {
                    "category": "InsufficientInstanceCapacity",
                    "description": "none left",
                },
            }
        }
    },
}
"""As `asdict` of Ray's `AutoscalerSummary` gives it."""


def test_the_older_autoscaler() -> None:
    assert view_of_report(REPORT) == AutoscalerView(3, ("gpu: none left", "gpu at 10.0.0.3 has failed"))


def test_the_older_autoscaler_without_any_type_of_nodes() -> None:
    """On a cluster that was started by hand it only watches, and calls each node a type of its own."""
    assert view_of_report(REPORT | {"active_nodes": {"node_" + "0a" * 28: 1}}) is None


def test_the_older_autoscaler_before_any_node_is_up() -> None:
    assert view_of_report(REPORT | {"active_nodes": {}}) == view_of_report(REPORT)
