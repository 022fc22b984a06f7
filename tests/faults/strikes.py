"""The disturbances: what is killed, and what the network does.

In: a driver with its workers, the site that it works on, a source of random numbers. When a strike returns, the server
is up and the network is whole again.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from tests.chaos_proxy import Direction, Fault
from tests.faults.driver_process import DriverProcess, kill
from tests.faults.site import Site

KILLS = {
    "worker": 8.0,
    "all workers": 1.0,
    "driver": 2.0,
    "server": 2.0,
    "worker and server": 1.0,
    "worker in a fault of the network": 2.0,
}
"""Kinds with a SIGKILL in them, and how often each comes."""
NETWORK_FAULTS = {
    "uploads broken": 1.0,
    "answers lost": 1.0,
    "bursts of 500 and 503": 1.0,
    "stall": 0.7,
    "slow": 0.5,
    "connections refused": 0.8,
}
KINDS = KILLS | NETWORK_FAULTS
RESTARTING = frozenset(KILLS) - {"server"}
"""Kinds after which training begins anew from a checkpoint."""

_OUTAGE_SECONDS = 4.0
"""At the most."""
_WORKERS_SECONDS = 180.0


@dataclass(frozen=True)
class Striker:
    """Strikes one run after the other."""

    site: Site
    random: random.Random
    """Decides how, and when, the strikes come."""

    def strike(self, kind: str, driver: DriverProcess) -> float:
        """Returns the moment from which on the run recovers: of the kill if training must begin anew, else the end.

        Raises `DriverError` where there is no worker to kill, and none comes.
        """
        began_at = time.monotonic()
        match kind:
            case "worker":
                self._kill_worker(driver)
            case "all workers":
                for worker in self._workers(driver):
                    kill(worker)
            case "driver":
                driver.kill()
            case "server":
                self._kill_server()
            case "worker and server":
                self._workers(driver)
                self._kill_server(driver)
            case "worker in a fault of the network":
                self._workers(driver)
                self._disturb_network(_draw(self.random, NETWORK_FAULTS), driver)
            case _:
                self._disturb_network(kind)
        return began_at if kind in RESTARTING else time.monotonic()

    def _workers(self, driver: DriverProcess) -> list[psutil.Process]:
        driver.wait_until(lambda: bool(driver.workers()), _WORKERS_SECONDS, "no worker to kill")
        return driver.workers()

    def _kill_worker(self, driver: DriverProcess) -> None:
        kill(self.random.choice(self._workers(driver)))

    def _kill_server(self, driver: DriverProcess | None = None) -> None:
        """And a worker of the driver while the server is down."""
        self.site.server.stop(signal.SIGKILL)
        self._wait(driver)
        self.site.server.start()

    def _disturb_network(self, kind: str, driver: DriverProcess | None = None) -> None:
        """And kill a worker of the driver meanwhile."""
        self.site.proxy.set(self._fault(kind))
        self._wait(driver)
        self.site.proxy.set(Fault())

    def _wait(self, driver: DriverProcess | None) -> None:
        """The length of an outage, with a kill in the middle of it where a driver is given."""
        time.sleep(self.random.uniform(0.1, _OUTAGE_SECONDS / 2))
        if driver is not None and (workers := driver.workers()):
            kill(self.random.choice(workers))
        time.sleep(self.random.uniform(0.1, _OUTAGE_SECONDS / 2))

    def _fault(self, kind: str) -> Fault:
        draw = self.random
        directions: tuple[Direction, ...] = ("requests", "answers")
        match kind:
            case "uploads broken":
                return Fault("reset", of="requests", after_bytes=draw.randrange(120_000), times=draw.randint(1, 6))
            case "answers lost":
                return Fault("reset", after_bytes=draw.choice([0, 100]), only="PUT ", times=draw.randint(1, 6))
            case "bursts of 500 and 503":
                return Fault("error", status=draw.choice((500, 503)), probability=draw.choice((0.3, 0.7, 1.0)))
            case "stall":
                return Fault("stall", of=draw.choice(directions), after_bytes=draw.randrange(60_000))
            case "slow":
                return Fault(of=draw.choice(directions), bytes_per_second=draw.randrange(20_000, 200_000))
            case _:
                return Fault("refuse")


def draw_kinds(num_kill_points: int, seed: int) -> list[str]:
    """Kinds at random, so many of them with a kill."""
    source, drawn = random.Random(seed), list[str]()
    while sum(kind in KILLS for kind in drawn) < num_kill_points:
        drawn.append(_draw(source, KINDS))
    return drawn


def _draw(source: random.Random, weights: Mapping[str, float]) -> str:
    return source.choices([*weights], [*weights.values()])[0]
