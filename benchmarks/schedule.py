"""The scheduler past any machine at hand, simulated: how much work is done twice, and how long the end takes.

    python benchmarks/schedule.py --workers 10000 --shards 312500

Workers take shards of equal work. A share of them is slow for good; each may die at any time (a rate per hour) and
come back. What is lost with a worker is the shard it was at. Three ways to share the work: ``shares`` (``--shard I/N``:
whose is fixed), ``leases`` (whoever is free takes the next; a lease of another machine is taken over when it expires),
and ``ray`` (the same, a loss is noticed by the heartbeat, and what is slow is begun twice at the end).
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from changeanywhere.generation.cluster import SLOW
from changeanywhere.leases import EXPIRES_AFTER

HEARTBEAT = 15.0
"""Seconds until Ray notices a lost node (its own default, five checks of three seconds)."""


@dataclass(frozen=True)
class World:
    """What is assumed; stated with every result."""

    workers: int = 10_000
    shards: int = 312_500
    seconds: float = 16.0
    """Of a shard on a worker of usual speed."""
    deaths_per_hour: float = 0.02
    back_after: float = 120.0
    slow_share: float = 0.01
    slow_factor: float = 5.0
    seed: int = 0


@dataclass
class Result:
    """Of one way."""

    ended: float = 0.0
    almost: float = 0.0
    """When 99 of 100 shards were there."""
    wasted: float = 0.0
    """Seconds of work that nothing came of: lost with a worker, or a second copy."""
    useful: float = 0.0


@dataclass
class _State:
    world: World
    way: str
    speed: list[float]
    chance: random.Random
    queues: list[deque[int]]
    done: bytearray
    events: list[tuple[float, int, str, int, int]] = field(default_factory=list)
    running: dict[int, dict[int, float]] = field(default_factory=dict)
    """Shard → worker → since when."""
    idle: deque[int] = field(default_factory=deque)
    count: int = 0
    result: Result = field(default_factory=Result)

    def push(self, when: float, what: str, worker: int, shard: int = -1) -> None:
        heapq.heappush(self.events, (when, len(self.events) + self.count, what, worker, shard))
        self.count += 1

    def queue_of(self, worker: int) -> deque[int]:
        return self.queues[worker if self.way == "shares" else 0]

    def begin(self, worker: int, now: float) -> None:
        """The next shard for a free worker, or the second copy of a slow one."""
        queue = self.queue_of(worker)
        while queue and self.done[queue[0]]:
            queue.popleft()
        shard = queue.popleft() if queue else self.straggler(now)
        if shard is None:
            self.idle.append(worker)
            return
        self.running.setdefault(shard, {})[worker] = now
        takes = self.world.seconds / self.speed[worker]
        rate = self.world.deaths_per_hour / 3600
        dies = self.chance.expovariate(rate) if rate else float("inf")
        self.push(now + min(takes, dies), "ends" if takes <= dies else "dies", worker, shard)

    def straggler(self, now: float) -> int | None:
        if self.way != "ray":
            return None
        limit = SLOW * self.world.seconds
        slow = (n for n, at in self.running.items() if len(at) == 1 and now - next(iter(at.values())) > limit)
        return next(slow, None)

    def ends(self, worker: int, shard: int, now: float) -> None:
        spent = now - self.running[shard].pop(worker)
        if self.done[shard]:
            self.result.wasted += spent
        else:
            self.done[shard] = 1
            self.result.useful += spent
            self.finished += 1
            if self.finished == int(0.99 * self.world.shards):
                self.result.almost = now
            self.result.ended = now
        if not self.running[shard]:
            del self.running[shard]
        self.begin(worker, now)

    def dies(self, worker: int, shard: int, now: float) -> None:
        self.result.wasted += now - self.running[shard].pop(worker)
        if not self.running[shard]:
            del self.running[shard]
        if not self.done[shard]:
            noticed = {"shares": self.world.back_after, "leases": EXPIRES_AFTER, "ray": HEARTBEAT}[self.way]
            self.push(now + noticed, "lost", worker, shard)
        self.push(now + self.world.back_after, "back", worker)

    finished: int = 0

    def lost(self, worker: int, shard: int, now: float) -> None:
        if self.done[shard]:
            return
        self.queue_of(worker).appendleft(shard)
        if self.idle and self.way != "shares":
            self.begin(self.idle.popleft(), now)


def simulate(world: World, way: str) -> Result:
    """How it goes until all shards are there."""
    chance = random.Random(world.seed)
    speed = [1 / world.slow_factor if chance.random() < world.slow_share else 1.0 for _ in range(world.workers)]
    queues: list[deque[int]] = (
        [deque(range(w, world.shards, world.workers)) for w in range(world.workers)]
        if way == "shares"
        else [deque(range(world.shards))]
    )
    state = _State(world, way, speed, chance, queues, bytearray(world.shards))
    for worker in range(world.workers):
        state.begin(worker, 0.0)
    looked = 0.0
    while state.finished < world.shards:
        now, _, what, worker, shard = heapq.heappop(state.events)
        if what == "ends":
            state.ends(worker, shard, now)
        elif what == "dies":
            state.dies(worker, shard, now)
        elif what == "lost":
            state.lost(worker, shard, now)
        else:
            state.begin(worker, now)
        if way == "ray" and state.idle and now - looked > 1.0:  # the driver looks at what is slow
            looked = now
            while state.idle and (state.queues[0] or state.straggler(now) is not None):
                state.begin(state.idle.popleft(), now)
    # Copies that are still at a shard that is there are ended, and were for nothing.
    copies = (since for shard, at in state.running.items() if state.done[shard] for since in at.values())
    state.result.wasted += sum(state.result.ended - since for since in copies)
    return state.result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Simulates the scheduler.")
    for name, kind, default in (
        ("workers", int, World.workers),
        ("shards", int, World.shards),
        ("seconds", float, World.seconds),
        ("deaths-per-hour", float, World.deaths_per_hour),
        ("slow-share", float, World.slow_share),
        ("slow-factor", float, World.slow_factor),
        ("seed", int, 0),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    world = World(**vars(parser.parse_args(argv)))
    best = (
        world.shards
        * world.seconds
        / sum(1 / world.slow_factor if i < world.slow_share * world.workers else 1.0 for i in range(world.workers))
    )
    print(world, f"\nall workers busy to the end: {best:.0f} s\n")
    print("| way | ends after, s | of it the last 1 %, s | wasted work |\n|---|---|---|---|")
    for way in ("ray", "leases", "shares"):
        found = simulate(world, way)
        wasted = found.wasted / (found.wasted + found.useful)
        print(f"| {way} | {found.ended:.0f} | {found.ended - found.almost:.0f} | {wasted:.2%} |")


if __name__ == "__main__":
    main()
