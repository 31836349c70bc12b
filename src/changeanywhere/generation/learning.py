"""What a job learns from all tiles at once, or has learned already. No torch here, unless a segmenter reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from changeanywhere.generation.job import Job
from changeanywhere.generation.options import GenerateOptions, SimulateOptions
from changeanywhere.generation.second import SecondDate, SecondOptions, compare_dates
from changeanywhere.generation.tiles import Learned, learn
from changeanywhere.models.info import hash_segmenter
from changeanywhere.progress import Progress
from changeanywhere.sources import Source


def learned_of(
    options: SimulateOptions, source: Source, begun: Job | None, dates: str | None, progress: Progress
) -> Learned:
    """What is read out of all tiles once, or stands in the job begun, where that is of the same source under the same
    options; tables are read anew: they are edited. ``dates``: hash of the second dates, where they have a part."""
    second = options.second if isinstance(options, GenerateOptions) else SecondOptions()
    before = None
    if begun is not None:
        asked = (source.fingerprint(), options.events, options.seed, dates, second, segmenter_hash(second))
        before = begun.learned if asked == _asked_before(begun, second) else None
    same = before is not None and options.learn_transitions == (before.transition_weights is not None)
    if before is not None and same and options.events.transitions is None:
        return before
    ignored, other = (before.ignored, before.other) if before is not None else (None, None)
    if ignored is None and second.shown:
        ignored, other = compare_dates(source, second, progress)
    ground = SecondDate(source, ignored, other) if ignored is not None and second.use == "base" else source
    learned = learn(ground, options.events, options.learn_transitions, options.seed)
    return replace(learned, ignored=ignored, other=other)


def _asked_before(begun: Job, second: SecondOptions) -> tuple[Any, ...]:
    found, source = begun.second, begun.source
    if found.segmenter is not None and second.segmenter is not None:
        found = replace(found, segmenter=second.segmenter)  # its hash decides, not its place
    return source.fingerprint, begun.events, begun.seed, source.fingerprint_second, found, begun.segmenter_hash


def segmenter_hash(second: SecondOptions) -> str:
    """Of the segmenter that compares the dates; "" without one."""
    return "" if second.segmenter is None else hash_segmenter(second.segmenter)
