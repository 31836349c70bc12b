"""Can a machine tell date 1 from date 2 by artefacts alone? If so, a detector can take that for a change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from changeanywhere.evaluation.distances import Array
from changeanywhere.seeds import stream

FOLDS = 5
RIDGE = 1.0


def probe_accuracy(first: Array, second: Array, scenes: npt.NDArray[np.str_], seed: int = 0) -> float:
    """Cross-validated accuracy of a linear probe that sees one image's features and says whether it is a date 2.

    ``first``, ``second``: features ``[N, D]`` of image t1 and image t2; 0.5 = indistinguishable. Ridge regression on
    standardised features; no scene is in two folds.
    """
    rng = stream("evaluation.probe", seed)
    names = rng.permutation(np.unique(scenes))
    fold_of = dict(zip(names, np.arange(len(names)) % FOLDS, strict=True))
    folds = np.array([fold_of[scene] for scene in scenes])
    hits = []
    for fold in np.unique(folds):
        test = folds == fold
        if test.all():
            raise ValueError("all pairs are of one scene; a probe needs at least two")
        train = np.concatenate([first[~test], second[~test]])
        labels = np.concatenate([-np.ones((~test).sum()), np.ones((~test).sum())])
        mean, std = train.mean(0), train.std(0) + 1e-6
        x = (train - mean) / std
        # Dual form: there are more features than images.
        weights = x.T @ np.linalg.solve(x @ x.T + RIDGE * x.shape[1] * np.eye(len(x)), labels)
        for features, sign in ((first[test], -1), (second[test], 1)):
            hits.extend((((features - mean) / std) @ weights * sign > 0).tolist())
    return float(np.mean(hits))
