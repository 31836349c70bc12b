"""Shards on a Ray cluster: one painter per GPU or CPU slot, its model loaded once; Ray Core alone.

The driver holds the leases and says who paints what; a shard's files and marker go from the actor straight to the
store, which every node must reach. An actor that is lost gives its shard back; when nothing is left to begin, a shard
that takes long is begun a second time, and whoever writes its marker first wins: the bytes are the same.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from changeanywhere.buckets import store_at
from changeanywhere.errors import ChangeAnywhereError, ConfigError, OutputError, require
from changeanywhere.generation.carried import Files, packed, unpacked
from changeanywhere.generation.dataset import marker_of
from changeanywhere.generation.hands import MOST, Hands
from changeanywhere.generation.job import Job, load_job
from changeanywhere.generation.lanes import lanes_of
from changeanywhere.generation.painting import build_painter
from changeanywhere.generation.plan import PlanSummary, load_shard, load_summary
from changeanywhere.generation.shard import StoppedError, lie_there, marker_name, paint_shard
from changeanywhere.generation.turns import Turns
from changeanywhere.leases import Leases
from changeanywhere.painters.diffusion import EXACT
from changeanywhere.progress import Progress
from changeanywhere.storage import Store

LOOK = 0.5
"""Seconds between two looks at what is finished."""
SLOW = 3.0
"""A shard that takes this many times the median is begun a second time, once nothing else is left to begin."""
LEAST_SECONDS = 10.0
"""… and has taken at least that long."""
ROOM = 2
"""Shards that an actor without hands has at once: while one is painted, files of another are written or read."""
SERVED = 1.0
"""Seconds after which a thread that paints looks again; it is woken when there is something to do."""
NAMED = 4
"""Workers that the line of progress names."""
STARTS = 3
"""Times that Ray is started on this machine before it is said that it does not."""
MAX_LOSSES = 20
"""Actors that may be lost for each that was asked for, before the run gives up."""


class Painting:
    """What an actor does: opens job and painter once, then paints shards by number, several at once.

    As in a process of its own: batches take turns on the device, so that the files of one shard are written, and the
    tiles of the next one read, while something is painted. ``hands``: processes that do so for a GPU.
    """

    def __init__(self, place: str, folder: str, hands: int, names: Sequence[str], *models: Files) -> None:
        import torch

        if Path(folder).is_dir():  # paths of the command are relative to where it was given
            os.chdir(folder)
        self._store = store_at(place)
        job, plan = load_job(self._store), load_summary(self._store)
        if job is None or plan is None or job.machine is None:
            raise OutputError(f"{self._store.describe()}: no plan in it for this node; all need one --out")
        lanes = lanes_of(job)
        torch.set_num_threads(lanes.threads)
        self._exact = EXACT()
        self._exact.__enter__()  # for as long as there is an actor
        with unpacked(job, dict(zip(names, models, strict=True))) as moved:
            painter, _ = build_painter(moved)
        self._job, self._plan, self._turns, self._stop = job, plan, Turns(painter), threading.Event()
        self._hands = Hands(job, self._store, hands) if hands else None
        for _ in range(2 if hands else lanes.count):
            threading.Thread(target=self._serve, name="paints", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._turns.serve(SERVED)

    def ready(self) -> str:
        """Where it runs."""
        return f"{os.uname().nodename}:{os.getpid()}"

    def stop(self) -> None:
        """Begin nothing more; what is begun is finished."""
        self._stop.set()

    def paint(self, number: int) -> int | None:
        """Paint shard ``number`` unless it is there; how many pairs were painted. None: it was not begun."""
        if marker_of(self._store, self._plan, number) is not None:
            return 0
        painted: list[int] = []
        painter = self._turns.of(number)
        try:
            if self._hands is not None:
                self._hands.make(number, painter, painted.append, self._stop)
            else:
                shard = load_shard(self._store, number, self._plan)
                paint_shard(self._job, painter, shard, self._store, progress=painted.append, stop=self._stop)
        except StoppedError:
            return None
        return sum(painted)


@dataclass(eq=False)
class Worker:
    """An actor, as the driver sees it."""

    actor: Any
    room: int
    """Shards that it can take at once."""
    name: str = ""
    shards: list[int] = field(default_factory=list)
    """At work on."""
    pairs: int = 0


@dataclass
class _Run:
    """Who is at work on what."""

    waiting: deque[int]
    workers: list[Worker] = field(default_factory=list)
    starting: dict[Any, Worker] = field(default_factory=dict)
    """Answer to come → worker, which may wait for a node to join."""
    running: dict[Any, tuple[Worker, int, float]] = field(default_factory=dict)
    """Answer to come → worker, shard, since when."""
    taken: list[float] = field(default_factory=list)
    """Seconds that finished shards took."""
    done: set[int] = field(default_factory=set)
    losses: int = 0

    def awaited(self) -> bool:
        """Whether anybody is at work on what is not there yet; a straggler that was overtaken is not waited for."""
        return any(number not in self.done for _, number, _ in self.running.values())

    def left_behind(self) -> set[int]:
        """Shards that somebody was still at work on when another had finished them."""
        return {number for _, number, _ in self.running.values() if number in self.done}

    def copies_of(self, number: int) -> int:
        return sum(shard == number for _, shard, _ in self.running.values())

    def free(self, number: int | None = None) -> Worker | None:
        """Who takes the next shard: whoever has least to do. A second one, to be read while the first is painted, only
        while there are more than workers: the last ones are for those who have nothing. ``number``: not who has it."""
        most = 1 if len(self.waiting) <= len(self.workers) else None
        able = [each for each in self.workers if len(each.shards) < (most or each.room) and number not in each.shards]
        return min(able, key=lambda each: len(each.shards), default=None)

    def straggler(self) -> int | None:
        """A shard to begin a second time."""
        if self.waiting or not self.taken:
            return None
        limit, now = max(LEAST_SECONDS, SLOW * statistics.median(self.taken)), time.monotonic()
        slow = [n for _, n, since in self.running.values() if now - since > limit and n not in self.done]
        return next((number for number in slow if self.copies_of(number) == 1), None)

    def told(self) -> str:
        """How many workers there are, and how far each has come: by name where they are few."""
        counts = [worker.pairs for worker in self.workers]
        if len(counts) > NAMED:
            return f"{len(counts)} workers, {min(counts)} to {max(counts)} pairs each"
        names = ", ".join(f"{worker.name} {worker.pairs}" for worker in self.workers)
        return f"{len(counts)} workers{': ' if names else ''}{names}"


class RayShards:
    """Paints the open shards of a set on a cluster."""

    def __init__(self, address: str | None, workers: int | None) -> None:
        self._address, self._workers = address, workers

    def run(
        self, shards: Sequence[int], job: Job, plan: PlanSummary, store: Store, leases: Leases, stop: threading.Event,
        progress: Progress,
    ) -> int:  # fmt: skip
        """Return how many pairs were painted when every one of ``shards`` is there; as :class:`Executor` otherwise.

        Of a shard that two kinds of machine wrote, one of which was overtaken, the marker may be gone again.
        """
        with _connected(self._address) as ray, leases.renewed():
            painted = [0]
            run = _Run(deque(shards))
            count = min(self._workers or _slots(ray, job), max(1, len(shards)))
            before = plan.num_pairs - sum(len(load_shard(store, number, plan).pairs) for number in shards)
            others: list[int] = []
            begin = _beginning(ray, job, store, run)
            told_to_stop = False
            for _ in range(count):
                begin()
            while run.awaited() or ((run.waiting or others) and not stop.is_set()):
                self._dispatch(run, leases, others, lambda number: marker_of(store, plan, number) is not None, stop)
                finished, _ = ray.wait([*run.running, *run.starting], num_returns=1, timeout=LOOK)
                for answer in finished:
                    painted[0] += self._settle(ray, run, answer, leases)
                    done = min(before + painted[0], plan.num_pairs)
                    progress(f"painting pairs  {run.told()}", done, plan.num_pairs)
                if run.losses > MAX_LOSSES * count:
                    raise ChangeAnywhereError(f"{store.describe()}: {run.losses} Ray actors were lost; see Ray's logs")
                if stop.is_set() and not told_to_stop:
                    told_to_stop = True
                    for worker in run.workers:
                        worker.actor.stop.remote()
                while not stop.is_set() and len(run.starting) + len(run.workers) < count:
                    begin()
                if not run.waiting and others and not run.awaited():  # theirs; if their process dies, ours
                    run.waiting, others = deque(n for n in others if marker_of(store, plan, n) is None), []
            left = run.left_behind()
        if stop.is_set():
            raise KeyboardInterrupt
        for number in left:  # what they overwrote, if they are of another kind, is not what the marker says
            marker = marker_of(store, plan, number)
            if marker is not None and not lie_there(store, marker.files):
                store.delete(marker_name(number))
        return painted[0]

    def _dispatch(self, run: _Run, leases: Leases, others: list[int], is_done: Any, stop: threading.Event) -> None:
        while run.waiting and not stop.is_set() and (worker := run.free()) is not None:
            number = run.waiting.popleft()
            if run.copies_of(number) or leases.claim(str(number)):
                self._give(run, worker, number)
            elif not is_done(number):
                others.append(number)
        again = None if stop.is_set() else run.straggler()
        if again is not None and (worker := run.free(again)) is not None:
            self._give(run, worker, again)

    def _give(self, run: _Run, worker: Worker, number: int) -> None:
        worker.shards.append(number)
        run.running[worker.actor.paint.remote(number)] = (worker, number, time.monotonic())

    def _settle(self, ray: Any, run: _Run, answer: Any, leases: Leases) -> int:
        """Take an answer; how many pairs it stands for, a shard's second copy counting nothing."""
        worker, number, since = (
            (run.starting.pop(answer), None, 0.0) if answer in run.starting else run.running.pop(answer)
        )
        try:
            result = ray.get(answer)
        except ray.exceptions.RayTaskError as error:  # what the painter itself raised
            raise (error.cause if isinstance(error.cause, ChangeAnywhereError) else error) from error
        except ray.exceptions.RayError as error:  # the actor, its process or its node is gone
            cause = getattr(error, "cause", None) or error
            if number is None and "The actor died because of an error raised in its creation task" in str(error):
                raise _of_creation(cause) from error
            run.losses += number is None or worker in run.workers
            if worker in run.workers:
                run.workers.remove(worker)
            if number is not None and number not in run.done and not run.copies_of(number):
                leases.release(str(number))
                run.waiting.appendleft(number)
            return 0
        if number is None:
            worker.name = str(result)
            run.workers.append(worker)
            return 0
        worker.shards.remove(number)
        if number in run.done:
            return 0
        if result is None:  # it was told to stop before it began
            leases.release(str(number))
            return 0
        run.done.add(number)
        run.taken.append(time.monotonic() - since)
        worker.pairs += int(result)
        leases.release(str(number))
        return int(result)


