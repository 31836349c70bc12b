"""Painters: what all keep, and one of another package (the example of docs/painters.md) from entry point to dataset."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import RePaintPipeline, RePaintScheduler, UNet2DModel

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import ConfigError
from changeanywhere.generation import generate as generation
from changeanywhere.generation.fidelity import FidelityFilter
from changeanywhere.generation.job import load_job
from changeanywhere.generation.options import DEVICE_FLAGS, PAINTER_FLAGS, FilterOptions, GenerateOptions
from changeanywhere.generation.plan import load_shard
from changeanywhere.generation.shard import read
from changeanywhere.legend import load_legend
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.painters.base import Batch, Painter, PainterKind, PainterSettings, Painting
from changeanywhere.painters.checked import Checked
from changeanywhere.painters.diffusion import DiffusionPainter
from changeanywhere.painters.exemplars import exemplars_of
from changeanywhere.painters.pasting import CopyPastePainter, PastingPainter, PatchExchangePainter, RecolourPainter
from changeanywhere.painters.registry import MUST_HAVE, OWN, find_painter, package_of, painter_names
from changeanywhere.sample import ChangePlan, SourceItem, change_mask_of
from changeanywhere.storage import LocalStore

PAGE = (Path(__file__).parents[1] / "docs" / "painters.md").read_text()
POOR, GOOD = 0.2, 0.9
"""What :func:`score` says of pairs."""


def register(folder: Path, points: dict[str, str], package: str = "repaint-painter") -> None:
    """The metadata of an installed package, as installers write them."""
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[changeanywhere.painters]\n{lines}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that packages are found in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def repaint(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example of the page, installed as the page says."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (point,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.splitlines()) <= 60
    name, value = re.findall(r'^(\w+) = "(.+)"$', point, re.MULTILINE)[0]
    (site / f"{value.partition(':')[0]}.py").write_text(example)
    register(site, {name: value})
    monkeypatch.delitem(sys.modules, value.partition(":")[0], raising=False)
    return site


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RePaint pipeline of some thousand weights."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=64, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    assert sum(weight.numel() for weight in net.parameters()) < 20_000
    folder = tmp_path_factory.mktemp("pipeline")
    RePaintPipeline(net, RePaintScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Command:
    """``generate`` with what all calls share; says exit code and the last line of an error."""

    shared: Sequence[str]
    out: Path
    errors: Callable[[], str]

    def __call__(self, *more: str, out: str = "out", steps: int = 3) -> tuple[int, str]:
        options = [
            "--painter-options",
            json.dumps({"num_inference_steps": steps, "jump_length": 1, "jump_n_sample": 2}),
        ]
        code = run(["generate", *self.shared, *options, "--out", str(self.out / out), *more])
        lines = self.errors().strip().splitlines()
        return code, lines[-1] if lines else ""


@pytest.fixture
def command(
    repaint: Path, source_folder: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    shared = ["--source", str(source_folder), "--model", str(pipeline_folder), "--method", "repaint"]
    shared += ["--tile-size", "64", "--num-pairs", "5", "--shard-size", "2", "--batch-size", "2", "--seed", "3"]
    return Command([*shared, "--num-threads", "1"], tmp_path, lambda: capsys.readouterr().err)


def files(folder: Path) -> dict[str, bytes]:
    """Everything but how files looked on this disk, and the page, which has the folder's name."""
    skip = ("asked.json", "report.html")
    every = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skip)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in every}


def images(folder: Path) -> list[bytes]:
    return [content for name, content in files(folder).items() if name.startswith("B/")]


