"""The folder of one training: its frozen recipe, metrics, checkpoint, sample pictures."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from changeanywhere.documents import parse_json, read_json_object
from changeanywhere.errors import ConfigError, InUseError, ModelError, OutputError
from changeanywhere.leases import Leases
from changeanywhere.models import efficientnet, perceptual
from changeanywhere.models.detectors.siam_unet import IN_PACKAGE
from changeanywhere.models.info import find_detector, find_model, find_segmenter, hash_model
from changeanywhere.sample import in_8_bits
from changeanywhere.storage import LocalStore, atomic_file, atomic_write, file_hash, refuse_way_out
from changeanywhere.training.checks import READ_BY, UNREAD
from changeanywhere.training.latents import LATENTS
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.tracking import Tracking

ADJUSTABLE = ("accumulation_steps", "keep_mib", "num_workers", "log_every", "save_every")
"""Settings of ``run`` that may change when a run resumes: they change nothing but the last bits."""
LOGS = ("metrics.jsonl", "validation.jsonl")
RESULTS = {
    "first_stage": ("first_stage",),
    "denoiser": ("model", LATENTS["denoiser"]),
    "critic": ("critic", LATENTS["critic"]),
    "segmenter": ("segmenter",),
    "detector": ("detector", "detector_best"),
}
"""Stage → the folders in ``OUT`` that it writes beside its own."""
STARTS = {"segmenter": find_segmenter, "detector": find_detector}
"""Stage → what finds the folder that its ``init`` names; of the others a model's."""
OF_TILES = ("source", "model_legend", "legend_map")
HELD_BY_CONTENT = {
    "detector": ("pairs", "train_list", "rehearsed", "unlabelled"),
    "segmenter": (*OF_TILES, "first_stage"),
}
"""Stage → settings that name places, of which a hash is in ``content``: where they lie may change. Of other stages
:data:`OF_TILES` alone."""
WEIGHT_FILES = {"first_stage": "perceptual_weights", "detector": "backbone_weights"}
"""Stage → its setting that names a file of weights, of which ``recipe.json`` holds a hash (``…_content``)."""
MIXTURE = "nested"
"""How a step's tiles are split among three folders and more. Runs of earlier editions, which split them otherwise,
say nothing of it."""
BEST = {"detector": "detector_best"}
"""Stage → the folder in ``OUT`` of what did best so far, which a training writes where it finds something better."""
_claimed: dict[Path, ExitStack] = {}
"""Leases of this process, by folder."""
_at_work: set[Path] = set()
"""Folders in which this process takes steps."""


