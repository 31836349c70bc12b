"""What ``changeanywhere benchmark`` can be told. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from changeanywhere.benchmark.arms import (
    BASELINES,
    EQUAL,
    FLAT,
    ONLY_SUP,
    SEMI,
    SEMI_FLAT,
    UNTIL_FLAT,
    WITH_REHEARSED,
    WITH_UNLABELLED,
    WITHOUT_LABELS,
    Way,
    ways_of,
)
from changeanywhere.errors import ConfigError, require
from changeanywhere.help import among, choose
from changeanywhere.limits import check_limits
from changeanywhere.models.names import SEMANTIC, detector_names
from changeanywhere.storage import check_out
from changeanywhere.text import is_plain_name
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from changeanywhere.training.sections import OF_UNLABELLED, count_beside

IGNORED = (
    "pairs",
    "train_split",
    "val_split",
    "train_list",
    "change_classes",
    "backbone_weights",
    "val_every",
    "validations",
    "schedule",
    "unlabelled",
    "unlabelled_split",
    "rehearsed",
    "rehearsed_classes",
)
"""Fields of ``pretrain`` and ``finetune`` that the protocol decides itself: refused, since they would do nothing."""
HOW_UNLABELLED = tuple(f"unlabelled_{name}" for name in OF_UNLABELLED if name != "split")
"""Fields of ``finetune`` that arms with unlabelled pairs alone read."""
HOW_REHEARSED = "rehearsed_share"
"""Field of ``finetune`` that arms which rehearse alone read."""
BESIDE = ("unlabelled", "unlabelled_split", *HOW_UNLABELLED, "rehearsed", "rehearsed_classes", HOW_REHEARSED)
"""Fields of a detector's recipe about what it learns from beside its pairs: of no matter to other arms."""
Rule = tuple[str, object, bool, str]
"""Name of an option, its value, whether that is allowed, what is."""


@dataclass(frozen=True)
class Claims:
    """Which gains a benchmark claims: decided before it runs, since intervals are corrected for their number."""

    references: tuple[str, ...] = BASELINES
    """Arms over which gains are taken."""
    shares: tuple[int, ...] = ()
    """At which shares; empty = at every one."""
    arms: tuple[str, ...] = ()
    """Of which arms; empty = of every one with pre-training."""

    def hold(self, share: int, arm: str) -> bool:
        """Whether a gain of ``arm`` at ``share`` is claimed; a rival's only where it is named."""
        named = arm in self.arms if self.arms else arm not in WITHOUT_LABELS
        return (not self.shares or share in self.shares) and named


