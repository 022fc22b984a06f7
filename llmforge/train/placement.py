"""Before workers start: that there are devices for them, waiting where that pays, and saying what is waited for.

Loaded by Ray Train's controller process, which calls it, so it imports neither torch nor the worker. In: what a worker
asks for, and how long to wait. Out: progress in words, or a `ClusterError`.

The request is a placement group, as Ray Train's own is, given back as soon as it is there: it says for certain that all
workers fit at once, autoscalers start nodes for it, and it ends with the run whatever ends that.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.util.placement_group import placement_group, remove_placement_group

from llmforge.config.demand import count_places, describe_workers
from llmforge.errors import ClusterError
from llmforge.train.autoscaler import AutoscalerView, view_autoscaler
from llmforge.train.channel import Event

BUSY_SECONDS = 20.0
"""Devices in use may become free within so long, such as those of a run that has just ended."""
GROWTH_SECONDS = 1800.0
"""A node may take so long to come, or to come back."""
POLL_SECONDS = 1.0
FIRST_LOOK_SECONDS = 3.0
LOOK_SECONDS = 5.0
"""Also how long an elastic group of one size may take to find its places, before the size is chosen anew."""
TELL_SECONDS = 60.0
"""The same line is told again after so long."""
LEAVE_SECONDS = 600.0
"""How long workers may take to save and leave before a change of their number."""


@dataclass(frozen=True)
class Demand:
    """What the workers of a job need to start."""

    per_worker: Mapping[str, float]
    min_workers: int
    max_workers: int
    timeout_seconds: float | None
    """As the job gives it."""

    @property
    def is_elastic(self) -> bool:
        """Whether their number follows the cluster."""
        return self.min_workers < self.max_workers

    def patience_seconds(self, *, is_restart: bool, can_grow: bool) -> float:
        """How long to wait: a node that was lost may come back, also where no autoscaler adds any."""
        if self.timeout_seconds is not None:
            return self.timeout_seconds
        return GROWTH_SECONDS if is_restart or can_grow else BUSY_SECONDS


class Waiting:
    """One wait for places, from the moment `since` that there are too few, by a clock that only goes forward."""

    def __init__(self, demand: Demand, tell: Callable[[str], None], since: float, *, is_restart: bool) -> None:
        self._demand = demand
        self._tell = tell
        self._since = since
        self._is_restart = is_restart
        self._told: tuple[str, float] | None = None

    def look(self, num_free: float, view: AutoscalerView | None, now: float) -> None:
        """Tell what is waited for, where that is news. Raises `ClusterError` when the time is over."""
        line = waiting_line(self._demand, num_free, view)
        if self._told is None or line != self._told[0] or now - self._told[1] >= TELL_SECONDS:
            self._told = (line, now)
            self._tell(line)
        patience = self._demand.patience_seconds(is_restart=self._is_restart, can_grow=view is not None)
        if now - self._since >= patience:
            raise ClusterError(
                f"num_devices: the training workers have not found their places within {patience:g} s"
                f" (resource_timeout_seconds): {line}\n"
                "stop other jobs, lower num_devices, add nodes, or raise that time; what was saved is kept"
            )


def waiting_line(demand: Demand, num_free: float, view: AutoscalerView | None) -> str:
    """What is asked, what there is, and what comes."""
    line = f"waiting for {describe_workers(demand.min_workers, demand.per_worker)}: {num_free:g} free"
    return line if view is None else f"{line}, {view.describe()}"


class Placement(ControllerCallback):  # type: ignore[misc] # ray is untyped here
    """Called by Ray Train's controller around every start of workers. `mailbox` is the handle of a `Mailbox` actor."""

    def __init__(self, demand: Demand, mailbox: Any) -> None:
        self._demand = demand
        self._mailbox = mailbox
        self._waiting: Waiting | None = None
        self._has_started = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """The same state again: an elastic policy has decided to wait, as there are fewer places than its least."""
        if previous_state is current_state:
            self._look()
            time.sleep(POLL_SECONDS)  # the controller asks again at once, and would keep a processor busy

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Have Ray look at its nodes now: it does so every 20 seconds, and would count on those that are lost."""
        coordinator = get_or_create_autoscaling_coordinator()
        with suppress(RayError):  # it only saves time
            ray.get(coordinator.get_reserved_resources.remote("llmforge", recompute=True), timeout=LOOK_SECONDS)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Workers that are running, if any, will be ended next, and as many as decided started."""
        if ray.get(self._mailbox.is_group_moving.remote()):
            self._let_leave(resize_decision.num_workers)

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> None:
        """No worker is running. Ray Train tries again after its own error, and not after ours."""
        self._find_places(num_workers)
        self._waiting = None
        self._has_started = True

    def _let_leave(self, num_workers: int) -> None:
        """Have them save, so that no step is lost. Where they cannot, the newest checkpoint is what remains."""
        self._tell("message", f"the cluster has places for {num_workers} workers now: saving, to go on with so many")
        ray.get(self._mailbox.let_leave.remote())
        deadline = time.monotonic() + LEAVE_SECONDS
        while ray.get(self._mailbox.is_group_moving.remote()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        ray.get(self._mailbox.end_group.remote())

    def _find_places(self, num_workers: int) -> None:
        request = placement_group([dict(self._demand.per_worker)] * num_workers, strategy="PACK")
        seconds = FIRST_LOOK_SECONDS
        try:
            while not request.wait(seconds):
                self._look()
                if self._demand.is_elastic and seconds == LOOK_SECONDS:
                    raise WorkerGroupStartupTimeoutError(num_workers)  # the policy decides again
                seconds = LOOK_SECONDS
        finally:
            remove_placement_group(request)
        if self._demand.is_elastic:
            self._tell("message", f"starting {num_workers} workers, of {self._demand.max_workers} at most")

    def _look(self) -> None:
        now = time.monotonic()
        if self._waiting is None:
            self._waiting = Waiting(self._demand, partial(self._tell, "waiting"), now, is_restart=self._has_started)
        nodes = available_resources_per_node().values()
        num_free = sum(count_places(self._demand.per_worker, node) for node in nodes)
        self._waiting.look(num_free, view_autoscaler(), now)

    def _tell(self, kind: Any, text: str) -> None:
        ray.get(self._mailbox.put.remote(Event(kind, text=text)))