def test_the_example_paints_changed_ground_and_holds_the_rest(command: Command) -> None:
    assert command()[0] == 0
    out = command.out / "out"
    pairs = ca.load_pairs(out)
    tiles = ca.load_source(command.shared[1], tile_size=64)
    source = {tiles.items[i].key: tiles[i] for i in range(len(tiles))}
    assert len(pairs) == 5
    for pair in (pairs[i] for i in range(5)):
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        assert np.array_equal(pair.change_mask, change_mask_of(pair.mask_t1, pair.mask_t2)) and pair.change_mask.any()
        tile, held = source[pair.metadata["source_key"]], ~pair.change_mask
        assert np.array_equal(pair.image_t1, tile.image) and np.array_equal(pair.mask_t1, tile.mask)
        assert np.array_equal(pair.image_t2[held], tile.image[held])
        assert (pair.image_t2[~held] != tile.image[~held]).mean() > 0.9
        record = pair.metadata
        options = {"num_inference_steps": 3, "jump_length": 1, "jump_n_sample": 2}
        assert record["settings"]["painter"] == {"method": "repaint", "options": options}
        assert record["settings"]["machine"]["dtype"] == "float32" and "sampling" not in record["settings"]
        assert record["versions"]["repaint-painter"] == "1.2"
        assert len(record["model_hash"]) == 16 and record["model"] == Path(command.shared[3]).name
    card = (out / "README.md").read_text()
    assert f"Date 2 {find_painter('repaint').how}" in card and f"Model `{pairs[0].metadata['model']}`" in card


def test_a_seed_means_the_same_bytes_in_any_batch(command: Command) -> None:
    for out, more in (("out", []), ("again", []), ("other", ["--seed", "4"]), ("batch", ["--batch-size", "1"])):
        assert command(*more, out=out)[0] == 0
    first, again, other, batch = (command.out / name for name in ("out", "again", "other", "batch"))
    assert files(first) == files(again)
    assert len({*images(first), *images(other)}) == 10
    assert images(first) == images(batch)


def test_an_interrupted_set_ends_in_the_same_bytes_and_other_settings_are_refused(
    command: Command, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command()[0] == 0
    kind: Any = find_painter("repaint")
    paint, calls = kind.paint, []

    def dying(self: Painter, batch: Batch) -> list[Painting]:
        calls.append(len(batch))
        if len(calls) > 1:
            raise KeyboardInterrupt
        paintings: list[Painting] = paint(self, batch)
        return paintings

    monkeypatch.setattr(kind, "paint", dying)
    assert command(out="broken")[0] == 1
    monkeypatch.setattr(kind, "paint", paint)
    broken = command.out / "broken"
    assert not (broken / "metadata.jsonl").exists()
    code, error = command(out="broken", steps=4)
    assert code == 2
    assert "was made with painter.options.num_inference_steps = 3, asked now: 4" in error
    code, error = command("--painter-options", '{"jump_n_sample": 2}', out="broken")
    assert code == 2 and "was made with painter.options.jump_length = 1, asked now: None" in error
    assert command(out="broken")[0] == 0
    assert files(broken) == files(command.out / "out")
    other = command.out / "other pipeline"
    shutil.copytree(pipeline_folder, other)
    assert command("--model", str(other))[0] == 0, "where the same pipeline lies may change"
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + "\n")
    code, error = command("--model", str(other))
    assert code == 2 and "was made with painter.model_hash" in error


def test_other_weights_in_the_same_folder_are_refused(
    source_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    generate = ["generate", "--source", str(source_folder), "--out", str(tmp_path / "out"), "--model", str(model)]
    generate += ["--tile-size", "64", "--num-pairs", "2", "--num-steps", "1"]
    assert run(generate) == 0
    (model / "model.json").write_text((model / "model.json").read_text() + "\n")
    assert run(generate) == 2
    assert "was made with painter.model_hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-steps", "4"], "num_steps is 4; allowed: with a method that reads it, which repaint does not"),
        (["--dtype", "float16"], "dtype is 'float16'; allowed: with a method that computes on a device and reads it"),
        (["--compile"], "compile is True; allowed: with a method that reads it"),
        (["--reconstruct-t1"], "reconstruct_t1 is True; allowed: false with a painter that has no first stage"),
        (["--legend-map", "map.yaml"], "legend_map is 'map.yaml'; allowed: with a method that paints in a model's"),
        (
            ["--painter-options", '{"steps": 4}'],
            "painter_options has 'steps'; allowed: num_inference_steps, jump_length, jump_n_sample",
        ),
        (["--painter-options", '{"jump_length": 0}'], "painter_options.jump_length is 0; allowed: a whole number"),
        (["--painter-options", "many"], "painter_options"),
        (["--bands", "[1]"], "image_format is 'png'; allowed for images of 1 band(s): geotiff"),
        (["--bands", "[1]", "--image-format", "geotiff"], "bands is [1]; allowed: 3 bands"),
        (["--model", "nowhere"], "model is 'nowhere'; allowed: the folder of a saved diffusers pipeline"),
        (["--model", "mini"], "model is ''; allowed: the folder of a saved diffusers pipeline"),
        (["--method", "diffusion", "--model", "mini"], "painter_options is {'num_inference_steps': 3"),
        (["--method", "recolour", "--model", "mini"], "num_threads is 1; allowed: with a method that computes"),
    ],
)
def test_what_it_does_not_read_or_cannot_do_is_refused_by_name(command: Command, more: list[str], message: str) -> None:
    code, error = command(*more)
    assert code == 2 and error.startswith("changeanywhere: error: ") and message in error
    assert not (command.out / "out").exists()


