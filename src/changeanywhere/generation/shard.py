"""One shard, from its plan to its marker: what every executor runs.

    read tiles, simulate changes (a thread, ahead) ─► paint, filter (the device) ─► finish, write (threads, behind)
        ─► shards/N.json

The marker is written last, with the files and their hashes, and only where there is none: of several workers on one
shard one has written it. A shard without marker does not exist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from changeanywhere.errors import OutputError
from changeanywhere.generation.finish import finished_pair
from changeanywhere.generation.job import Job
from changeanywhere.generation.lanes import ahead, lanes_of
from changeanywhere.generation.plan import PlannedPair, ShardPlan, change_of
from changeanywhere.painters.base import Batch, Donors, Exemplar, Painter, Painting
from changeanywhere.painters.exemplars import exemplars_of
from changeanywhere.pairs.containers import CONTAINERS, Packing
from changeanywhere.pairs.record import PairRecord, Provenance
from changeanywhere.pairs.writer import write_pair
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import Store, content_hash

WRITER_THREADS = 2
READ_AHEAD = 2  # batches
ATTEMPTS = 3
"""Times that a shard is painted, of which others wrote the files meanwhile with other bytes."""

Written = tuple[dict[str, str], PairRecord]
"""Files of a pair with their hashes, and its record."""
Painted = tuple[Sequence[PlannedPair], Batch, list[Painting]]


class StoppedError(Exception):
    """A shard was not begun, since the run is to stop."""


def paint_shard(
    job: Job,
    painter: Painter,
    shard: ShardPlan,
    store: Store,
    *,
    progress: Callable[[int], object],
    stop: threading.Event,
) -> None:
    """Paint a shard and write it whole: images, masks, labels and, last, its marker.

    ``progress`` is told how many more pairs are painted. After ``stop`` a shard is finished if any of it was painted,
    else :class:`StoppedError` is raised. What cannot be read or written raises :class:`InputError`; nothing of the
    shard exists then.
    """
    for _ in range(ATTEMPTS):
        if _paint_once(job, painter, shard, store, progress, stop):
            return
        progress = _untold
    raise OutputError(
        f"{store.describe(marker_name(shard.number))}: other workers write this shard with other bytes again and "
        "again; allowed: workers on one kind of machine"
    )


def _untold(count: int) -> None:
    """Pairs that are painted a second time are counted already."""


def _paint_once(
    job: Job,
    painter: Painter,
    shard: ShardPlan,
    store: Store,
    progress: Callable[[int], object],
    stop: threading.Event,
) -> bool:
    """As :func:`paint_shard`; what :func:`put_marker` says."""
    assert job.machine is not None
    provenance = job.provenance
    batches = shard.batches(job.machine.batch_size)
    writes: list[Future[Written]] = []
    packing = Packing() if job.container in CONTAINERS else None

    def paint(task: tuple[Sequence[PlannedPair], Batch]) -> Painted:
        pairs, batch = task
        if stop.is_set() and pairs is batches[0]:
            raise StoppedError
        return pairs, batch, painter.paint(batch)

    lanes, pool = lanes_of(job).count, ThreadPoolExecutor
    with pool(1) as reader, pool(lanes) as painters, pool(WRITER_THREADS) as writers:
        read_ahead = ahead(reader, lambda pairs: read(job, pairs), batches, max(READ_AHEAD, lanes))
        tasks = zip(batches, read_ahead, strict=True)
        # As many again wait for a lane, so that none does nothing while the first of them is not done yet.
        for pairs, batch, paintings in ahead(painters, paint, tasks, 2 * (lanes - 1)):
            for painting in paintings:
                key, sample = pairs[painting.place].key, batch.samples[painting.place]

                def write(key: str = key, painting: Painting = painting, sample: Any = sample) -> Written:
                    pair, record = finished_pair(job, key, painting, sample, provenance)
                    return write_pair(packing or store, pair, job.tiles.source.legend, job.finishing.files), record

                writes.append(writers.submit(write))
            progress(len(pairs))
        written = [future.result() for future in writes]
    if packing is not None:
        written = packing.close(store, job.container, shard.number, written)
    return put_marker(store, shard.number, written, shard.seal)


def read(job: Job, pairs: Sequence[PlannedPair]) -> Batch:
    """Tiles, changes and exemplars of one batch."""
    tiles = job.tiles
    places = [(pair.source_index, pair.request is not None and pair.request.no_change) for pair in pairs]
    if tiles.dates is None or tiles.dates is tiles.source:  # all pairs of a tile are of one ground
        places = [(index, False) for index, _ in places]
    samples = {(index, quiet): tiles.ground(quiet).read(index) for index, quiet in dict.fromkeys(places)}
    row_of = {place: row for row, place in enumerate(samples)}
    own = [samples[place] for place in places]
    plans = [change_of(pair, tiles, sample.mask) for pair, sample in zip(pairs, own, strict=True)]
    images = np.stack([sample.pixels() for sample in samples.values()])
    rows = [row_of[place] for place in places]
    donors = [Donors(tiles.source, tiles.fellows(pair.source_index)) for pair in pairs]
    exemplars: list[Exemplar] = []
    if job.sampling is not None:  # here and not where the device waits
        own_images = [images[row] for row in rows]
        exemplars = exemplars_of(own_images, own, plans, donors, job.sampling, tiles.source.legend)
    return Batch(own, plans, [pair.seed for pair in pairs], images, rows, donors, exemplars)


@dataclass(frozen=True)
class Marker:
    """What a finished shard is: its files with their hashes, and the records of its pairs."""

    files: Mapping[str, str]
    records: Sequence[PairRecord]


def marker_name(number: int) -> str:
    """Object whose presence says that shard ``number`` is there."""
    return f"shards/{number:05d}.json"


def put_marker(store: Store, number: int, written: Sequence[Written], plan: str = "") -> bool:
    """Say that a shard is whole, once its files outlast a power cut. What all records share stands in it once.

    ``plan``: seal of the shard's plan. A sound marker that another worker was first to write stays, if the files are as
    it says. False: they are not, since two kinds of machine wrote them in turn; the shard is open again then.
    """
    name = marker_name(number)
    files = {name: digest for own, _ in written for name, digest in own.items()}
    records = [record.own() for _, record in written]
    shared = written[0][1].provenance.to_dict() if written else {}
    content = sealed({"files": files, "records": records, "shared": shared, "plan": plan})
    store.keep(files)
    if not store.put_new(name, content):
        there = read_marker(store, number, plan)
        if there is None:  # damaged, or of another plan
            store.put(name, content)
        elif there.files != files and not lie_there(store, there.files):
            store.delete(name)
            return False
    store.keep([name])
    return True


def lie_there(store: Store, files: Mapping[str, str]) -> bool:
    """Whether all of ``files`` have the bytes of their hashes."""
    try:
        return all(content_hash(store.get(name)) == digest for name, digest in files.items())
    except OSError:
        return False


def read_marker(store: Store, number: int, plan: str = "") -> Marker | None:
    """The marker of a shard; None if there is none, if it is damaged or of another plan than that of the seal ``plan``
    ("": of any): the shard is then made again."""
    try:
        content, _ = unsealed(store.get(marker_name(number)))
        if set(content) - {"plan"} != {"files", "records", "shared"} or plan not in ("", content.get("plan")):
            return None
        provenance = Provenance.from_dict(content["shared"])
        records = [replace(PairRecord.from_dict(record), provenance=provenance) for record in content["records"]]
        return Marker(dict(content["files"]), records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