def _beginning(ray: Any, job: Job, store: Store, run: _Run) -> Callable[[], None]:
    """What begins an actor. The models are read here, once, and lie in the object store for all of them."""
    models = packed(job)
    kept = [ray.put(files) for files in models.values()]
    hands = _hands(ray, job)
    room = max(ROOM, hands)
    kind = ray.remote(Painting).options(**_needs(job), max_concurrency=room + 1)  # and one to be told to stop

    def begin() -> None:
        actor = kind.remote(store.describe(), str(Path.cwd()), hands, list(models), *kept)
        run.starting[actor.ready.remote()] = Worker(actor, room)

    return begin


def _of_creation(error: Exception) -> ChangeAnywhereError:
    """What went wrong when an actor opened job and model, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ChangeAnywhereError(f"a Ray actor could not begin: {lines[-1] if lines else type(error).__name__}")


def _needs(job: Job) -> dict[str, Any]:
    """Of an actor: a GPU, or as many processors as the job froze threads; without restarts, which the driver does."""
    assert job.machine is not None
    if job.machine.device == "cpu":
        return {"num_cpus": job.machine.num_threads, "max_restarts": 0}
    return {"num_cpus": 1, "num_gpus": 1, "max_restarts": 0}


def _hands(ray: Any, job: Job) -> int:
    """Processes beside each GPU: the cluster's processors, shared among its GPUs. None on the CPU."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if "num_gpus" in _needs(job) else 0
    return max(0, min(int(there.get("CPU", 0)) // gpus - 1, MOST)) if gpus else 0


def _slots(ray: Any, job: Job) -> int:
    """How many actors the cluster takes now."""
    needs, there = _needs(job), ray.cluster_resources()
    slots = [int(there.get("CPU", 0) // needs["num_cpus"])]
    if "num_gpus" in needs:
        slots.append(int(there.get("GPU", 0)))
    return max(1, min(slots))


def require_ray() -> Any:
    """Ray, which sends nothing of its use. :class:`ConfigError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor is 'ray'; it needs Ray: pip install 'changeanywhere[ray]'") from error
    return ray


def _require_answer(address: str | None) -> None:
    """:class:`ConfigError` where nobody listens: Ray itself would ask for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        require(address in (None, "auto", "local"), "address", address, "auto, or HOST:PORT")
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"address is {address!r}; no cluster answers there ({error})") from error


def _connect(ray: Any, address: str | None) -> None:
    """:class:`ConfigError` where it fails. Its own start is tried again: Ray gives a node 30 s, which are too few
    where a machine has much to do."""
    here = address in (None, "local")
    for left in reversed(range(STARTS if here else 1)):
        try:
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False if here else None}
            ray.init(address=address or "local", **quiet)
            return
        except Exception as error:  # Ray has no class of its own for a start that fails
            ray.shutdown()
            if not left:
                reason = " ".join(str(error).split())[:200]
                where = "Ray does not start on this machine" if here else "no cluster answers there"
                raise ConfigError(f"address is {address!r}; {where} ({reason})") from error


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected; signals stay with whoever had them, and actors end with the context."""
    ray = require_ray()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _require_answer(address)
    _connect(ray, address)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()
