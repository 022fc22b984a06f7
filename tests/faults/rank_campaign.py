"""The ranks of a run, killed far more often than whole runs can be: forked from a process that has imported everything.

Real engine, loop, recovery and background saves to S3, without Ray and without a driver: see tests/train/saved_run.py.
In: a server, how many kill points, a seed. Out: one `Incident` for each of them and for each end of a run. A run
absorbs as many as come before it ends; then the next run of another case begins. All must end like the run of the same
case that nobody disturbed. Whoever iterates must have no threads of its own, since it is forked.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boto3.session import Session

from llmforge.checkpoint.names import step_of
from tests.faults.campaign import END, CampaignError, Expected, Incident
from tests.faults.judge import Judge, Problem, SeenCheckpoint
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server
from tests.train.ranks import Case, write_random_samples
from tests.train.saved_run import SavedRun, train_rank

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BUCKET = "ranks"
RankStrike = Literal["one rank", "all ranks", "one rank, then the server", "the server, then all ranks"]
STRIKES: Mapping[RankStrike, float] = {
    "one rank": 5.0,
    "all ranks": 2.0,
    "one rank, then the server": 1.0,
    "the server, then all ranks": 1.0,
}
"""How often each comes."""
CASES = (
    Case(num_workers=2, zero_stage=0, method="lora", dropout=0.1),
    Case(num_workers=2, zero_stage=3, method="full", dropout=0.1),
    Case(num_workers=2, zero_stage=2, method="full", dropout=0.1, packed=False),
    Case(num_workers=2, zero_stage=1, method="lora", dropout=0.1),
)
MAX_STEPS = 28
STEPS_PER_SAVE = 4
LONGEST_CALM_SECONDS = 8.0
_PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class RankSite:
    """One for all runs of a campaign."""

    server: S3Server
    client: S3Client
    bucket: str
    samples: Path
    """With what `write_random_samples` writes."""
    scratch: Path


@contextmanager
def open_rank_site(s3_server_bin: Path) -> Iterator[RankSite]:
    """A server on loopback ports, which this process and its children use, and one temporary folder."""
    with tempfile.TemporaryDirectory(prefix="llmforge-ranks-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        write_random_samples(scratch)
        server = S3Server(s3_server_bin, scratch / "s3").start()
        os.environ |= {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }
        try:
            client = Session().client("s3")
            client.create_bucket(Bucket=BUCKET)
            yield RankSite(server, client, BUCKET, scratch, scratch)
            client.close()
        finally:
            server.stop()


@dataclass
class RankGroup:
    """The processes of one start of a run."""

    run: SavedRun
    journal: Path
    pids: dict[int, int] = field(default_factory=dict)
    """By rank; those that have not been waited for."""
    failed: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Fork the ranks."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        for rank in range(self.run.case.num_workers):
            pid = os.fork()
            if pid == 0:
                self._be_rank(rank, port)
            self.pids[rank] = pid

    def lines(self) -> list[str]:
        """The journal of rank 0 so far, without a line that was cut."""
        path = self._journal_of(0)
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def kill(self, rank: int) -> None:
        """SIGKILL, which the next `reap` sees."""
        with suppress(ProcessLookupError):
            os.kill(self.pids[rank], signal.SIGKILL)

    def has_begun(self) -> bool:
        """Whether its first step has begun, or it had none to take."""
        return any(line.startswith(("reading a batch ", "uploading ", "done")) for line in self.lines())

    def resumed_from(self) -> int | None:
        """The step of the checkpoint that it went on from."""
        found = [line for line in self.lines() if line.startswith("resuming from ")]
        return step_of(found[0].removeprefix("resuming from ")) if found else None

    def steps_taken(self) -> int:
        """Counted from the first step of the run; 0 as long as it has not begun."""
        begun = [int(line.rpartition(" ")[2]) for line in self.lines() if line.startswith("reading a batch ")]
        return begun[-1] - 1 if begun else 0

    def saved(self) -> set[str]:
        """Names of the checkpoints that it has announced."""
        words = ("saved ", "adopted ")
        return {line.split()[1] for line in self.lines() if line.startswith(words)}

    def reap(self) -> None:
        """See who has ended."""
        for rank, pid in list(self.pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.pids[rank]
                if status:
                    self.failed.add(rank)

    def end(self) -> None:
        """As Ray Train does when a rank has failed: kill the others, and wait."""
        for rank in list(self.pids):
            self.kill(rank)
        for rank, pid in list(self.pids.items()):
            os.waitpid(pid, 0)
            del self.pids[rank]
            self.failed.add(rank)

    def _be_rank(self, rank: int, port: int) -> None:
        """The whole life of a child; never returns."""
        status = 1
        try:
            with self._journal_of(rank).with_suffix(".log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            train_rank(self.run, rank, port, self._journal_of(rank))
            status = 0
        except Exception:  # noqa: BLE001 - a child tells of everything and never runs the parent's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def _journal_of(self, rank: int) -> Path:
        return self.journal.with_name(f"{self.journal.name}-group-{self.run.group}-rank-{rank}")


def disturbed_ranks(
    site: RankSite, num_kill_points: int, seed: int, cases: Sequence[Case] = CASES
) -> Iterator[Incident]:
    """Until so many kill points have come and the run that had the last has ended; the cases take turns."""
    source = random.Random(seed)
    expected = {case: _undisturbed(site, case, index) for index, case in enumerate(cases)}
    left = num_kill_points
    for number in count():
        case = cases[number % len(cases)]
        run = _run(site, case, f"ranks-{number:03d}")
        judge = Judge(site.client, site.bucket, f"runs/ranks-{number:03d}", expected[case])
        disturbed = _DisturbedRun(site, run, judge, source, left)
        yield from disturbed.incidents()
        left = disturbed.left
        if left == 0:
            return


@dataclass(frozen=True)
class _Blow:
    """A strike, of which the next group will show what became."""

    strike: RankStrike
    step: int
    """Steps taken before it."""
    newest: SeenCheckpoint | None
    problems: tuple[Problem, ...]


@dataclass
class _DisturbedRun:
    site: RankSite
    run: SavedRun
    judge: Judge
    random: random.Random
    left: int
    """Kill points to come."""

    def incidents(self) -> Iterator[Incident]:
        """Until the run has ended; the last incident is its end."""
        blow: _Blow | None = None
        for number in count(1):
            group = RankGroup(replace(self.run, group=number), self.site.scratch / self._name)
            group.start()
            calm_seconds = self.random.uniform(0, LONGEST_CALM_SECONDS) if self.left else _PATIENCE_SECONDS
            is_alive = self._lives(group, calm_seconds)
            if is_alive and not self.left:
                raise CampaignError(f"{group.journal}: the ranks do not come to an end")
            struck = self._strike(group) if is_alive else None
            if blow is not None:
                yield self._incident(blow, group)
            blow = struck
            if blow is None:
                yield self._end(group)
                return

    @property
    def _name(self) -> str:
        return self.run.run_uri.rpartition("/")[2]

    def _lives(self, group: RankGroup, seconds: float) -> bool:
        """Whether some rank is still at work after so long."""
        deadline = time.monotonic() + seconds
        while group.pids and time.monotonic() < deadline:
            group.reap()
            if group.failed:
                raise CampaignError(
                    f"{group.journal}: rank {group.failed} has failed without being killed; see its log"
                )
            time.sleep(_POLL_SECONDS)
        return bool(group.pids)

    def _strike(self, group: RankGroup) -> _Blow:
        self.left -= 1
        strike = self.random.choices([*STRIKES], [*STRIKES.values()])[0]
        step = group.steps_taken()
        if strike == "the server, then all ranks":
            self._kill_server()
        ranks = list(group.pids)
        for rank in ranks if strike.endswith("all ranks") else [self.random.choice(ranks)]:
            group.kill(rank)
        time.sleep(self.random.uniform(0, 0.5))  # the others go on until somebody notices
        if strike == "one rank, then the server":
            self._kill_server()
        group.end()
        if "server" in strike:
            self.site.server.start()
        self.judge.announced |= group.saved()
        sight = self.judge.look()
        return _Blow(strike, step, sight.newest, sight.problems)

    def _kill_server(self) -> None:
        self.site.server.stop(signal.SIGKILL)
        time.sleep(self.random.uniform(0, 1))

    def _incident(self, blow: _Blow, successor: RankGroup) -> Incident:
        """What became of a strike; nothing is known of it where the successor was struck before it began."""
        resumed = successor.resumed_from()
        problems = [*blow.problems]
        newest_step = None if blow.newest is None else blow.newest.step
        if newest_step is not None and successor.has_begun() and (resumed or 0) < newest_step:
            problems.append(Problem("not the newest", f"{self._name}: resumed from {resumed}, not from {newest_step}"))
        return Incident(blow.strike, self._name, blow.step, newest_step, resumed, None, tuple(problems))

    def _end(self, group: RankGroup) -> Incident:
        self.judge.announced |= group.saved()
        sight = self.judge.look(again=True)
        problems = [*sight.problems]
        if sight.newest is None or sight.newest.step != MAX_STEPS:
            problems.append(Problem("lost", f"{self._name} has ended without its last checkpoint: {sight.newest}"))
        newest_step = None if sight.newest is None else sight.newest.step
        return Incident(END, self._name, MAX_STEPS, newest_step, None, None, tuple(problems))


def _run(site: RankSite, case: Case, name: str) -> SavedRun:
    return SavedRun(
        run_uri=f"s3://{site.bucket}/runs/{name}",
        samples=site.samples,
        cache_folder=site.scratch / "cache" / name,
        case=case,
        max_steps=MAX_STEPS,
        steps_per_save=STEPS_PER_SAVE,
        num_to_keep=10_000,
    )


def _undisturbed(site: RankSite, case: Case, number: int) -> Expected:
    """Steps and contents of the checkpoints of a run that nobody disturbs."""
    run = _run(site, case, f"undisturbed-{number}")
    judge = Judge(site.client, site.bucket, f"runs/undisturbed-{number}")
    ending = _DisturbedRun(site, run, judge, random.Random(0), left=0)
    for incident in ending.incidents():
        if incident.problems:
            raise CampaignError(f"the undisturbed run is not whole: {incident}")
    return {checkpoint.step: checkpoint.content for checkpoint in judge.whole.values()}
