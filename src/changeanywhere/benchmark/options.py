"""What ``changeanywhere benchmark`` can be told. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from changeanywhere.errors import ConfigError, require
from changeanywhere.limits import check_limits
from changeanywhere.storage import check_out
from changeanywhere.text import is_plain_name
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe

SCRATCH = "scratch"
IGNORED = ("train_list", "change_classes")
"""Fields of ``pretrain`` and ``finetune`` that the protocol decides itself: refused, since they would do nothing."""
Rule = tuple[str, object, bool, str]
"""Name of an option, its value, whether that is allowed, what is."""


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
    test_split: str = "test"
    """Split that is scored, once per cell; nothing is selected on it."""
    detectors: list[str] = field(default_factory=lambda: ["fc_siam_diff"])
    """Detectors, by name."""
    pretraining: dict[str, str] = field(default_factory=dict)
    """Sets to pre-train on: name → folder of pairs. Training from scratch is always an arm."""
    change_classes: dict[str, list[str]] = field(default_factory=dict)
    """Arm of ``pretraining`` → the classes whose appearing and vanishing counts as changed there, for benchmarks that
    label buildings alone; default: every change."""
    rivals: list[str] = field(default_factory=list)
    """Arms of ``pretraining`` that the others are to beat, beside training from scratch (copy-paste, say)."""
    zero_shot_only: list[str] = field(default_factory=list)
    """Arms of ``pretraining`` that are scored without labels only, and not fine-tuned."""
    shares: list[int] = field(default_factory=lambda: [0, 5, 10, 20, 50, 100])
    """Percentages of the training split; 0 = zero-shot (pre-trained arms only)."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of fine-tuning, and of the draw of few-shot lists."""
    seeds_at: dict[int, int] = field(default_factory=dict)
    """Share → how many of ``seeds`` (the first ones) are used there; default: all. Large shares vary less."""
    lists: Path | None = None
    """Folder of given few-shot lists, SHARE.txt (e.g. 5.txt); default: drawn by the seed and written to OUT/lists."""
    scratch_learning_rates: list[float] = field(default_factory=lambda: [1.0e-3, 1.0e-4])
    """From scratch the best of these on validation pairs (first seed of each share) is used."""
    scratch_rate_at: int | None = None
    """The share at whose labels that learning rate is chosen, once for every share; default: each share for itself."""
    pretrain: DetectorRecipe = field(default_factory=DetectorRecipe)
    """How to pre-train; ``name``, ``pairs`` and the splits are set by the protocol."""
    finetune: DetectorRecipe = field(default_factory=DetectorRecipe)
    """How to fine-tune. From scratch takes as many steps as pre-training and fine-tuning together."""
    run: RunRecipe = field(default_factory=RunRecipe)
    paper_tables: Path | None = None
    """CSV of published figures (columns benchmark, labels_percent, detector, pretraining, f1, precision, recall, iou)
    to stand beside ours."""
    num_panels: int = 6
    """Test pairs in the pictures, evenly spaced; 0 = no pictures."""

    def frozen(self) -> dict[str, Any]:
        """What a finished cell depends on, beside its detector, arm, share and seed."""
        names = ("pairs", "train_split", "val_split", "val_share", "test_split", "scratch_learning_rates")
        common = {name: getattr(self, name) for name in (*names, "scratch_rate_at")}
        stages = {"pretrain": asdict(self.pretrain), "finetune": asdict(self.finetune)}
        for stage in stages.values():
            del stage["max_megapixels"]  # what may be read changes no figure
        arms = {arm: [folder, self.change_classes.get(arm)] for arm, folder in self.pretraining.items()}
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
            try:
                Recipe(detector=replace(recipe, pairs=self.pairs), run=self.run).check("detector")
            except ConfigError as error:
                raise ConfigError(str(error).replace("detector.", f"{stage}.")) from error

    def _stages(self) -> tuple[tuple[str, DetectorRecipe], ...]:
        return ("pretrain", self.pretrain), ("finetune", self.finetune)

    def _protocol_rules(self) -> Iterator[Rule]:
        """What is measured, at which shares and seeds, with which learning rates."""
        from changeanywhere.models.detectors import detector_names

        names = detector_names()
        unknown = [name for name in self.detectors if name not in names]
        yield "pairs", self.pairs, bool(self.pairs), "a folder"
        yield "detectors", unknown or self.detectors, bool(self.detectors) and not unknown, ", ".join(names)
        yield "shares", self.shares, all(0 <= s <= 100 for s in self.shares) and bool(self.shares), "0 to 100"
        for name, values in (("detectors", self.detectors), ("shares", self.shares), ("seeds", self.seeds)):
            yield name, values, len(set(values)) == len(values), "each one once"
        yield "seeds", self.seeds, bool(self.seeds), "one or more"
        counted = all(0 <= share <= 100 and count >= 1 for share, count in self.seeds_at.items())
        yield "seeds_at", self.seeds_at, counted, "0 to 100: 1 and more"
        yield "num_panels", self.num_panels, self.num_panels >= 0, "0 and more"
        yield "val_share", self.val_share, 0 <= self.val_share < 100, "0 to 99"
        apart = self.test_split not in (self.train_split, self.val_split)
        yield "test_split", self.test_split, apart, "a split apart"
        rates = self.scratch_learning_rates
        yield "scratch_learning_rates", rates, bool(rates) and min(rates) > 0, "one or more, above 0"
        at = self.scratch_rate_at
        yield "scratch_rate_at", at, at is None or 0 < at <= 100, "1 to 100"

    def _arm_rules(self) -> Iterator[Rule]:
        """Names of arms."""
        arms = set(self.pretraining)
        yield "pretraining", list(self.pretraining), SCRATCH not in arms, f"names other than {SCRATCH}"
        for what, names in (("pretraining", self.pretraining), ("detectors", self.detectors)):
            paths = [name for name in names if not is_plain_name(name)]
            yield what, paths, not paths, "names of letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
        for name, asked in (
            ("change_classes", list(self.change_classes)),
            ("rivals", self.rivals),
            ("zero_shot_only", self.zero_shot_only),
        ):
            yield name, asked, set(asked) <= arms, "names of pretraining"

    def _stage_rules(self) -> Iterator[Rule]:
        """What a stage must leave to the protocol."""
        for stage, recipe in self._stages():
            for name in IGNORED:
                value = getattr(recipe, name)
                yield f"{stage}.{name}", value, value is None, "nothing, the protocol sets it"
        weights = self.finetune.backbone_weights
        same = weights == self.pretrain.backbone_weights
        yield "finetune.backbone_weights", weights, same, "those of pretrain: every arm starts from the same weights"
