"""What ``changeanywhere benchmark`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from changeanywhere.errors import ConfigError
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe

SCRATCH = "scratch"
IGNORED = ("train_list", "change_classes")
"""Fields of ``pretrain`` and ``finetune`` that the protocol decides itself: refused, since they would do nothing."""


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
        arms = {arm: [folder, self.change_classes.get(arm)] for arm, folder in self.pretraining.items()}
        precision = self.run.mixed_precision
        return common | stages | {"lists": self.lists and str(self.lists), "precision": precision, "arms": arms}

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        from changeanywhere.models.detectors import detector_names

        names = detector_names()
        unknown = [name for name in self.detectors if name not in names]
        checks: list[tuple[str, object, bool, str]] = [
            ("pairs", self.pairs, bool(self.pairs), "a folder"),
            ("detectors", unknown or self.detectors, bool(self.detectors) and not unknown, ", ".join(names)),
            ("shares", self.shares, all(0 <= s <= 100 for s in self.shares) and bool(self.shares), "0 to 100"),
            *(
                (name, values, len(set(values)) == len(values), "each one once")
                for name, values in (("detectors", self.detectors), ("shares", self.shares), ("seeds", self.seeds))
            ),
            *(
                (
                    f"{stage}.{name}",
                    getattr(recipe, name),
                    getattr(recipe, name) is None,
                    "nothing, the protocol sets it",
                )
                for stage, recipe in (("pretrain", self.pretrain), ("finetune", self.finetune))
                for name in IGNORED
            ),
            (
                "finetune.backbone_weights",
                self.finetune.backbone_weights,
                self.finetune.backbone_weights == self.pretrain.backbone_weights,
                "those of pretrain: every arm starts from the same weights",
            ),
            ("num_panels", self.num_panels, self.num_panels >= 0, "0 and more"),
            ("val_share", self.val_share, 0 <= self.val_share < 100, "0 to 99"),
            ("seeds", self.seeds, bool(self.seeds), "one or more"),
            ("pretraining", list(self.pretraining), SCRATCH not in self.pretraining, f"names other than {SCRATCH}"),
            (
                "change_classes",
                list(self.change_classes),
                set(self.change_classes) <= set(self.pretraining),
                "names of pretraining",
            ),
            ("rivals", self.rivals, set(self.rivals) <= set(self.pretraining), "names of pretraining"),
            (
                "zero_shot_only",
                self.zero_shot_only,
                set(self.zero_shot_only) <= set(self.pretraining),
                "names of pretraining",
            ),
            (
                "seeds_at",
                self.seeds_at,
                all(0 <= s <= 100 and n >= 1 for s, n in self.seeds_at.items()),
                "0 to 100: 1 and more",
            ),
            (
                "scratch_learning_rates",
                self.scratch_learning_rates,
                bool(self.scratch_learning_rates) and min(self.scratch_learning_rates) > 0,
                "one or more, above 0",
            ),
            (
                "scratch_rate_at",
                self.scratch_rate_at,
                self.scratch_rate_at is None or 0 < self.scratch_rate_at <= 100,
                "1 to 100",
            ),
            ("test_split", self.test_split, self.test_split not in (self.train_split, self.val_split), "a split apart"),
        ]
        for name, value, allowed, what in checks:
            if not allowed:
                raise ConfigError(f"{name} is {value!r}; allowed: {what}")
        for stage, recipe in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            try:
                Recipe(detector=replace(recipe, pairs=self.pairs), run=self.run).check("detector")
            except ConfigError as error:
                raise ConfigError(str(error).replace("detector.", f"{stage}.")) from error