@dataclass(frozen=True)
class FlatOptions:
    """``scratch-flat``: rounds at a constant rate until validation gains no more, then fine-tuning's schedule. Each
    round is a training of its own: it warms up anew, then stays at the full rate."""

    num_steps: int | None = None
    """Steps of a round, its warm-up among them; default: as many as fine-tuning takes. More than the warm-up has."""
    rounds: int = 8
    """Rounds at most."""
    patience: int = 2
    """Rounds without a gain after which validation is flat."""
    least_gain: float = 0.005
    """F1 on validation pairs that counts as a gain."""

    def rules(self) -> Iterator[Rule]:
        """What is allowed."""
        yield "flat.rounds", self.rounds, 1 <= self.rounds <= 1000, "1 to 1000"
        yield "flat.patience", self.patience, 1 <= self.patience <= self.rounds, "1 to flat.rounds"
        yield "flat.least_gain", self.least_gain, 0 <= self.least_gain < 1, "0 to below 1"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of ``changeanywhere benchmark``: which detectors, pre-trained on what, learn a benchmark how well."""

    out: Path
    """Folder of cells, tables, curves and panels; the same command on the same folder goes on."""
    name: str = "benchmark"
    """Name of the benchmark, as tables show it (and as ``paper_tables`` calls it)."""
    pairs: str = ""
    """The real dataset: A/B/label in any of the usual trees, with splits."""
    train_split: str = "train"
    """Its training split."""
    val_split: str = "val"
    """Split that selects weights and learning rates."""
    val_share: int = 0
    """Percent of the training split that is held out as validation split, where the dataset has none (SECOND)."""
    test_split: str | None = "test"
    """Split that is scored, once per cell; nothing is selected on it. ``null``: all pairs, zero-shot alone."""
    detectors: list[str] = field(default_factory=lambda: ["fc_siam_diff"], metadata=choose(detector_names))
    """Detectors, by name."""
    pretraining: dict[str, str] = field(default_factory=dict)
    """Sets to pre-train on: name → folder of pairs."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """Arms whose detectors are there already: name → mini-detector, a detector's folder, or one of such by the
    detectors' names."""
    pretrain_out: Path | None = None
    """Where pre-trained detectors lie, so that several benchmarks share them; default: OUT/pretrain."""
    pretrain_seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of pre-training. Fine-tuning's first seed goes on from the first of them, and so on, in turns."""
    baselines: list[str] = field(default_factory=lambda: [ONLY_SUP, FLAT, EQUAL], metadata=choose(BASELINES))
    """Arms without pre-training: ``only-sup`` (fine-tuning's schedule on labels alone), ``scratch-flat`` (until
    validation is flat), ``scratch-equal`` (as many steps as pre-training and fine-tuning together),
    ``semi-supervised`` (fine-tuning's schedule on the labels, and on unlabelled pairs beside them),
    ``semi-supervised-flat`` (that until validation is flat)."""
    change_classes: dict[str, list[str]] = field(default_factory=dict)
    """Arm of ``pretraining`` → the classes whose appearing and vanishing counts as changed there, together, for
    benchmarks that label buildings alone; default: every change."""
    rivals: list[str] = field(default_factory=list)
    """Arms with pre-training that the others are to beat, beside the baselines (copy-paste, say)."""
    zero_shot_only: list[str] = field(default_factory=list)
    """Arms with pre-training that are scored without labels only, and not fine-tuned."""
    until_flat: list[str] = field(default_factory=list)
    """Arms with pre-training that are fine-tuned in a second way too, as long as ``scratch-flat`` is trained: ARM-flat
    in the tables (of ARM-semi and ARM-rehearsed as well, by these names). The schedule of ``only-sup`` may be too short
    for any."""
    semi_supervised: list[str] = field(default_factory=list)
    """Arms with pre-training that are fine-tuned as ``semi-supervised`` is trained too: ARM-semi in the tables."""
    rehearsed: list[str] = field(default_factory=list)
    """Arms of ``pretraining`` that are fine-tuned beside pairs of their own set too: ARM-rehearsed in the tables."""
    unlabelled: list[str] = field(default_factory=list)
    """Folders of further pairs without labels for ``semi-supervised`` (-flat) and ARM-semi, beside all images of the
    training split. Pairs of that split among them are passed over; test scenes are refused."""
    shares: list[int] = field(default_factory=lambda: [0, 5, 10, 20, 50, 100])
    """Percentages of the training split; 0 = zero-shot (pre-trained arms only)."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of fine-tuning, and of the draw of few-shot lists. Their order counts (``pretrain_seeds``, ``rate_seeds``):
    in a folder that was begun, further ones go behind those that are there."""
    seeds_at: dict[int, int] = field(default_factory=dict)
    """Share (one of ``shares``) → how many of ``seeds`` (the first ones) are used there; default: all. Large shares
    vary less."""
    claims_at: list[int] = field(default_factory=list)
    """Shares at which gains are claimed: intervals are corrected for all comparisons there; default: every share."""
    claims_for: list[str] = field(default_factory=list)
    """Arms whose gains are claimed; default: every arm with pre-training. Other gains are shown, not claimed."""
    lists: Path | None = None
    """Folder of given few-shot lists, SHARE.txt (e.g. 5.txt): one draw of labels for all seeds, on which no gain is
    claimed; default: drawn by the seed and written to OUT/lists."""
    learning_rates: list[float] = field(default_factory=list)
    """Rates that every arm may choose from, by validation pairs; default: fine-tuning's alone."""
    rate_seeds: int = 1
    """The rate is the best one on average over so many seeds (the first ones) of its detector, arm and share."""
    rate_at: int | None = None
    """The share at whose labels rates are chosen, once for every share; default: each share for itself."""
    candidates: int = 4
    """Validations of a training, evenly spaced: among so many weights every arm chooses (of a training of fewer steps,
    one at each)."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Detector → file of backbone weights (``package``: see ``detector.backbone_weights``), for every arm; detectors
    that are not named begin at random."""
    pretrain: DetectorRecipe = field(default_factory=DetectorRecipe)
    """How to pre-train; ``name``, ``pairs`` and the splits are set by the protocol."""
    finetune: DetectorRecipe = field(default_factory=DetectorRecipe)
    """How to learn from labels: after pre-training, and alone (``only-sup``)."""
    finetune_epochs: float | None = None
    """Length of fine-tuning in epochs of the share, in place of ``finetune.num_steps``: one recipe for all shares."""
    warmup_epochs: float | None = None
    """Warm-up of fine-tuning in epochs of the share, in place of ``finetune.warmup_steps``."""
    flat: FlatOptions = field(default_factory=FlatOptions)
    run: RunRecipe = field(default_factory=RunRecipe)
    paper_tables: Path | None = None
    """CSV of published figures (columns benchmark, labels_percent, detector, pretraining, f1, precision, recall, iou)
    to stand beside ours; ``package``: the paper's own, of ``name`` SECOND or SYSU-CD."""
    num_panels: int = 6
    """Test pairs in the pictures, evenly spaced; 0 = no pictures."""
    keep_weights: bool = False
    """Keep the weights of every cell; default: of the first seed alone. Checkpoints of finished trainings go."""
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Detector → seconds of a training step as they were measured, from which OUT/plan.md computes hours."""
    dry_run: bool = False
    """Write OUT/plan.md (trainings, steps, hours, the gain that could be seen) and stop."""

    @property
    def rates(self) -> list[float]:
        """What every arm chooses from."""
        return self.learning_rates or [self.finetune.learning_rate]

    @property
    def arms(self) -> list[str]:
        """With pre-training, in their order."""
        return [*self.pretraining, *self.pretrained]

    @property
    def tuned_arms(self) -> list[str]:
        """With pre-training and labels, in their order: what is fine-tuned like ``only-sup``, then in other ways."""
        return [arm for arm in self.arms if arm not in self.zero_shot_only] + list(self._other_ways)

    def arms_at(self, share: int) -> list[str]:
        """The arms that have cells at ``share``, in the order of their work."""
        return [*self.baselines, *self.tuned_arms] if share else self.arms

    @property
    def _other_ways(self) -> dict[str, Way]:
        return ways_of(self.arms, self.until_flat, self.semi_supervised, self.rehearsed)

    def way_of(self, arm: str) -> Way:
        """How an arm learns."""
        if arm in self.arms:
            return Way(arm)
        return self._other_ways.get(arm, Way(flat=arm in (FLAT, SEMI_FLAT), unlabelled=arm in WITHOUT_LABELS))

    @property
    def unlabelled_arms(self) -> list[str]:
        """The arms that learn from pairs without labels beside the labelled ones."""
        return [arm for arm in (*self.baselines, *self.tuned_arms) if self.way_of(arm).unlabelled]

    @property
    def claims(self) -> Claims:
        """Which gains are claimed."""
        return Claims(tuple(self.references), tuple(self.claims_at), tuple(self.claims_for))

    @property
    def references(self) -> list[str]:
        """Arms over which gains are taken."""
        return [*self.baselines, *self.rivals]

    def count_of_seeds(self, share: int) -> int:
        """How many of ``seeds`` are used at ``share``."""
        return self.seeds_at.get(share, len(self.seeds))

    def frozen(self) -> dict[str, Any]:
        """What a finished cell depends on, beside its detector, arm, share and seed."""
        names = ("pairs", "train_split", "val_split", "val_share", "test_split", "rates", "rate_seeds", "rate_at")
        common = {name: getattr(self, name) for name in (*names, "candidates", "finetune_epochs", "warmup_epochs")}
        common |= {
            "backbones": {name: self.backbones.get(name) for name in self.detectors},
            "pretrain_seeds": self.pretrain_seeds,
            "flat": asdict(self.flat),
        }
        stages = {"pretrain": asdict(self.pretrain), "finetune": asdict(self.finetune)}
        tuned = stages["finetune"]
        how, share = {name: tuned[name] for name in HOW_UNLABELLED if tuned[name] is not None}, tuned[HOW_REHEARSED]
        for stage in stages.values():
            # What may be read changes no figure; the protocol sets validations.
            for name in ("max_megapixels", "validations", *BESIDE):
                del stage[name]
        arms: dict[str, Any] = {arm: [self.unlabelled, how] for arm in self.unlabelled_arms}
        arms |= {arm: [folder, self.change_classes.get(arm)] for arm, folder in self.pretraining.items()}
        arms |= {arm: [folder, None] for arm, folder in self.pretrained.items()}
        arms |= {arm + WITH_REHEARSED: share for arm in self.rehearsed}
        precision = self.run.mixed_precision
        return common | stages | {"lists": self.lists and str(self.lists), "precision": precision, "arms": arms}

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        check_limits(self)
        check_out(self.out)
        rules = (*self._protocol_rules(), *self._arm_rules(), *self._stage_rules())
        for name, value, allowed, what in rules:
            require(allowed, name, value, what)
        for stage, recipe in self._stages():
            read: list[dict[str, Any]] = [{}]
            if stage == "finetune":
                read += [{"unlabelled": [self.pairs]}] if self.unlabelled_arms else []
                read += [{"rehearsed": self.pairs}] if self.rehearsed else []
            try:
                for beside in read:
                    blank = {name: getattr(DetectorRecipe(), name) for name in unread(beside)}
                    asked = replace(recipe, pairs=self.pairs, **blank, **beside)
                    Recipe(detector=asked, run=self.run).check("detector")
            except ConfigError as error:
                raise ConfigError(str(error).replace("detector.", f"{stage}.")) from error

    def _stages(self) -> tuple[tuple[str, DetectorRecipe], ...]:
        return ("pretrain", self.pretrain), ("finetune", self.finetune)

    def _protocol_rules(self) -> Iterator[Rule]:
        """What is measured, at which shares and seeds, with which learning rates."""
        names = detector_names()
        unknown = [name for name in self.detectors if name not in names]
        yield "pairs", self.pairs, bool(self.pairs), "a folder"
        yield (
            "detectors",
            unknown or self.detectors,
            bool(self.detectors) and not unknown,
            among("".join(unknown[:1]), names),
        )
        yield "shares", self.shares, all(0 <= s <= 100 for s in self.shares) and bool(self.shares), "0 to 100"
        some = any(self.arms_at(share) for share in self.shares)
        yield "shares", self.shares, some, "some with an arm: 0 needs pretraining or pretrained, others baselines too"
        for name in ("detectors", "shares", "seeds", "pretrain_seeds", "baselines", "rivals", "learning_rates"):
            values = getattr(self, name)
            yield name, values, len(set(values)) == len(values), "each one once"
        yield "seeds", self.seeds, bool(self.seeds), "one or more"
        counted = all(1 <= share <= 100 and 1 <= n <= len(self.seeds) for share, n in self.seeds_at.items())
        allowed = f"1 to 100: 1 to {len(self.seeds)}, the number of seeds (at 0 these are pretrain_seeds)"
        yield "seeds_at", self.seeds_at, counted, allowed
        unasked = sorted(set(self.seeds_at) - set(self.shares))
        yield "seeds_at", unasked, not unasked, "some of shares"
        yield "num_panels", self.num_panels, self.num_panels >= 0, "0 and more"
        yield "val_share", self.val_share, 0 <= self.val_share < 100, "0 to 99"
        own = not self.val_share or self.val_split == BenchmarkOptions.val_split
        yield "val_split", self.val_split, own, "nothing beside val_share, which takes its place"
        chosen = self.val_split != self.train_split or bool(self.val_share) or not any(self.shares)
        yield "val_split", self.val_split, chosen, "a split apart from train_split (where there is none: val_share)"
        apart = self.test_split not in (self.train_split, self.val_split) and (self.test_split or not any(self.shares))
        yield "test_split", self.test_split, bool(apart), "a split apart; null with shares [0]"
        yield "learning_rates", self.learning_rates, min(self.rates) > 0, "above 0"
        yield "rate_seeds", self.rate_seeds, 1 <= self.rate_seeds <= len(self.seeds), "1 to the number of seeds"
        at = self.rate_at
        yield "rate_at", at, at is None or 0 < at <= 100, "1 to 100"
        for name in ("rate_at", "rate_seeds"):
            value = getattr(self, name)
            chosen = len(self.rates) > 1 or value == getattr(BenchmarkOptions(self.out), name)
            yield name, value, chosen, "with several learning_rates, among which it chooses"
        yield "candidates", self.candidates, self.candidates >= 1, "1 and more"
        yield "claims_at", self.claims_at, set(self.claims_at) <= set(self.shares), "some of shares"
        yield "pretrain_seeds", self.pretrain_seeds, bool(self.pretrain_seeds), "one or more"
        for name in ("finetune_epochs", "warmup_epochs"):
            epochs = getattr(self, name)
            yield name, epochs, epochs is None or epochs > 0, "above 0"
        slow = [name for name, seconds in self.step_seconds.items() if name not in self.detectors or seconds <= 0]
        yield "step_seconds", slow, not slow, "detectors of this benchmark, above 0"
        strangers = sorted(set(self.backbones) - set(self.detectors))
        yield "backbones", strangers, not strangers, "detectors of this benchmark"
        yield from self.flat.rules()

    def _arm_rules(self) -> Iterator[Rule]:
        """Names of arms."""
        unknown = [name for name in self.baselines if name not in BASELINES]
        yield "baselines", unknown, not unknown, among("".join(unknown[:1]), BASELINES)
        arms = set(self.arms)
        both = sorted(set(self.pretraining) & set(self.pretrained))
        yield "pretrained", both, not both, "names that pretraining does not have"
        for what, given in (("pretraining", self.pretraining), ("pretrained", self.pretrained)):
            yield what, list(given), not set(given) & set(BASELINES), f"names other than {', '.join(BASELINES)}"
        for what, names in (*(("pretraining", name) for name in (self.arms,)), ("detectors", self.detectors)):
            paths = [name for name in names if not is_plain_name(name)]
            yield what, paths, not paths, "names of letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
        counted = list(self.change_classes)
        yield "change_classes", counted, set(counted) <= set(self.pretraining), "names of pretraining"
        tuned, endings = arms | set(self.tuned_arms), f"ARM{UNTIL_FLAT}, ARM{WITH_UNLABELLED} or ARM{WITH_REHEARSED}"
        what = f"names of pretraining, pretrained, {endings}"
        yield "rivals", self.rivals, set(self.rivals) <= tuned, what
        allowed = set(self.claims_for) <= tuned | (set(WITHOUT_LABELS) & set(self.baselines))
        yield "claims_for", self.claims_for, allowed, f"{what}; {' or '.join(WITHOUT_LABELS)} where baselines have it"
        for name in ("zero_shot_only", "semi_supervised"):
            yield name, getattr(self, name), set(getattr(self, name)) <= arms, "names of pretraining or pretrained"
        yield "rehearsed", self.rehearsed, set(self.rehearsed) <= set(self.pretraining), "names of pretraining"
        beside = {arm for arm, way in self._other_ways.items() if way.unlabelled or way.rehearsed}
        what = f"names of pretraining, pretrained, ARM{WITH_UNLABELLED} or ARM{WITH_REHEARSED} of this benchmark"
        yield "until_flat", self.until_flat, set(self.until_flat) <= arms | beside, what
        ways = ((UNTIL_FLAT, "until_flat"), (WITH_UNLABELLED, "semi_supervised"), (WITH_REHEARSED, "rehearsed"))
        for ending, name in ways:
            taken = [arm for arm in getattr(self, name) if arm + ending in arms or arm in self.zero_shot_only]
            yield name, taken, not taken, f"arms that are fine-tuned, and whose name with {ending} is free"
        scored = 0 in self.shares or not self.zero_shot_only
        yield "zero_shot_only", self.zero_shot_only, scored, "nothing where 0 is not in shares"
        made = self.pretrain_out is None or bool(self.pretraining)
        yield "pretrain_out", str(self.pretrain_out), made, "nothing without pretraining"
        yield "unlabelled", self.unlabelled, len(set(self.unlabelled)) == len(self.unlabelled), "each one once"
        idle = [] if self.unlabelled_arms else self.unlabelled
        yield "unlabelled", idle, not idle, f"nothing without an arm that sees it ({SEMI}, ARM{WITH_UNLABELLED})"
        both_dates = [*self.unlabelled_arms, *self.rehearsed]
        semantic = [name for name in self.detectors if name in SEMANTIC and both_dates]
        what = f"none that learns classes of both dates, which it does from labels alone, beside {both_dates}"
        yield "detectors", semantic, not semantic, what

    def _stage_rules(self) -> Iterator[Rule]:
        """What a stage must leave to the protocol."""
        for stage, recipe in self._stages():
            named = recipe.name != DetectorRecipe.name and recipe.name in detector_names()  # else its own check says it
            yield f"{stage}.name", recipe.name, not named, "nothing, detectors has them"
            for name in IGNORED:
                value, blank = getattr(recipe, name), getattr(DetectorRecipe(), name)
                yield f"{stage}.{name}", value, value == blank, "nothing, the protocol sets it"
            for name in HOW_UNLABELLED:
                value, read = getattr(recipe, name), stage == "finetune" and bool(self.unlabelled_arms)
                allowed = f"its default where no arm reads it (finetune: {SEMI}, ARM{WITH_UNLABELLED})"
                yield f"{stage}.{name}", value, read or value == getattr(DetectorRecipe(), name), allowed
            share, read = getattr(recipe, HOW_REHEARSED), stage == "finetune" and bool(self.rehearsed)
            allowed = f"its default where no arm reads it (finetune: ARM{WITH_REHEARSED})"
            default = getattr(DetectorRecipe(), HOW_REHEARSED)
            yield f"{stage}.{HOW_REHEARSED}", share, read or share == default, allowed
        yield "run.seed", self.run.seed, self.run.seed == RunRecipe.seed, "nothing, seeds and pretrain_seeds are these"
        for name, share in (("unlabelled_share", self.unlabelled_arms), ("rehearsed_share", self.rehearsed)):
            value = getattr(self.finetune, name)
            some = not share or not 0 < value < 1 or count_beside(self.finetune.batch_size, value) > 0
            yield f"finetune.{name}", value, some, f"enough for a pair beside {self.finetune.batch_size} labelled ones"
        rate = self.finetune.learning_rate
        free = not self.learning_rates or rate == DetectorRecipe.learning_rate
        yield "finetune.learning_rate", rate, free, "nothing beside learning_rates, which take its place"
        for name, steps in (("finetune_epochs", "num_steps"), ("warmup_epochs", "warmup_steps")):
            value = getattr(self.finetune, steps)
            free = getattr(self, name) is None or value == getattr(DetectorRecipe(), steps)
            yield f"finetune.{steps}", value, free, f"nothing beside {name}, which takes its place"


def unread(beside: dict[str, Any]) -> tuple[str, ...]:
    """Fields of fine-tuning that an arm with this beside its labels does not read."""
    return (*(() if "unlabelled" in beside else HOW_UNLABELLED), *(() if "rehearsed" in beside else (HOW_REHEARSED,)))