def test_dry_run_and_nothing_to_do(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--dry-run")[0] == 0 and not (command.out / "out").exists()
    assert command()[0] == 0
    monkeypatch.setattr(find_painter("repaint"), "build", None)
    assert command()[0] == 0, "a finished set is known again without its painter"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A segmenter for ``--filter.model`` that finds every first painting of a pair poor and every other one good."""
    Segmenter("unet", load_legend("mini")).save(tmp_path / "reader")
    seen: set[bytes] = set()

    def score(self: object, pixels: torch.Tensor, plans: Sequence[ChangePlan]) -> list[float | None]:
        marks = [plan.mask_t2.tobytes() + plan.change_mask.tobytes() for plan in plans]
        scores: list[float | None] = [GOOD if mark in seen else POOR for mark in marks]
        seen.update(marks)
        return scores

    monkeypatch.setattr(FidelityFilter, "scores", score)
    return tmp_path / "reader"


def test_another_painting_is_asked_for_only_where_there_is_one(
    command: Command, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(out="plain")[0] == 0
    again = ["--filter.model", str(scored), "--filter.action", "resample"]
    assert command(*again)[0] == 0
    pairs, plain = ca.load_pairs(command.out / "out"), ca.load_pairs(command.out / "plain")
    assert [(pairs[i].metadata["attempt"], pairs[i].metadata["fidelity"]) for i in range(5)] == [(1, GOOD)] * 5
    assert not any(np.array_equal(pairs[i].image_t2, plain[i].image_t2) for i in range(5))
    assert all(np.array_equal(pairs[i].image_t1, plain[i].image_t1) for i in range(5))
    monkeypatch.setattr(find_painter("repaint"), "repaints", False)
    code, error = command(*again, out="never")
    assert code == 2 and "filter.action is 'resample'; allowed: score, drop where there is no other noise" in error


def test_tiles_are_encoded_once_for_all_that_is_painted_of_a_batch(
    source_folder: Path, tiny_model_folder: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The painter, the first stage of ``reconstruct_t1`` and every new painting share the latents of a batch."""
    sizes, encode = [], ca.ChangePairPipeline.encode

    def counted(self: ca.ChangePairPipeline, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ca.ChangePairPipeline, "encode", counted)
    options = GenerateOptions(
        source=source_folder, out=tmp_path / "out", model=str(tiny_model_folder), num_pairs=12, tile_size=64,
        num_steps=2, shard_size=4, batch_size=4, dtype="float32", num_threads=1, reconstruct_t1=True,
        filter=FilterOptions(scored, action="resample"),
    )  # fmt: skip
    generation.generate(options)  # 6 tiles, 2 pairs each
    assert sizes == [2, 2, 2]
    pairs = ca.load_pairs(options.out)
    assert [pairs[i].metadata["attempt"] for i in range(12)] == [1] * 12


def test_real_pixels_go_through_the_first_stage_once_however_often_they_are_painted_over(
    source_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    batch = batch_of(source_folder, tmp_path)
    sampling = Sampling(num_steps=2, exemplar_strength=0.5, restore_detail=1.0)
    settings = PainterSettings(str(tiny_model_folder), load_legend("mini"), 64, (1, 2, 3), sampling, "cpu", "float32")
    painter, legend = DiffusionPainter(settings), settings.legend
    images = [batch.images[row] for row in batch.rows]
    made = exemplars_of(images, batch.samples, batch.plans, batch.donors, sampling, legend)
    passed: dict[str, list[int]] = {"encode": [], "decode": []}

    def counting(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        inner = getattr(painter.pipeline, name)

        def count(given: torch.Tensor) -> torch.Tensor:
            passed[name].append(len(given))
            result: torch.Tensor = inner(given)
            return result

        return count

    for name in passed:
        setattr(painter.pipeline, name, counting(name))
    batch = replace(batch, exemplars=made)
    first = painter.paint(batch)
    again = painter.paint(batch.again([3, 1], [batch.seeds[3], batch.seeds[1]]))
    # Exemplars, in which date 1 lies, once; what was painted, exemplars once, what was painted again.
    assert passed == {"encode": [4], "decode": [4, 4, 2]}
    for painting, place in zip(again, (3, 1), strict=True):
        np.testing.assert_allclose(painting.image_t2, first[place].image_t2, atol=1e-4)
    other = painter.paint(replace(batch, exemplars=(), memo={}))
    for one, two in zip(other, first, strict=True):
        np.testing.assert_allclose(one.image_t2, two.image_t2, atol=1e-4)


def batch_of(folder: Path, tmp_path: Path) -> Batch:
    """Four planned pairs of two tiles, as a shard hands them to its painter."""
    options = GenerateOptions(source=folder, out=tmp_path / "set", method="recolour", num_pairs=4, tile_size=64)
    generation.generate(options)
    job = load_job(LocalStore(options.out))
    assert job is not None
    return read(job, load_shard(LocalStore(options.out), 0).pairs)


def test_painted_again_pairs_are_kept_apart(source_folder: Path, tmp_path: Path) -> None:
    batch = batch_of(source_folder, tmp_path)
    batch.donors[3].note(SourceItem("donor", "scene"))
    again = batch.again([3, 1], [70, 71])
    assert len(again) == 2 and again.seeds == [70, 71]
    assert again.images is batch.images and again.memo is batch.memo, "the same tiles: what was computed of them holds"
    for place, before in enumerate((3, 1)):
        assert again.samples[place] is batch.samples[before] and again.plans[place] is batch.plans[before]
        assert again.rows[place] == batch.rows[before]
        assert np.array_equal(again.images[again.rows[place]], batch.samples[before].pixels())
        assert again.donors[place].allowed == batch.donors[before].allowed and again.donors[place].used == []
    again.donors[0].note(SourceItem("another", "scene"))
    assert [item.key for item in batch.donors[3].used] == ["donor"] and not batch.donors[1].used
    assert list(batch.seeds) == [plan.seed for plan in batch.plans]


class Careless:
    """Gives back what it was told to."""

    def __init__(self, paintings: list[Painting]) -> None:
        self.paintings = paintings

    def paint(self, batch: Batch) -> list[Painting]:
        return self.paintings


def test_what_another_package_gives_back_is_looked_at(source_folder: Path, tmp_path: Path) -> None:
    batch = batch_of(source_folder, tmp_path)
    image: Any = batch.images[0]

    def painted(place: int, second: Any) -> list[Painting]:
        return [Painting(place, batch.plans[0], image, second)]

    assert len(Checked(Careless(painted(2, image)), "own").paint(batch)) == 1, "pairs may be left out"
    for paintings, message in (
        (painted(0, image.astype(np.float64)), r"image_t2 is float64 \(64, 64, 3\); allowed: float32 \(64, 64, 3\)"),
        (painted(0, image[:32]), r"image_t2 is float32 \(32, 64, 3\)"),
        (painted(0, torch.from_numpy(image)), "image_t2 is Tensor; allowed"),
        (painted(0, image + np.float32(1)), r"image_t2 has values from .+ to 1\..+; allowed"),
        (painted(0, image * np.float32("nan")), "image_t2 has values from nan to nan"),
        (painted(4, image), r"places of paintings are \[4\]; allowed: each of 0 to 3 once"),
        (painted(1, image) * 2, r"places of paintings are \[1, 1\]"),
    ):
        with pytest.raises(ConfigError, match=rf"method 'own': {message}"):
            Checked(Careless(paintings), "own").paint(batch)


def test_pairs_that_a_painter_leaves_out_are_missing_and_no_more(
    command: Command, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch of them too, beside a filter that paints again."""
    kind: Any = find_painter("repaint")
    paint = kind.paint

    def choosy(self: Painter, batch: Batch) -> list[Painting]:
        keys = [sample.item.key for sample in batch.samples]
        paintings: list[Painting] = paint(self, batch)
        return [painting for painting in paintings if keys[painting.place] != "tile_1"]

    monkeypatch.setattr(kind, "paint", choosy)
    assert command("--filter.model", str(scored), "--filter.action", "resample", "--batch-size", "1")[0] == 0
    pairs = ca.load_pairs(command.out / "out")
    keys = [pairs[i].metadata["source_key"] for i in range(len(pairs))]
    assert 0 < len(keys) < 5 and "tile_1" not in keys


def test_a_filter_keeps_a_painting_whole(command: Command, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own plan and donors: else labels and credits would be those of the painting that was thrown away."""
    kind: Any = find_painter("repaint")

    def exchanging(self: Painter, batch: Batch) -> list[Painting]:
        paintings = []
        for i, (plan, row) in enumerate(zip(batch.plans, batch.rows, strict=True)):
            first = batch.seeds[i] == plan.seed
            batch.donors[i].note(SourceItem("first" if first else "second", "scene", licence="CC0-1.0"))
            mask = batch.samples[i].mask.copy()
            mask[60 if first else 50, :4] = 5 if first else 4
            shown = ChangePlan(mask, change_mask_of(batch.samples[i].mask, mask), (), plan.seed)
            image = batch.images[row]
            paintings.append(Painting(i, shown, image, image, tuple(batch.donors[i].used)))
        return paintings

    monkeypatch.setattr(kind, "paint", exchanging)
    # Each pair is scored by what it shows: the first painting is poor, the second, of another mask, is poor too.
    scores = iter([POOR] * 2 + [GOOD] * 2)
    monkeypatch.setattr(FidelityFilter, "scores", lambda self, pixels, plans: [next(scores) for _ in plans])
    assert command("--filter.model", str(scored), "--filter.action", "resample", "--num-pairs", "2")[0] == 0
    pairs = ca.load_pairs(command.out / "out")
    for pair in (pairs[i] for i in range(2)):
        assert [donor["key"] for donor in pair.metadata["donors"]] == ["second"] and pair.metadata["attempt"] == 1
        assert pair.mask_t2 is not None and pair.change_mask.sum() == 4 and (pair.mask_t2[50, :4] == 4).all()


def test_a_painter_that_needs_no_model_names_none(
    site: Path, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "pale_painter.py").write_text(
        "from changeanywhere.painters.pasting import RecolourPainter\n"
        "class PalePainter(RecolourPainter):\n    uses_model = False\n    how = 'is pale.'\n"
    )
    register(site, {"pale": "pale_painter:PalePainter"})
    monkeypatch.delitem(sys.modules, "pale_painter", raising=False)
    out = tmp_path / "out"
    options = ["--source", str(source_folder), "--tile-size", "64", "--num-pairs", "2", "--method", "pale"]
    assert run(["generate", *options, "--out", str(out)]) == 0
    record = ca.load_pairs(out)[0].metadata
    assert (record["model"], record["model_hash"]) == ("", "")
    card = (out / "README.md").read_text()
    assert "Date 2 is pale." in card and "No model, changeanywhere" in card


def test_a_painter_may_read_some_of_the_sampling(
    command: Command, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says that it reads reaches it, with a model of this package or without."""
    kind: Any = find_painter("repaint")
    monkeypatch.setattr(kind, "reads", frozenset(["guidance_scale", "eta", "num_threads"]))
    build, seen = kind.build, []

    def noted(settings: PainterSettings) -> Any:
        seen.append(settings)
        return build(settings)

    monkeypatch.setattr(kind, "build", noted)
    assert command("--guidance-scale", "3", "--eta", "0.5")[0] == 0
    (settings,) = seen
    assert (settings.sampling.guidance_scale, settings.sampling.eta) == (3, 0.5)
    code, error = command("--guidance-scale", "2", "--eta", "0.5")
    assert code == 2 and "was made with sampling.guidance_scale = 3" in error
    code, error = command("--device", "cpu", out="elsewhere")
    assert code == 2 and "device is 'cpu'" in error


def test_threads_are_those_of_the_job_for_every_painter_that_computes(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = find_painter("repaint")
    paint, seen = kind.paint, set[int]()

    def counting(self: Painter, batch: Batch) -> list[Painting]:
        seen.add(torch.get_num_threads())
        paintings: list[Painting] = paint(self, batch)
        return paintings

    monkeypatch.setattr(kind, "paint", counting)
    before = torch.get_num_threads()
    assert command("--num-threads", "2")[0] == 0
    assert seen == {2} and torch.get_num_threads() == before


@pytest.mark.parametrize("name", OWN)
def test_own_painters_keep_the_protocol(name: str) -> None:
    kind = find_painter(name)
    for attribute, wanted in MUST_HAVE.items():
        assert isinstance(getattr(kind, attribute), wanted), attribute
    assert isinstance(kind.reads, frozenset) and all(isinstance(option, str) for option in kind.reads)
    assert kind.reads <= set(get_type_hints(GenerateOptions))
    assert kind.how.startswith("is ") and kind.how.endswith(".")
    assert package_of(name) == {}


def as_kinds() -> list[type[PainterKind]]:
    """What the type checker says of the own painters; it reads this, whoever runs it or not."""
    return [DiffusionPainter, CopyPastePainter, RecolourPainter, PatchExchangePainter]


def as_painters(diffusion: DiffusionPainter, pasting: PastingPainter, outside: PainterKind) -> list[Painter]:
    """The same of their instances, and of one of another package."""
    return [diffusion, pasting, outside, Checked(outside, "outside")]


def test_what_is_asked_of_a_class_is_the_protocol() -> None:
    members = {*PainterKind.__annotations__, *(name for name in vars(PainterKind) if name in ("build", "paint"))}
    assert set(MUST_HAVE) == members
    assert as_kinds() == [find_painter(name) for name in OWN]


def test_names_of_both_kinds_are_known_and_own_ones_stay(repaint: Path) -> None:
    register(repaint, {"diffusion": "repaint_painter:RepaintPainter", "zebra": "repaint_painter:Zebra"}, "usurper")
    assert painter_names() == [*OWN, "repaint", "zebra"]
    assert find_painter("diffusion") is DiffusionPainter and package_of("diffusion") == {}
    assert package_of("repaint") == {"repaint-painter": "1.2"}
    with pytest.raises(ConfigError) as caught:
        find_painter("magic")
    names = "diffusion, copy_paste, recolour, patch_exchange, repaint, zebra"
    assert str(caught.value) == f"method is 'magic'; allowed: {names}"
    register(repaint, {"zebra": "elsewhere:Zebra"}, "rival")
    with pytest.raises(ConfigError, match=r"'zebra': several packages register it \(elsewhere:Zebra, repaint_painter"):
        find_painter("zebra")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("", "'broken': broken_painter:Broken cannot be imported (module 'broken_painter' has no attribute 'Broken')"),
        ("import no_such_module", "broken_painter:Broken cannot be imported (No module named 'no_such_module')"),
        ("raise RuntimeError('two\\nlines')", "broken_painter:Broken cannot be imported (two lines)"),
        ("class Broken(RecolourPainter):\n    repaints = 'no'", "'repaints' of broken_painter:Broken is 'no'"),
        ("class Broken(RecolourPainter):\n    reads = 'eta'", "'reads' of broken_painter:Broken is 'eta'"),
        ("class Broken:\n    pass", "broken_painter:Broken has no 'reads'; see docs/painters.md"),
        ("class Broken(PastingPainter):\n    pass", "broken_painter:Broken has no 'how'; see docs/painters.md"),
    ],
)
def test_an_entry_point_that_is_no_painter_is_one_line(
    module: str,
    message: str,
    site: Path,
    source_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = "from changeanywhere.painters.pasting import PastingPainter, RecolourPainter\n"
    (site / "broken_painter.py").write_text(head + module)
    register(site, {"broken": "broken_painter:Broken"})
    monkeypatch.delitem(sys.modules, "broken_painter", raising=False)
    out = tmp_path / "out"
    assert run(["generate", "--source", str(source_folder), "--out", str(out), "--method", "broken"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("changeanywhere: error: method 'broken': ") and message in line
    assert not out.exists()


def test_the_page_says_what_the_protocol_has() -> None:
    for name in (*MUST_HAVE, "samples", "plans", "seeds", "rows", "donors", "images", "memo", "place", "image_t1"):
        assert f"`{name}" in PAGE, name
    (row,) = re.findall(r"^\| `reads` .+$", PAGE, re.MULTILINE)
    assert all(f"`{name}`" in row for name in (*PAINTER_FLAGS, *DEVICE_FLAGS))
