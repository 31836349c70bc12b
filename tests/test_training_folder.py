"""A training's folder: one training at a time, and no resume that is another run than was begun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from changeanywhere import leases
from changeanywhere.cli import run
from changeanywhere.errors import ChangeAnywhereError, ConfigError, ModelError, OutputError
from changeanywhere.leases import Leases
from changeanywhere.machine import this_machine
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.folder import load_model
from changeanywhere.pairs import load_pairs
from changeanywhere.sample import ChangePair
from changeanywhere.storage import LocalStore, content_hash
from changeanywhere.training import loop
from changeanywhere.training.batches import loaded
from changeanywhere.training.denoiser import train_denoiser
from changeanywhere.training.detector import train_detector
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import (
    DataRecipe,
    DenoiserRecipe,
    DetectorRecipe,
    FirstStageRecipe,
    Recipe,
    RunRecipe,
    SegmenterRecipe,
)
from changeanywhere.training.segmenter import train_segmenter
from conftest import write_source
from test_detector_training import write_pairs
from test_training import recipe, source_of, train_both, weights  # noqa: F401

SEGMENTER = SegmenterRecipe(backbone="unet", crop_size=32, batch_size=2, num_steps=6, warmup_steps=1)


@pytest.fixture
def segmenting(tmp_path: Path) -> Recipe:
    source = write_source(tmp_path / "tiles")
    data = DataRecipe(source=str(source), tile_size=64)
    return Recipe(data, segmenter=SEGMENTER, run=RunRecipe(num_workers=0, log_every=1, save_every=2))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def steps_of(out: Path, stage: str = "segmenter") -> list[int]:
    return [json.loads(line)["step"] for line in (out / "training" / stage / "metrics.jsonl").read_text().splitlines()]


def command(source: str, out: Path, num_steps: int) -> list[str]:
    settings = {"data.source": source, "data.tile-size": 64, "segmenter.backbone": "unet", "segmenter.crop-size": 32}
    settings |= {"segmenter.batch-size": 2, "segmenter.warmup-steps": 1, "segmenter.num-steps": num_steps}
    settings |= {"run.num-workers": 1, "run.log-every": 1, "run.save-every": 1, "out": out}
    return ["train", "segmenter", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]


def started(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    """A training in a process of its own that has saved a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "changeanywhere", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / "training" / "segmenter" / "checkpoint.pt").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def test_two_processes_in_one_folder_and_what_a_key_keeps(
    segmenting: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reported case; then Ctrl-C, which reaches every process of a terminal; then a kill."""
    out, source = tmp_path / "out", str(segmenting.data.source)
    first = started(command(source, out, 5000), out)
    assert run(command(source, out, 5000)) == 2
    error = capsys.readouterr().err
    assert f"process {first.pid} on" in error and "is training in it" in error and error.count("\n") == 1
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1 and "Traceback" not in said and "interrupted; what is finished is kept" in said
    state = torch.load(out / "training" / "segmenter" / "checkpoint.pt", weights_only=True)
    assert state["step"] == max(steps_of(out))
    second = started(command(source, out, 5000), out)
    time.sleep(0.3)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate(timeout=60)
    done = torch.load(out / "training" / "segmenter" / "checkpoint.pt", weights_only=True)["step"]
    assert run(command(source, out, done + 2)) == 0, "a dead process holds nothing"
    assert max(Counter(steps_of(out)).values()) == 1 and steps_of(out) == list(range(1, done + 3))


def test_two_trainings_of_one_process_in_one_folder(segmenting: Recipe, tmp_path: Path) -> None:
    def open_folder(stage: str = "segmenter") -> TrainingFolder:
        return TrainingFolder(tmp_path / "out", stage, segmenting, Processes(segmenting.run), "x")

    folder = open_folder()
    folder = open_folder()  # the other one was never at work
    with folder.at_work():
        with pytest.raises(OutputError, match="is being trained in this process"):
            open_folder()
        open_folder("detector").close()  # another stage
    open_folder().close()
    assert not (folder.path / "leases").exists()


@pytest.mark.parametrize("alive", [True, False])
def test_another_machine_is_waited_for_until_it_is_heard_or_lost(
    segmenting: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(leases, "EXPIRES_AFTER", 1.0)
    monkeypatch.setattr(leases, "POLL", 0.05)
    place = tmp_path / "out" / "training" / "segmenter"
    store = LocalStore(place)

    def renew(number: int) -> None:
        holder = {"machine": "far away", "pid": 7, "started": "1", "token": "x", "renewals": number}
        store.put("leases/training.json", json.dumps(holder).encode())

    renew(0)
    timer = threading.Timer(0.3, renew, [1])
    if alive:
        timer.start()
        with pytest.raises(OutputError, match="process 7 on far is training in it"):
            TrainingFolder(tmp_path / "out", "segmenter", segmenting, Processes(segmenting.run), "x")
        timer.join()
    else:
        TrainingFolder(tmp_path / "out", "segmenter", segmenting, Processes(segmenting.run), "x").close()
    assert Leases(store).claim("other")


class StoppedAfter(Event):
    """A ``stop`` that is set after ``count`` looks at it, one a step."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def is_set(self) -> bool:
        self._left -= 1
        return self._left <= 0


def invert(file: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)


def invert_all(root: Path) -> None:
    for file in sorted((root / "label").iterdir()):
        invert(file)


def shrink(file: Path) -> None:
    content = np.asarray(Image.open(file)) // 2
    Image.fromarray(content).save(file)


def rename(root: Path, name: str) -> None:
    for folder in ("A", "B", "label"):
        (root / folder / name).rename(root / folder / f"z{name}")


CHANGES: dict[str, Callable[[Path], None]] = {
    "all labels": invert_all,
    "one label": lambda root: invert(sorted((root / "label").iterdir())[0]),
    "an image": lambda root: shrink(sorted((root / "A").iterdir())[0]),
    "a name": lambda root: rename(root, sorted(file.name for file in (root / "A").iterdir())[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_detector_does_not_resume_on_other_labels(tmp_path: Path, change: str) -> None:
    root = write_pairs(tmp_path / "pairs")
    settings = DetectorRecipe("fc_siam_diff", str(root), val_split=None, crop_size=64, batch_size=2, num_steps=6)
    given = Recipe(detector=replace(settings, warmup_steps=1), run=RunRecipe(num_workers=0, save_every=1))
    with pytest.raises(KeyboardInterrupt):
        train_detector(given, tmp_path / "out", stop=StoppedAfter(2))
    moved = shutil.copytree(root, tmp_path / "moved")
    CHANGES[change](root / "train")
    with pytest.raises(OutputError, match=r"was started with data\.content"):
        train_detector(given, tmp_path / "out")
    shutil.rmtree(moved / "val")
    elsewhere = replace(given, detector=replace(given.detector, pairs=str(moved)))
    train_detector(elsewhere, tmp_path / "out")
    CHANGES[change](moved / "train")
    with pytest.raises(OutputError, match=rf"was started with detector\.pairs = '{root}', now '{moved}'"):
        train_detector(elsewhere, tmp_path / "out")


@pytest.mark.parametrize("change", CHANGES)
def test_a_detector_does_not_resume_with_other_validation_pairs(tmp_path: Path, change: str) -> None:
    """Its weights would be chosen by two yardsticks."""
    root = write_pairs(tmp_path / "pairs")
    settings = DetectorRecipe("fc_siam_diff", str(root), crop_size=64, batch_size=2, num_steps=6, val_every=2)
    given = Recipe(detector=replace(settings, warmup_steps=1), run=RunRecipe(num_workers=0, save_every=1))
    with pytest.raises(KeyboardInterrupt):
        train_detector(given, tmp_path / "out", stop=StoppedAfter(2))
    moved = shutil.copytree(root, tmp_path / "moved")
    CHANGES[change](root / "val")
    with pytest.raises(OutputError, match=r"was started with data\.validation = '\w+', now '\w+'; give another"):
        train_detector(given, tmp_path / "out")
    elsewhere = replace(given, detector=replace(given.detector, pairs=str(moved)))
    with pytest.raises(KeyboardInterrupt):
        train_detector(elsewhere, tmp_path / "out", stop=StoppedAfter(1))
    frozen = tmp_path / "out/training/detector/recipe.json"
    noted = json.loads(frozen.read_text())
    del noted["data"]["validation"]
    frozen.write_text(json.dumps(noted))
    CHANGES[change](moved / "val")
    assert train_detector(elsewhere, tmp_path / "out").is_dir(), "of a run that noted none nothing is known"


def test_a_file_of_weights_is_known_by_its_content(tmp_path: Path) -> None:
    """Another path with the same weights resumes, other weights under the same path do not; so for a list of pairs."""
    root, listing = write_pairs(tmp_path / "pairs"), tmp_path / "few.txt"
    listing.write_text("train0.png\ntrain1.png\n")
    backbone = build_detector("siam_unet_lite0").get_submodule("backbone").state_dict()
    for number, file in enumerate(("first.safetensors", "other.safetensors")):
        save_file({name: value + 0.5 * number for name, value in backbone.items()}, tmp_path / file)
    settings = DetectorRecipe("siam_unet_lite0", str(root), train_list=str(listing), crop_size=64, batch_size=2)
    settings = replace(settings, num_steps=3, warmup_steps=1, val_every=3)

    def resumed(file: str, named: Path = listing, steps: int = 1) -> None:
        detector = replace(settings, backbone_weights=str(tmp_path / file), train_list=str(named))
        given = Recipe(detector=detector, run=RunRecipe(num_workers=0, save_every=1))
        train_detector(given, tmp_path / "out", stop=StoppedAfter(steps))

    with pytest.raises(KeyboardInterrupt):
        resumed("first.safetensors")
    shutil.copy(tmp_path / "first.safetensors", tmp_path / "copy.safetensors")
    copied = Path(shutil.copy(listing, tmp_path / "same.txt"))
    with pytest.raises(KeyboardInterrupt):
        resumed("copy.safetensors", copied)
    what = r"was started with detector\.backbone_weights = '.*first.*', now '.*other.*' with other weights \(\w+, now "
    with pytest.raises(OutputError, match=what):
        resumed("other.safetensors")
    shutil.copy(tmp_path / "other.safetensors", tmp_path / "first.safetensors")
    with pytest.raises(OutputError, match=r"now '.*first\.safetensors' with other weights"):
        resumed("first.safetensors")
    (tmp_path / "first.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"first\.safetensors: no such file"):
        resumed("first.safetensors")
    copied.write_text("train0.png\ntrain2.png\n")
    with pytest.raises(OutputError, match=r"was started with detector\.train_list = '.*few\.txt', now '.*same\.txt'"):
        resumed("copy.safetensors", copied)
    frozen = tmp_path / "out/training/detector/recipe.json"
    noted = json.loads(frozen.read_text())
    assert noted["detector"].pop("backbone_weights_content")
    frozen.write_text(json.dumps(noted))
    with pytest.raises(OutputError, match=r"backbone_weights = '.*first\.safetensors', now '.*copy\.safetensors';"):
        resumed("copy.safetensors")


def test_features_of_a_first_stage_are_known_by_their_content(segmenting: Recipe, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pth", "b.pth", "c.pth")]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)

    def asked(file: Path) -> Recipe:
        return replace(segmenting, first_stage=FirstStageRecipe(perceptual_weights=str(file)))

    for file in files[:2]:
        begun(tmp_path, "first_stage", asked(file))
    with pytest.raises(OutputError, match=r"first_stage\.perceptual_weights = '.*a\.pth', now '.*c\.pth' with other"):
        begun(tmp_path, "first_stage", asked(files[2]))
    begun(tmp_path, "critic", asked(files[0]))
    begun(tmp_path, "critic", asked(files[2]))


def test_a_legend_is_known_by_its_content(segmenting: Recipe, tmp_path: Path) -> None:
    def asked(legend: str | None) -> Recipe:
        return replace(segmenting, data=replace(segmenting.data, model_legend=legend))

    begun(tmp_path, "critic", asked("mine.json"))
    begun(tmp_path, "critic", asked("moved/mine.json"))
    with (
        pytest.raises(OutputError, match=r"data\.model_legend = 'mine\.json', now 'other\.json'"),
        TrainingFolder(tmp_path, "critic", asked("other.json"), Processes(segmenting.run), "y"),
    ):
        pass


def begun(out: Path, stage: str, given: Recipe) -> Path:
    """The frozen recipe of a run that has a checkpoint."""
    with TrainingFolder(out, stage, given, Processes(given.run), "x") as folder:
        folder.save_checkpoint({"step": 1})
    return out / "training" / stage / "recipe.json"


def test_what_a_shared_recipe_says_of_other_stages_may_change(segmenting: Recipe, tmp_path: Path) -> None:
    given = replace(segmenting, denoiser=DenoiserRecipe(views=8))
    detector, critic = (begun(tmp_path, stage, given) for stage in ("detector", "critic"))
    assert json.loads(detector.read_text())["data"] == {"content": "x"}, "it reads pairs"
    assert json.loads(critic.read_text())["denoiser"] == {"views": 8}
    other = replace(given, data=replace(given.data, tile_size=128))
    begun(tmp_path, "detector", other)
    with pytest.raises(OutputError, match=r"was started with data\.tile_size = 64, now 128"):
        begun(tmp_path, "critic", other)
    images = replace(given, data=replace(given.data, images=["unread"]), denoiser=DenoiserRecipe(views=8, loss="l2"))
    begun(tmp_path, "critic", images)
    fewer = replace(given, denoiser=DenoiserRecipe(views=1))
    with pytest.raises(OutputError, match=r"was started with denoiser\.views = 8, now 1; give another --out or the"):
        begun(tmp_path, "critic", fewer)
    begun(tmp_path, "detector", fewer)
    # As earlier editions froze it: all of data, and nothing of other sections.
    old = json.loads(detector.read_text())
    old["data"] |= {"source": given.data.source, "tile_size": 64}
    detector.write_text(json.dumps(old))
    begun(tmp_path, "detector", other)
    old = json.loads(critic.read_text())
    del old["denoiser"]
    critic.write_text(json.dumps(old))
    begun(tmp_path, "critic", fewer)
    for damaged in ('{"data": 5}', '{"run": []}'):
        critic.write_text(damaged)
        with pytest.raises(OutputError, match=r"recipe\.json: damaged"):
            begun(tmp_path, "critic", fewer)


def test_a_mixture_that_an_earlier_edition_split_otherwise_is_not_gone_on_with(
    segmenting: Recipe, tmp_path: Path
) -> None:
    """It would go on with other tiles, and say nothing."""
    for number, images in enumerate(([], ["a"], ["a", "b"])):
        given, out = replace(segmenting, data=replace(segmenting.data, images=images)), tmp_path / str(number)
        file = begun(out, "segmenter", given)
        begun(out, "segmenter", given)
        old = json.loads(file.read_text())
        if len(images) < 2:  # drawn as ever
            assert "mixture" not in old["data"]
            continue
        del old["data"]["mixture"]
        file.write_text(json.dumps(old))
        with pytest.raises(OutputError, match=r"started by an earlier edition, which took too few .*; give another"):
            begun(out, "segmenter", given)
        begun(out, "critic", given)  # reads no images
        assert "mixture" not in json.loads((out / "training/critic/recipe.json").read_text())["data"]


def few_steps(root: Path, num_steps: int) -> Recipe:
    """Of a small detector, on pairs without validation, each with a checkpoint."""
    settings = DetectorRecipe("fc_ef", str(root), val_split=None, crop_size=64, batch_size=2, num_steps=num_steps)
    return Recipe(detector=replace(settings, warmup_steps=1), run=RunRecipe(num_workers=0, save_every=1))


def test_a_detector_does_not_resume_on_other_labels_in_memory(tmp_path: Path) -> None:
    stored = load_pairs(write_pairs(tmp_path / "pairs"), "train")
    pairs = [stored[i] for i in range(4)]
    settings = DetectorRecipe(
        "fc_ef", "in memory", crop_size=64, batch_size=2, num_steps=4, warmup_steps=0, val_split=None
    )
    given = Recipe(detector=settings, run=RunRecipe(num_workers=0, save_every=1))
    with pytest.raises(KeyboardInterrupt):
        train_detector(given, tmp_path / "out", pairs, stop=StoppedAfter(2))
    other: list[ChangePair] = [replace(pair, change_mask=~pair.change_mask) for pair in pairs]
    with pytest.raises(OutputError, match=r"data\.content"):
        train_detector(given, tmp_path / "out", other)
    assert train_detector(given, tmp_path / "out", pairs).is_dir()


def test_where_a_start_lies_and_how_it_is_spelled_is_no_matter_but_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "pairs")
    given = few_steps(root, 4)
    start = train_detector(given, tmp_path / "start")
    other = train_detector(replace(given, run=replace(given.run, seed=1)), tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_detector(replace(given, init="start/detector"), tmp_path / "out", stop=StoppedAfter(1))
    frozen = tmp_path / "out/training/detector/recipe.json"
    assert json.loads(frozen.read_text())["run"]["init"] == "start/detector", "people read where it lay"
    with pytest.raises(KeyboardInterrupt):  # spelled otherwise
        train_detector(replace(given, init=str(start)), tmp_path / "out", stop=StoppedAfter(1))
    shutil.copytree(start, tmp_path / "elsewhere")
    with pytest.raises(KeyboardInterrupt):  # moved
        train_detector(replace(given, init="elsewhere"), tmp_path / "out", stop=StoppedAfter(1))
    for init in (str(other), None):
        with pytest.raises(OutputError, match=r"started with run\.init = 'start/detector', now .*; give another --out"):
            train_detector(replace(given, init=init), tmp_path / "out")
    shutil.rmtree(start)
    shutil.copytree(other, start)
    with pytest.raises(OutputError, match=r"run\.init = 'start/detector', now 'start/detector' with other weights"):
        train_detector(replace(given, init="start/detector"), tmp_path / "out")
    assert train_detector(replace(given, init="elsewhere"), tmp_path / "out").is_dir()


def test_a_run_that_noted_no_hash_of_its_start_resumes_from_the_same_path(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs")
    given = few_steps(root, 4)
    start = train_detector(given, tmp_path / "start")
    asked = replace(given, init=str(start))
    with pytest.raises(KeyboardInterrupt):
        train_detector(asked, tmp_path / "out", stop=StoppedAfter(1))
    frozen = tmp_path / "out/training/detector/recipe.json"
    noted = json.loads(frozen.read_text())
    del noted["run"]["init_content"]
    frozen.write_text(json.dumps(noted))
    shutil.copytree(start, tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"was started with run\.init = '.*/start/detector', now '.*/elsewhere'"):
        train_detector(replace(given, init=str(tmp_path / "elsewhere")), tmp_path / "out")
    assert train_detector(asked, tmp_path / "out").is_dir()


def test_a_run_goes_on_that_began_with_the_result_in_its_own_folder(tmp_path: Path) -> None:
    """It overwrites what it began with."""
    root = write_pairs(tmp_path / "pairs")
    given = few_steps(root, 2)
    start = train_detector(given, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/training")
    again = replace(given, init=str(start))
    train_detector(again, tmp_path / "out")
    longer = replace(few_steps(root, 3), init=str(start))
    assert train_detector(longer, tmp_path / "out") == start


@pytest.mark.numerical
@pytest.mark.usefixtures("threads")
def test_a_run_goes_on_with_the_threads_it_began_with(
    segmenting: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    train_segmenter(source_of(segmenting), segmenting, tmp_path / "unbroken")
    for other in (2, 3):
        torch.set_num_threads(1)
        out = tmp_path / f"broken{other}"
        with pytest.raises(KeyboardInterrupt):
            train_segmenter(source_of(segmenting), segmenting, out, stop=StoppedAfter(3))
        torch.set_num_threads(other)
        train_segmenter(source_of(segmenting), segmenting, out)
        assert torch.get_num_threads() == 1
        assert f"going on with 1 thread(s) as the run began, not {other}" in capsys.readouterr().err
        broken, unbroken = weights(out / "segmenter"), weights(tmp_path / "unbroken" / "segmenter")
        assert all(torch.equal(value, broken[name]) for name, value in unbroken.items())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stage": "denoiser"}, "of stage 'denoiser', not of segmenter"),
        ({"step": None}, "it has no step"),
        ({"step": -3}, "it has no step"),
        ({"step": "3"}, "it has no step"),
        ({"segmenter": {}}, "does not fit this training"),
        ({"segmenter": {"x": torch.zeros(1)}}, "does not fit this training"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "does not fit this training"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    segmenting: Recipe, tmp_path: Path, change: dict[str, object], match: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_segmenter(source_of(segmenting), segmenting, tmp_path, stop=StoppedAfter(2))
    file = tmp_path / "training" / "segmenter" / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | change, file)
    with pytest.raises(ModelError, match=match) as caught:
        train_segmenter(source_of(segmenting), segmenting, tmp_path)
    assert str(file) in str(caught.value) and "delete it to start over" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_step_is_logged_twice(segmenting: Recipe, tmp_path: Path) -> None:
    """Not where the checkpoint is gone, not where a run ended between a line and a checkpoint, not when it goes on."""
    with pytest.raises(KeyboardInterrupt):
        train_segmenter(source_of(segmenting), segmenting, tmp_path, stop=StoppedAfter(3))
    (tmp_path / "training" / "segmenter" / "checkpoint.pt").unlink()
    later, others = (tmp_path / "training" / "segmenter" / "samples" / name for name in ("0000099.png", "mine.png"))
    for picture in (later, others):
        picture.touch()
    train_segmenter(source_of(segmenting), segmenting, tmp_path)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert others.exists() and not later.exists()
    longer = replace(segmenting, segmenter=replace(SEGMENTER, num_steps=8))
    train_segmenter(source_of(longer), longer, tmp_path)
    assert steps_of(tmp_path) == list(range(1, 9))


def test_steps_that_were_taken_are_not_taken_back(segmenting: Recipe, tmp_path: Path) -> None:
    train_segmenter(source_of(segmenting), segmenting, tmp_path)

    def written() -> dict[str, bytes]:
        files = (file for file in tmp_path.rglob("*") if file.is_file() and "tensorboard" not in file.parts)
        return {str(file): file.read_bytes() + str(file.stat().st_mtime_ns).encode() for file in files}

    before = written()
    fewer = replace(segmenting, segmenter=replace(SEGMENTER, num_steps=4))
    with pytest.raises(
        OutputError, match=r"has taken 6 steps; segmenter\.num_steps is 4; allowed: 6 and more, or anoth"
    ):
        train_segmenter(source_of(fewer), fewer, tmp_path)
    assert written() == before
    train_segmenter(source_of(segmenting), segmenting, tmp_path)  # as many again: nothing to do
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_reading_process_that_dies_is_one_line(
    segmenting: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = replace(segmenting, run=replace(segmenting.run, num_workers=1))
    take_step = loop.take_step

    def step_and_kill(*given: object) -> object:
        for worker in active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        return take_step(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "take_step", step_and_kill)
    with pytest.raises(ChangeAnywhereError, match="a process that reads for the training died") as caught:
        train_segmenter(source_of(running), replace(running, segmenter=replace(SEGMENTER, num_steps=500)), tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_reading_process_that_dies_while_it_hands_over_is_no_other_error(error: Exception) -> None:
    """The line to it breaks before its end is heard of."""

    class Broken:
        def __init__(self, num_workers: int) -> None:
            self.num_workers = num_workers

        def __iter__(self) -> Iterator[int]:
            yield 1
            raise error

    with pytest.raises(RuntimeError, match="DataLoader worker is gone"):
        list(loaded(Broken(2)))
    with pytest.raises(type(error)):
        list(loaded(Broken(0)))


@pytest.mark.numerical
def test_a_model_that_paints_is_there_from_the_first_checkpoint(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And training goes on as if nobody had looked."""
    unbroken = train_both(recipe, tmp_path / "unbroken")
    train_both(replace(recipe, denoiser=replace(recipe.denoiser, num_steps=1)), tmp_path / "out")
    for file in (tmp_path / "out").rglob("checkpoint.pt"):
        if file.parent.name == "denoiser":
            file.unlink()
    stop = StoppedAfter(2)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(source_of(recipe), recipe, tmp_path / "out", stop=stop)
    model = load_model(tmp_path / "out" / "model")
    state = torch.load(tmp_path / "out" / "training" / "denoiser" / "checkpoint.pt", weights_only=True)
    average = state["average"]["unet.conv_in.weight"].half().float()
    assert state["step"] == 2 and torch.equal(model.denoiser.unet.conv_in.weight, average)
    arguments = ["generate", "--source", str(recipe.data.source), "--model", str(tmp_path / "out" / "model")]
    arguments += ["--num-pairs", "1", "--tile-size", "64", "--num-steps", "2", "--events.min-area", "16"]
    assert run([*arguments, "--out", str(tmp_path / "set")]) == 0
    train_denoiser(source_of(recipe), recipe, tmp_path / "out")
    found = weights(tmp_path / "out" / "model")
    assert all(torch.equal(value, found[name]) for name, value in unbroken.items())


def test_a_renewal_that_fails_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for a moment: whoever holds the lease keeps it."""
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.02)
    store = LocalStore(tmp_path)
    put, failed, renewed = store.put, threading.Event(), threading.Event()

    def put_but_once(name: str, content: bytes) -> None:
        if not failed.is_set():
            failed.set()
            raise OutputError(f"{name}: cannot be written (No space left on device)")
        put(name, content)
        renewed.set()

    held = Leases(store)
    assert held.claim("training")
    monkeypatch.setattr(store, "put", put_but_once)
    with held.renewed():
        assert renewed.wait(10) and failed.is_set()
    assert not (tmp_path / "leases").exists() or not list((tmp_path / "leases").iterdir())


def left_behind(store: LocalStore, machine: str, name: str = "7") -> None:
    """A lease of a process that is gone."""
    holder = {"machine": machine, "pid": 2**22 + 1, "started": "1", "token": "t", "renewals": 3}
    store.put(f"leases/{name}.json", json.dumps(holder).encode())


def test_of_two_that_take_a_lease_over_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw that its process is dead; the slower one once deleted the lease that the other had taken."""
    store = LocalStore(tmp_path)
    left_behind(store, this_machine())
    quick, slow = Leases(store), Leases(store)
    alive, taken = leases._is_running, list[bool]()

    def meanwhile(pid: int, started: str) -> bool:
        found = alive(pid, started)
        if not taken:
            taken.append(True)
            taken[0] = quick.claim("7")
        return found

    monkeypatch.setattr(leases, "_is_running", meanwhile)
    assert not slow.claim("7") and taken == [True]
    assert [file.name for file in (tmp_path / "leases").iterdir()] == ["7.json"], "nothing is left of the takeover"
    slow.release("7")
    assert not slow.claim("7"), "it is the other's"
    quick.release("7")
    assert slow.claim("7")


def test_a_takeover_that_died_holds_nobody_up(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    left_behind(store, this_machine())
    guard = f"7.{content_hash(store.get('leases/7.json'))[:12]}"
    left_behind(store, this_machine(), guard)
    with Leases(store).waited_for("7", lambda: False) as ours:
        assert ours
    assert not list((tmp_path / "leases").iterdir())


def test_a_lease_that_was_taken_over_is_neither_renewed_nor_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a night of a machine asleep: its leases expired, and others work on."""
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.02)
    store, held = LocalStore(tmp_path), Leases(LocalStore(tmp_path))
    with held.renewed():
        assert held.claim("7") and held.claim("8")
        left_behind(store, "far away")
        theirs = store.get("leases/7.json")
        store.delete("leases/8.json")
        until = time.monotonic() + 30
        while not store.exists("leases/8.json") and time.monotonic() < until:
            time.sleep(0.01)
        assert store.exists("leases/8.json"), "of what is gone nobody else has it"
        assert store.get("leases/7.json") == theirs
    assert store.get("leases/7.json") == theirs and not store.exists("leases/8.json")


def test_an_expired_lease_is_known_by_all_who_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that is gone; whoever looks may have come a moment ago, in this process."""
    store = LocalStore(tmp_path)
    for name in "789":
        left_behind(store, "far away", name)
    assert not Leases(store).claim("7") and Leases(store).others() == ["7", "8", "9"]
    Leases(store).sweep()
    assert store.exists("leases/9.json")
    monkeypatch.setattr(leases, "EXPIRES_AFTER", 0.0)
    left_behind(store, "far away, alive", "9")
    assert Leases(store).claim("7")
    Leases(store).sweep()
    assert [store.exists(f"leases/{name}.json") for name in "789"] == [True, False, True]


def test_a_lease_is_renewed_while_it_is_waited_for_and_the_wait_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.02)
    monkeypatch.setattr(leases, "TOLD_AFTER", 0.0)
    store = LocalStore(tmp_path)
    with Leases(store).waited_for("plan", lambda: False):
        before, until = store.get("leases/plan.json"), time.monotonic() + 30
        while store.get("leases/plan.json") == before and time.monotonic() < until:
            time.sleep(0.01)
        assert store.get("leases/plan.json") != before
        looks = iter([False, False, True])
        with Leases(store).waited_for("plan", lambda: next(looks)) as ours:
            assert not ours
    told = capsys.readouterr().err
    assert told.count("waiting for process") == 1 and f"{os.getpid()} on " in told and "plan.json" in told
