"""Whether two trainings took the same steps, for tests in which sums are made in another order.

Adam divides each gradient by its own size: the rounding of one that is nearly zero becomes a whole step, and weights
that had to be equal lie as far apart as the steps are long, on some processors and not on others. Trainings that are
compared here take plain steps instead, in which a rounding stays a rounding.

As a program (``same_training.py train ...``) it is ``changeanywhere`` with such steps, for launched processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from changeanywhere.cli import main
from changeanywhere.models import first_stage
from changeanywhere.training import codebook

LOGGED = 1e-4
"""Logged numbers may differ by this share of themselves."""
APART = 1e-3
"""Weights may end this far apart, as a share of the way that they went."""


def sgd(parameters: Iterable[torch.nn.Parameter], lr: float, **_: object) -> torch.optim.SGD:
    """In place of Adam, whose further settings mean nothing here."""
    return torch.optim.SGD(parameters, lr)


def codes_by_place(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """In place of the nearest codes: half of them in turn, alike in any part of a batch; the others fall out of use."""
    return torch.arange(len(vectors), device=vectors.device) % (len(codes) // 2)


def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings that begin from here on depend on their sums without a jump.

    SGD for Adam. Squares for L1, whose gradient turns where an error is nearly zero. And a latent's place says which
    code it takes: where two are equally near the last bit would, and of the latents in these tests some lie so.
    """
    for name in ("Adam", "AdamW"):
        monkeypatch.setattr(torch.optim, name, sgd)
    monkeypatch.setattr(F, "l1_loss", F.mse_loss)
    for module in (first_stage, codebook):
        monkeypatch.setattr(module, "nearest_codes", codes_by_place)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(first: Path, second: Path, stages: dict[str, float]) -> None:
    """That both runs logged the same numbers and went the same way; ``stages``: learning rate of each stage."""
    for stage, learning_rate in stages.items():
        runs = [folder / "training" / stage for folder in (first, second)]
        one, other = (metrics(run) for run in runs)
        assert len(one) == len(other) > 0
        for row, its in zip(one, other, strict=True):
            assert row.keys() == its.keys()
            for name in row.keys() - {"images_per_second"}:
                np.testing.assert_allclose(its[name], row[name], rtol=LOGGED, err_msg=f"{stage}, {name}, {row['step']}")
        way = learning_rate * sum(min(1.0, row["gradient_norm"]) for row in one)  # gradients are clipped at norm 1
        ends = [torch.load(run / "checkpoint.pt", weights_only=True)[stage] for run in runs]
        assert ends[0].keys() == ends[1].keys()
        apart = torch.stack([(ends[1][name].double() - value).norm() for name, value in ends[0].items()]).norm()
        assert float(apart) <= APART * way, f"{stage}: {float(apart):.2g} apart after a way of {way:.2g}"


if __name__ == "__main__":
    plain_steps(pytest.MonkeyPatch())
    main()
