"""What a benchmark will take, and what it could see, before it runs: OUT/plan.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from changeanywhere.benchmark.arms import EQUAL
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.statistics import visible_gain
from changeanywhere.benchmark.summary import ALL_CHANGED, comparisons
from changeanywhere.benchmark.trainings import Cell
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
    rates = len(options.rates)
    for detector in options.detectors:
        for arm in options.pretraining:
            count = len(options.pretrain_seeds)
            yield Work(detector, f"pre-training on {arm}", count, count * options.pretrain.num_steps)
        for arm in (*options.baselines, *options.tuned_arms):
            own = [cell for cell in cells if (cell.detector, cell.arm) == (detector, arm) and cell.share]
            choosing = set(options.seeds[: options.rate_seeds]) if rates > 1 else set()
            trainings = steps = 0
            for cell in own:
                chooses = cell.seed in choosing and options.rate_at in (None, cell.share)
                count = rates if chooses else 1
                trainings += count
                steps += count * steps_of(options, arm, tuning(cell.share, cell.seed))
            if own:
                tuned, way = options.finetune, options.way_of(arm)
                seen = tuned.unlabelled_share if way.unlabelled else tuned.rehearsed_share if way.rehearsed else 0.0
                yield Work(detector, arm, trainings, steps, way.flat, 1 / (1 - seen))


def steps_of(options: BenchmarkOptions, arm: str, tuning: DetectorRecipe) -> int:
    """On labels, of one training of an arm; of those until validation is flat the most that they may take."""
    if arm == EQUAL:
        return options.pretrain.num_steps + tuning.num_steps
    if options.way_of(arm).flat:
        return options.flat.rounds * (options.flat.num_steps or tuning.num_steps) + tuning.num_steps
    return tuning.num_steps


def write_plan(
    options: BenchmarkOptions, cells: Sequence[Cell], tuning: Callable[[int, int], DetectorRecipe]
) -> list[Work]:
    """Write OUT/plan.md; returns the lines of its table."""
    work = list(work_of(options, cells, tuning))
    atomic_write(options.out / "plan.md", (plan_page(options, cells, work) + "\n").encode())
    return work


def plan_page(options: BenchmarkOptions, cells: Sequence[Cell], work: Sequence[Work]) -> str:
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
        f"seed(s); {options.candidates} candidate weights a training.",
        "",
        *power_note(options, cells),
    ]
    return "\n".join(lines)


def power_note(options: BenchmarkOptions, cells: Sequence[Cell]) -> list[str]:
    """Which gain could be seen at the shares where gains are claimed."""
    groups: dict[tuple[str, int, str], list[dict[str, int]]] = {
        (cell.detector, cell.share, cell.arm): [] for cell in cells
    }
    groups |= {(cell.detector, 0, ALL_CHANGED): [] for cell in cells if not cell.share}
    count = len(comparisons(groups, options.claims))
    shares = [share for share in options.claims_at or options.shares if share]
    if not count or not shares:
        return ["No arm is held against another: nothing to see."]
    seeds = min(options.count_of_seeds(share) for share in shares)
    shared = len(options.pretrain_seeds)
    found = {spread: visible_gain(spread, seeds, count, shared) for spread in SPREADS}
    if found[SPREADS[0]] is None:
        return [f"{'One seed' if seeds < 2 else 'One pre-training'}: no gain can be claimed."]
    seen = ", ".join(f"{100 * s:g} → {100 * (gain or 0):.1f}" for s, gain in found.items())
    return [
        f"Gain in F1 (points) that {seeds} seeds at {min(shared, seeds)} pre-trainings show four times in five, "
        f"corrected for {count} comparisons, by the spread of single differences: {seen}. (Where pre-trainings differ "
        "by more than seeds do, less is seen.)"
    ]