class TrainingFolder:
    """``OUT/training/STAGE``: ``recipe.json``, ``metrics.jsonl``, ``samples/``, ``checkpoint.pt``, TensorBoard files.

    The same recipe on the same folder resumes; another recipe raises :class:`OutputError` naming the difference, in
    what the stage reads: stages share recipes, and what is of others may change. Of its own only ``num_steps`` and the
    :data:`ADJUSTABLE` settings of ``run`` may, and ``content``, a hash of the training data, must not, nor
    ``validation``, one of the data that its weights are chosen by ("": of the stages that have none of their own).
    ``init``, and a file of :data:`WEIGHT_FILES`, may lie elsewhere, or be spelled otherwise, where its weights are the
    same. Of several processes the main one writes, the others only read. As a context it gives the folder back at its
    end, also where a training is refused before its first step.
    """

    def __init__(
        self, out: Path, stage: str, recipe: Recipe, processes: Processes, content: str, validation: str = ""
    ) -> None:
        self.out, self.path, self.processes = out, out / "training" / stage, processes
        self.stage = stage
        self._writer = None
        self._tracking: Tracking | None = None
        if processes.is_main:
            self._refuse_links()
            try:
                (self.path / "samples").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
            self._claim()
            try:
                frozen = self._freeze(stage, recipe, content, validation)
                self._writer = self._tensorboard()
                self._tracking = Tracking(recipe.track, self.path, stage, frozen)
            except BaseException:
                self.close()
                raise
        processes.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_links(self) -> None:
        """Nothing is written through a link that leads out of the folder of the run."""
        for folder in (self.path / "samples", self.path / "tensorboard", self.path / "leases"):
            refuse_way_out(self.out, folder)
        for name in RESULTS.get(self.stage, ()):
            refuse_way_out(self.out, self.out / name)
        for name in LOGS:
            refuse_way_out(self.out, self.path / name)

    def _claim(self) -> None:
        """Nobody else trains here: two would write one checkpoint, and each would resume from the other's."""
        place = self.path.resolve()
        if place in _at_work:
            raise InUseError(f"{self.path}: is being trained in this process; give another --out, or wait for its end")
        if place in _claimed:  # of a training that ended before its first step
            _claimed.pop(place).close()
        leases, held = Leases(LocalStore(self.path)), ExitStack()
        holder = leases.claim_alone("training")
        if holder is not None:
            raise InUseError(f"{self.path}: {holder} is training in it; give another --out, or wait for its end")
        held.enter_context(leases.renewed())
        _claimed[place] = held

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the context lasts, a training in this folder is refused in this process too; then it is free."""
        _at_work.add(self.path.resolve())
        try:
            yield
        finally:
            _at_work.discard(self.path.resolve())
            self.close()

    def close(self) -> None:
        """Give the folder back."""
        if self._tracking is not None:
            self._tracking.close()
        held = _claimed.pop(self.path.resolve(), None)
        if held is not None:
            held.close()
            with suppress(OSError):  # a lease of somebody who came at once
                (self.path / "leases").rmdir()

    def _freeze(self, stage: str, recipe: Recipe, content: str, validation: str) -> dict[str, Any]:
        """Write ``recipe.json``, or hold the recipe to it; returns what stands there."""
        frozen, defaults = (_read_of(stage, part) for part in (recipe, Recipe()))
        for part in (frozen, defaults):  # of a run that did not note them nothing is known
            part["data"] |= {"content": content} | ({"validation": validation} if validation else {})
        frozen["run"]["init"], defaults["run"]["init"] = recipe.init, None
        frozen["run"]["init_content"] = self._content_of(recipe.init)
        weights = {f"{stage}.{name}": _hash_of(_weight_file(stage, recipe)) for name in self._weight_files}
        frozen[stage] |= {f"{name.partition('.')[2]}_content": found for name, found in weights.items()}
        file = self.path / "recipe.json"
        if not file.exists() or not (self.path / "checkpoint.pt").exists():  # nothing depends on it yet
            atomic_write(file, (json.dumps(frozen, indent=1) + "\n").encode())
            return frozen
        try:
            before = read_json_object(file)
            if not all(isinstance(values, dict) for values in before.values()):
                raise ValueError("no sections")
        except (OSError, ValueError) as error:
            raise OutputError(f"{file}: damaged; give another --out") from error
        for name in ("run.init", *weights):
            self._refuse_other_weights(name, before, frozen)
        self._refuse_other_settings(before, frozen, defaults)
        return frozen

    def _refuse_other_settings(
        self, before: Mapping[str, Any], frozen: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> None:
        """:class:`OutputError` where a setting, or the data, is not what it was."""
        held = HELD_BY_CONTENT.get(self.stage, OF_TILES)
        told_apart = [each for name in ("init", *self._weight_files) for each in (name, f"{name}_content")]
        settings, places, contents = list[str](), list[str](), list[str]()
        for section, values in frozen.items():
            if section not in before and section not in ("data", self.stage, "run"):
                continue  # another stage's, of which older runs noted nothing; what depends on it says so itself
            for key, value in values.items():
                if key in (*told_apart, "mixture"):
                    continue
                # A setting that is younger than the run was at its default.
                old = before.get(section, {}).get(key, defaults[section][key])
                if old != value:
                    hashes = contents if key in ("content", "validation") else settings
                    kind = places if key in held else hashes
                    kind.append(f"{section}.{key} = {old!r}, now {value!r}")
        if settings or contents:  # another place says more than another hash
            what = (settings or places or contents)[0]
            raise OutputError(f"{self.path}: was started with {what}; give another --out or the old value")
        if frozen["data"].get("mixture") != before.get("data", {}).get("mixture"):
            raise OutputError(
                f"{self.path}: was started by an earlier edition, which took too few tiles from some of three folders "
                "and more, or none (data.further, data.evidence, data.images); give another --out"
            )

    def _content_of(self, init: str | None) -> str | None:
        """Hash of what the training starts from; None of nothing, and of a result of this very folder, which the
        training itself will overwrite."""
        if init is None:
            return None
        start = STARTS.get(self.stage, find_model)(init)
        results = [(self.out / name).resolve() for name in RESULTS.get(self.stage, ())]
        return None if start.resolve() in results else hash_model(start)

    @property
    def _weight_files(self) -> list[str]:
        return [WEIGHT_FILES[self.stage]] if self.stage in WEIGHT_FILES else []

    def _refuse_other_weights(self, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """:class:`OutputError` where the weights that the setting ``name`` brings are not those that the run began
        with. Of a run that noted no hash of them, and of weights that are not there, the path is all that is known."""
        section, _, key = name.partition(".")
        old, new = before.get(section, {}), now[section]
        was, found = old.get(f"{key}_content"), new[f"{key}_content"]
        if was == found if was and found else old.get(key) == new[key]:
            return
        what = f"{name} = {old.get(key)!r}, now {new[key]!r}"
        if was and found:
            what += f" with other weights ({was}, now {found})"
        raise OutputError(f"{self.path}: was started with {what}; give another --out or the old value")

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the "train" extra is not installed: metrics.jsonl has every number
            return None
        return SummaryWriter(str(self.path / "tensorboard"))

    @property
    def best(self) -> Path:
        """Of what did best so far, for a stage that keeps it (:data:`BEST`)."""
        return self.out / BEST[self.stage]

    def forget_best(self) -> None:
        """Drop what did best in an earlier training: of one that begins, and may find nothing, it would say so too."""
        if not self.processes.is_main or self.stage not in BEST:
            return
        if self.best.is_symlink():
            self.best.unlink()
        elif self.best.is_dir():
            shutil.rmtree(self.best)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, None at a fresh start. Unpickles tensors and plain containers only."""
        file = self.path / "checkpoint.pt"
        state: dict[str, Any] | None = None
        if file.exists():
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                raise ModelError(
                    f"{file}: not a readable checkpoint ({type(error).__name__}); delete it to start over"
                ) from error
            self._check_state(file, state)
        if self.processes.is_main:  # without a checkpoint every step is taken again
            step = int(state["step"]) if state else 0
            for name in LOGS:
                _keep_rows(self.path / name, step)
            for picture in (self.path / "samples").glob("[0-9]" * 7 + ".png"):
                if int(picture.stem) > step:  # of a training that was started over
                    picture.unlink()
        return state

    def _check_state(self, file: Path, state: Any) -> None:
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ModelError(f"{file}: no checkpoint of a training (it has no step); delete it to start over")
        stage = state.get("stage", self.stage)
        if stage != self.stage:
            raise ModelError(
                f"{file}: a checkpoint of stage {stage!r:.40}, not of {self.stage}; delete it to start over"
            )

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint in the place of the last one, whole: a crash leaves the old one."""
        if not self.processes.is_main:
            return
        file = self.path / "checkpoint.pt"
        try:
            with atomic_file(file) as target:
                torch.save({"stage": self.stage, "threads": torch.get_num_threads(), **state}, target)
        except RuntimeError as error:  # how torch reports a full disk
            raise OutputError(f"{file}: cannot be written ({error}); the last checkpoint is intact") from error

    def log(self, record: Mapping[str, float]) -> None:
        """A line more in ``metrics.jsonl``, and a point on TensorBoard's curves, at ``record["step"]``."""
        if not self.processes.is_main:
            return
        self.append("metrics.jsonl", {name: float(f"{value:.6g}") for name, value in record.items()})
        self._show({name: value for name, value in record.items() if name != "step"}, int(record["step"]))

    def log_validation(self, step: int, scores: Mapping[str, Any]) -> None:
        """A line more in ``validation.jsonl``, and a point on the curves for each score that is a number."""
        self.append("validation.jsonl", {"step": step, **scores})
        numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        self._show({f"validation/{name}": float(value) for name, value in numbers.items()}, step)

    def _show(self, values: Mapping[str, float], step: int) -> None:
        """On TensorBoard's curves, and those of the services that were asked for."""
        if self._tracking is not None:
            self._tracking.log(values, step)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """A line of JSON more in one of :data:`LOGS`; :class:`OutputError` if it cannot be written."""
        file = self.path / name
        try:
            with file.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror}); the last checkpoint is intact") from error

    def save_pictures(self, step: int, rows: list[list[Tensor]]) -> None:
        """Images ``[C, H, W]`` in [-1, 1], row by row, into ``samples/STEP.png`` (first three channels)."""
        if not rows:
            return
        lines = [torch.cat([image[:3].float().cpu() for image in row], dim=2) for row in rows]
        grid = in_8_bits(torch.cat(lines, dim=1).permute(1, 2, 0).numpy())
        with atomic_file(self.path / "samples" / f"{step:07d}.png") as target:
            Image.fromarray(np.ascontiguousarray(grid)).save(target, "PNG")


