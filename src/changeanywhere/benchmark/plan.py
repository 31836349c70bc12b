"""What a benchmark will take, and what it could see, before it runs: OUT/plan.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from changeanywhere.benchmark.arms import EQUAL
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.statistics import groups_of, visible_gain
from changeanywhere.benchmark.summary import ALL_CHANGED, comparisons, one_list
from changeanywhere.benchmark.trainings import Cell, Trainings, choosing, pretraining_of, round_steps
from changeanywhere.storage import atomic_write
from changeanywhere.text import markdown
from changeanywhere.training.recipe import DetectorRecipe

SPREADS = (0.02, 0.04, 0.06, 0.08)
"""Of single differences in F1, for which the power note is written."""


@dataclass(frozen=True)
class Work:
    """Trainings of one kind for one detector."""

    detector: str
    what: str
    trainings: int
    steps: int
    """Of all of them together."""
    bound: bool = False
    """Whether validation decides how many; these are then the most."""
    rows: float = 1.0
    """Pairs of a step, by those of other arms."""

    @property
    def at_most(self) -> str:
        """A mark where validation decides the length."""
        return "up to " if self.bound else ""


def work_of(
    options: BenchmarkOptions, cells: Sequence[Cell], tuning: Callable[[int, int], DetectorRecipe]
) -> Iterator[Work]:
    """Every training behind ``cells``, those that only choose a rate among them, by detector and arm."""
    for detector in options.detectors:
        for arm in options.pretraining:
            count = len({*_pretrainings(options, [cell for cell in cells if cell.detector == detector], arm)})
            if count:
                yield Work(detector, f"pre-training on {arm}", count, count * options.pretrain.num_steps)
        for arm in (*options.baselines, *options.tuned_arms):
            own = [cell for cell in cells if (cell.detector, cell.arm) == (detector, arm) and cell.share]
            if own:
                choose = dict.fromkeys(first for cell in own for first in choosing(options, cell))
                counts = dict.fromkeys(own, 1) | dict.fromkeys(choose, len(options.rates))
                trainings = sum(counts.values())
                steps = sum(n * steps_of(options, arm, tuning(c.share, c.seed)) for c, n in counts.items())
                tuned, way = options.finetune, options.way_of(arm)
                seen = tuned.unlabelled_share if way.unlabelled else tuned.rehearsed_share if way.rehearsed else 0.0
                yield Work(detector, arm, trainings, steps, way.flat, 1 / (1 - seen))


def _pretrainings(options: BenchmarkOptions, cells: Sequence[Cell], arm: str) -> Iterator[int]:
    """The seeds of pre-training on the set of ``arm`` that ``cells``, and those which choose their rates, go on
    from."""
    for cell in cells:
        if options.way_of(cell.arm).origin == arm:
            if cell.share:
                yield from (pretraining_of(options, one.seed) for one in (cell, *choosing(options, cell)))
            else:
                yield cell.seed


def steps_of(options: BenchmarkOptions, arm: str, tuning: DetectorRecipe) -> int:
    """On labels, of one training of an arm; of those until validation is flat the most that they may take."""
    if arm == EQUAL:
        return options.pretrain.num_steps + tuning.num_steps
    if options.way_of(arm).flat:
        return options.flat.rounds * round_steps(options, tuning) + tuning.num_steps
    return tuning.num_steps


def write_plan(options: BenchmarkOptions, cells: Sequence[Cell], trainings: Trainings) -> list[Work]:
    """Write OUT/plan.md; returns the lines of its table."""
    work = list(work_of(options, cells, trainings.tuning))
    atomic_write(options.out / "plan.md", (plan_page(options, cells, work, trainings) + "\n").encode())
    return work


def plan_page(options: BenchmarkOptions, cells: Sequence[Cell], work: Sequence[Work], trainings: Trainings) -> str:
    """The budget table and the power note, as Markdown."""
    timed = [one for one in work if one.detector in options.step_seconds]
    beside = any(one.rows > 1 for one in work)
    lines = [f"# {markdown(options.name)}: what it takes", "", "| detector | what | trainings | steps | hours |"]
    lines += ["|---|---|---|---|---|"]
    for one in work:
        seconds = options.step_seconds.get(one.detector)
        hours = "-" if seconds is None else f"{one.at_most}{one.steps * one.rows * seconds / 3600:.2f}"
        cell = [markdown(one.detector), markdown(one.what), str(one.trainings), f"{one.at_most}{one.steps:,}", hours]
        lines.append("| " + " | ".join(cell) + " |")
    total = sum(one.steps * one.rows * options.step_seconds[one.detector] for one in timed) / 3600
    lines += ["", f"{len(cells)} cells. Computed from seconds per step: {total:.1f} hours" if timed else ""]
    lines += [
        "(validation and test not counted; a training until validation is flat ends sooner than its bound"
        + ("; steps with unlabelled pairs by their pairs, what a teacher reads not counted)." if beside else ")."),
        "",
        f"Validation budget of every arm: {len(options.rates)} learning rate(s), chosen over {options.rate_seeds} "
        f"seed(s); {options.candidates} candidate weights a training, or one a step of a shorter one.",
        "",
        *power_note(options, cells, trainings),
    ]
    return "\n".join(lines)


def power_note(options: BenchmarkOptions, cells: Sequence[Cell], trainings: Trainings) -> list[str]:
    """Which gain could be seen where gains are claimed: at shares of the labels, and zero-shot. Of several comparisons
    the one that sees least is told; those that can show nothing are named."""
    groups: dict[tuple[str, int, str], list[dict[str, int]]] = {
        (cell.detector, cell.share, cell.arm): [] for cell in cells
    }
    groups |= {(cell.detector, 0, ALL_CHANGED): [] for cell in cells if not cell.share}
    claimed = comparisons(groups, options.claims)
    if not claimed:
        return ["No arm is held against another: nothing to see."]
    notes = list[str]()
    for zero in (False, True):
        drawn = {one: _drawn(options, trainings, *one) for one in claimed if (one[1] == 0) == zero}
        seen = [one for one in drawn.values() if one[1] > 1]
        blind: dict[str, dict[str, None]] = {}
        for (_, share, arm, _), (seeds, count) in drawn.items():
            if count < 2:
                why = "one list of labels" if one_list(options, share) else "one pre-training"
                why = "one seed" if seeds < 2 and not zero and why != "one list of labels" else why
                blind.setdefault(why, {})[arm if zero else f"{arm} at {share} %"] = None
        for why, arms in blind.items():
            told = f"Zero-shot, {why}" if zero else why.capitalize()
            notes.append(f"{told}: no gain can be claimed" + (f" of {', '.join(arms)}." if seen else "."))
        if seen:
            gains = {
                one: [visible_gain(spread, one[0], len(claimed), one[1]) or 0.0 for spread in SPREADS] for one in seen
            }
            seeds, count = max(gains, key=lambda one: gains[one])
            what = f"{count} pre-trainings" if zero else f"{seeds} seeds at {count} pre-trainings"
            told = _seen(what, gains[seeds, count], len(claimed))
            rest = " (Where pre-trainings differ by more than seeds do, less is seen.)"
            notes.append(f"Zero-shot: {told}" if zero else told + rest)
    return [line for note in notes for line in (note, "")][:-1]


def _drawn(
    options: BenchmarkOptions, trainings: Trainings, detector: str, share: int, arm: str, other: str
) -> tuple[int, int]:
    """With how many seeds a gain of ``arm`` over ``other`` is taken, and in how many groups that share neither a
    pre-training nor a list of labels."""
    origins = [origin for name in (arm, other) if (origin := options.way_of(name).origin) is not None]
    if share:
        seeds = options.seeds[: options.count_of_seeds(share)]
        begun = {seed: trainings.seed_of_pretraining(seed) for seed in seeds}
    else:
        begun = {seed: seed for seed in options.pretrain_seeds}
        begun = {s: s for s in begun if all(trainings.first_alike(detector, origin, s) == s for origin in origins)}
    listed: dict[str, int] = {"one_list": True} if one_list(options, share) else {}

    def said(seed: int, name: str) -> dict[str, int]:
        origin = options.way_of(name).origin
        if origin is None:
            return listed
        return listed | {"pretraining_seed": trainings.first_alike(detector, origin, begun[seed])}

    return len(begun), len(groups_of([(said(seed, arm), said(seed, other)) for seed in begun]))


def _seen(what: str, found: Sequence[float], count: int) -> str:
    pairs = zip(SPREADS, found, strict=True)
    seen = ", ".join(f"{100 * spread:g} → {100 * gain:.1f}" for spread, gain in pairs)
    return (
        f"Gain in F1 (points) that {what} show four times in five, corrected for {count} comparisons, by the spread of "
        f"single differences: {seen}."
    )
