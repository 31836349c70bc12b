"""The arms of a benchmark by their names: what each is pre-trained on, and how it learns from labels. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

ONLY_SUP, FLAT, EQUAL, SEMI = "only-sup", "scratch-flat", "scratch-equal", "semi-supervised"
SEMI_FLAT = "semi-supervised-flat"
BASELINES = (ONLY_SUP, FLAT, EQUAL, SEMI, SEMI_FLAT)
"""Arms without pre-training: fine-tuning's schedule on the labels alone; until validation is flat; as many steps as
pre-training and fine-tuning together; fine-tuning's schedule on the labels and on unlabelled pairs; that until
validation is flat."""
WITHOUT_LABELS = (SEMI, SEMI_FLAT)
"""Those of them that see more than labels."""
UNTIL_FLAT, WITH_UNLABELLED, WITH_REHEARSED = "-flat", "-semi", "-rehearsed"
"""Endings of arms with pre-training that are fine-tuned until validation is flat, on unlabelled pairs too, and on the
set of their pre-training too; the first also after one of the others."""


@dataclass(frozen=True)
class Way:
    """How an arm learns."""

    origin: str | None = None
    """The arm whose pre-training it goes on from."""
    flat: bool = False
    """Until validation gains no more."""
    unlabelled: bool = False
    """From pairs without labels, too."""
    rehearsed: bool = False
    """From the set of its pre-training, too."""


def ways_of(
    arms: Sequence[str], until_flat: Sequence[str], semi_supervised: Sequence[str], rehearsed: Sequence[str]
) -> dict[str, Way]:
    """Arms with pre-training that are fine-tuned otherwise than ``only-sup``, by their names, in the order of tables:
    ARM-flat, ARM-semi, ARM-rehearsed, then ARM-semi-flat and ARM-rehearsed-flat. Of names that are no arms: nothing."""
    found = {arm + UNTIL_FLAT: Way(arm, flat=True) for arm in until_flat if arm in arms}
    found |= {arm + WITH_UNLABELLED: Way(arm, unlabelled=True) for arm in semi_supervised}
    found |= {arm + WITH_REHEARSED: Way(arm, rehearsed=True) for arm in rehearsed}
    longer = [arm for arm in until_flat if arm not in arms and arm in found]
    return found | {arm + UNTIL_FLAT: replace(found[arm], flat=True) for arm in longer}