def _read_of(stage: str, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Section → the settings that ``stage`` reads and a run keeps; as JSON has them: a list that was written is a list
    that is read, whatever the recipe holds."""
    sections = json.loads(json.dumps(asdict(recipe), default=str))
    read: dict[str, dict[str, Any]] = {"data": {}}
    for name in READ_BY[stage]:
        section, _, key = name.partition(".")
        values = sections.get(section)
        if isinstance(values, dict):
            read.setdefault(section, {}).update({key: values[key]} if key else values)
    adjustable = (*(f"run.{key}" for key in ADJUSTABLE), f"{stage}.num_steps", f"{stage}.max_megapixels")
    for name in (*UNREAD[stage], *adjustable):
        section, _, key = name.partition(".")
        read[section].pop(key, None)
    if sum(len(read["data"].get(name, ())) for name in ("further", "evidence", "images")) > 1:
        read["data"]["mixture"] = MIXTURE
    return read


def _weight_file(stage: str, recipe: Recipe) -> Path | None:
    """The file that the setting of :data:`WEIGHT_FILES` means; None where nothing of it is read, or none is there."""
    fs, given = recipe.first_stage, recipe.detector.backbone_weights
    if stage == "first_stage":
        file = Path(fs.perceptual_weights) if fs.perceptual_weights else perceptual.find_weights()
        return file if fs.perceptual_weight else None
    if given != IN_PACKAGE:
        return Path(given) if given else None
    with suppress(ConfigError):  # not installed, as the detector will say
        return efficientnet.find_weights()
    return None


def _hash_of(file: Path | None) -> str | None:
    """Of a file's bytes, 16 hexadecimal digits; None where it cannot be read, which is said by who needs it."""
    with suppress(OSError):
        return file_hash(file)[:16] if file else None
    return None


def _keep_rows(file: Path, step: int) -> None:
    """Drop the lines after ``step``: a run that was killed between a log and a checkpoint takes those steps again."""
    if file.is_file():
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            atomic_write(file, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by the kill
        return math.inf
