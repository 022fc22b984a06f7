"""Runs of one small job on S3 that are disturbed at random moments, and judged after each disturbance.

In: a site, and kinds of disturbances. Out: one `Incident` for each of them and for each end of a run. A run absorbs as
many as come before it ends; then the next run of the same job begins. All must end like the one that nobody disturbed.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from tests.faults.driver_process import DriverError, DriverProcess, Hit
from tests.faults.judge import Judge, Problem, SeenCheckpoint, Sight
from tests.faults.site import Method, Site
from tests.faults.strikes import RESTARTING, Striker

END = "end of a run"
FAILURE = "failure of a run"
RESUMING = r"resuming \S+ from step (\d+) \((\S+)\)"
SAVED = r"step \d+: saved checkpoint (\S+)"
STEP = r"step \d+"

_AGAIN = 0.2
"""Probability that the next disturbance comes before the run has recovered from the one before."""
_RESTART_SECONDS = 12.0
"""Within so long of the one before, where it does not wait for the recovery."""
_PATIENCE_SECONDS = 300.0
_END_SECONDS = 900.0
_STALE_SECONDS = 0.5
"""A line may still come so long after what it tells of."""
_MAX_DRIVERS = 50

Expected = Mapping[int, Mapping[str, str]]


class CampaignError(RuntimeError):
    """The runs cannot go on."""


@dataclass(frozen=True)
class Incident:
    """A disturbance and what became of it, or the end of a run."""

    kind: str
    run: str
    step: int | None
    """Steps taken before it; None where training had not gone on yet after the one before."""
    complete_step: int | None
    """Of the newest complete checkpoint right after it."""
    resumed_step: int | None
    """Where training began again; None where it did from the start, or went on without."""
    seconds: float | None
    """Until it went on; None where the run had ended."""
    problems: tuple[Problem, ...]

    @property
    def lost_steps(self) -> int | None:
        if self.step is None or self.resumed_step is None:
            return None
        return max(0, self.step - self.resumed_step)


@dataclass(frozen=True)
class _Blow:
    """A disturbance that the run has still to recover from."""

    kind: str
    at: float
    step: int | None
    newest: SeenCheckpoint | None
    problems: tuple[Problem, ...]


def disturbed_runs(
    site: Site, seed: int, kinds: Sequence[str], expected: Mapping[Method, Expected]
) -> Iterator[Incident]:
    """Until all disturbances have come and the run that had the last has ended; the methods take turns."""
    left = deque(kinds)
    striker = Striker(site, random.Random(seed))
    for number, method in enumerate(cycle(expected)):
        judge = site.judge(f"run-{number:03d}")
        judge.expected = expected[method]
        yield from DisturbedRun(site, f"run-{number:03d}", method, judge, striker, left).incidents()
        if not left:
            return


def undisturbed_run(site: Site, method: Method) -> Expected:
    """Steps and contents of the checkpoints of a run that nobody disturbs."""
    name = f"undisturbed-{method}"
    with site.driver(name, method, resume=False) as driver:
        if driver.wait(_END_SECONDS) != 0:
            raise CampaignError(f"the undisturbed run has failed:\n{driver.told()}")
    judge = site.judge(name)
    sight = judge.look()
    if sight.problems or sight.newest is None or sight.newest.step != site.plan.num_steps:
        raise CampaignError(f"the undisturbed run is not whole: {sight}")
    return {checkpoint.step: checkpoint.content for checkpoint in judge.whole.values()}


@dataclass
class DisturbedRun:
    """One run, over as many drivers as it takes."""

    site: Site
    name: str
    method: Method
    judge: Judge
    striker: Striker
    kinds: deque[str]
    """Those to come; what this run leaves is for the next."""
    _blows: list[_Blow] = field(default_factory=list, init=False)
    """From which the run has not recovered yet."""

    def incidents(self) -> Iterator[Incident]:
        """Until the run has ended; the last incident is its end."""
        for _ in range(_MAX_DRIVERS):
            resume = self.judge.look().newest is not None
            with self.site.driver(self.name, self.method, resume=resume) as driver:
                try:
                    yield from self._follow(driver)
                except DriverError as error:  # it has ended, or does not go on
                    yield from self._ended(driver, str(error))
                    if driver.exit_code == 0:
                        return
        raise CampaignError(f"{self.name} does not come to an end")

    def _follow(self, driver: DriverProcess) -> Iterator[Incident]:
        """Until the driver has been killed. Raises `DriverError` when it ends by itself, or does not go on."""
        yield from self._recover(driver)
        if self.kinds and self.site.plan.spares_first_save and self.judge.look().newest is None:
            driver.wait_for(SAVED, _PATIENCE_SECONDS)
        while self.kinds:
            self._pause(driver, _RESTART_SECONDS if self._blows else self.site.plan.calm_seconds)
            yield from self._recovered(driver)
            self._strike(driver)
            if self._blows[-1].kind == "driver":
                return
            if self.striker.random.random() >= _AGAIN:
                yield from self._recover(driver)
        yield from self._recover(driver)
        driver.wait_until(lambda: False, _END_SECONDS, "the run has not ended")

    def _pause(self, driver: DriverProcess, within_seconds: float) -> None:
        """A random while."""
        until = time.monotonic() + self.striker.random.uniform(0, within_seconds)
        driver.wait_until(lambda: time.monotonic() > until, within_seconds + 1, "no time")

    def _strike(self, driver: DriverProcess) -> None:
        kind = self.kinds[0]
        step = None if self._blows else self._steps_taken()
        at = self.striker.strike(kind, driver)
        sight = self._look(driver)
        self._blows.append(_Blow(kind, at, step, sight.newest, sight.problems))
        self.kinds.popleft()

    def _recover(self, driver: DriverProcess) -> Iterator[Incident]:
        """Wait until training goes on."""
        driver.wait_until(lambda: self._sign(driver) is not None, _PATIENCE_SECONDS, "training does not go on")
        yield from self._recovered(driver)

    def _sign(self, driver: DriverProcess) -> Hit | None:
        """The line that shows that training goes on after the last blow."""
        since = self._blows[-1].at + _STALE_SECONDS if self._blows else 0.0
        begins_anew = any(blow.kind in RESTARTING and blow.newest is not None for blow in self._blows)
        hits = driver.hits(RESUMING, since) or ([] if begins_anew else driver.hits(STEP, since))
        return hits[0] if hits else None

    def _recovered(self, driver: DriverProcess) -> Iterator[Incident]:
        """What has become of the blows, if training goes on by now."""
        sign = self._sign(driver)
        if sign is not None:
            blows, self._blows = self._blows, []
            problems = self._look(driver).problems
            for blow in blows:
                yield self._incident(blow, sign, problems if blow is blows[-1] else ())

    def _incident(self, blow: _Blow, sign: Hit, problems: Sequence[Problem]) -> Incident:
        resumed_step = int(sign.groups[0]) if sign.groups else None
        found = [*blow.problems, *problems]
        if resumed_step is not None and blow.newest is not None and resumed_step < blow.newest.step:
            found.append(Problem("not the newest", f"{sign.text}: {blow.newest.name} was complete"))
        return self._record(blow.kind, blow.step, blow.newest, found, resumed_step, sign.at - blow.at)

    def _ended(self, driver: DriverProcess, told: str) -> Iterator[Incident]:
        """The last incidents of a driver that was not killed; all is read once more."""
        sight = self._look(driver, again=True)
        blows, self._blows = self._blows, []
        for blow in blows:
            yield self._record(blow.kind, blow.step, blow.newest, blow.problems)
        if driver.exit_code != 0:
            failure = Problem("failed", told)
            yield self._record(FAILURE, self._steps_taken(), sight.newest, [*sight.problems, failure])
            return
        problems = [*sight.problems]
        if sight.newest is None or sight.newest.step != self.site.plan.num_steps:
            problems.append(Problem("lost", f"{self.name} has ended without its last checkpoint: {sight.newest}"))
        yield self._record(END, self.site.plan.num_steps, sight.newest, problems)

    def _record(
        self,
        kind: str,
        step: int | None,
        newest: SeenCheckpoint | None,
        problems: Sequence[Problem],
        resumed_step: int | None = None,
        seconds: float | None = None,
    ) -> Incident:
        complete_step = None if newest is None else newest.step
        return Incident(kind, self.name, step, complete_step, resumed_step, seconds, tuple(problems))

    def _look(self, driver: DriverProcess, *, again: bool = False) -> Sight:
        self.judge.announced.update(hit.groups[0] for hit in driver.hits(SAVED))
        return self.judge.look(again=again)

    def _steps_taken(self) -> int:
        """As the driver has recorded them, with those that are lost until training goes on."""
        files = sorted(self.site.temporary.glob("llmforge-run-*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        lines = files[-1].read_text().splitlines() if files else []
        steps = [int(found[1]) for line in lines if (found := re.match(r'{"step": (\d+),', line))]
        return steps[-1] if steps else 0
