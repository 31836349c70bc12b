"""A recipe: the sections of a recipe file, and the model that training starts from."""

from __future__ import annotations

from dataclasses import dataclass

from changeanywhere.training.checks import check_recipe
from changeanywhere.training.sections import (
    STAGE_SECTIONS,
    CriticRecipe,
    DataRecipe,
    DenoiserRecipe,
    DetectorRecipe,
    FirstStageRecipe,
    RunRecipe,
    Sections,
    SegmenterRecipe,
)

__all__ = [
    "STAGE_SECTIONS",
    "CriticRecipe",
    "DataRecipe",
    "DenoiserRecipe",
    "DetectorRecipe",
    "FirstStageRecipe",
    "Recipe",
    "RunRecipe",
    "SegmenterRecipe",
]


@dataclass(frozen=True)
class Recipe(Sections):
    """A whole recipe."""

    def check(self, *stages: str) -> None:
        """Raise :class:`ConfigError` naming the first value of ``stages`` that is not allowed, or that does nothing.

        ``stages``: ``first_stage``, ``denoiser``, ``critic``, ``segmenter``, ``detector``; none = all of them.
        """
        check_recipe(self, stages or STAGE_SECTIONS)
