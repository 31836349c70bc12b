"""``changeanywhere predict``: change probability and change mask of pairs of images, whatever their size.

OUT/change/KEY.png        0 or 255; OUT/probability/KEY.png: 0 to 255 for 0 to 1
OUT/change/KEY.tif        of GeoTIFFs: cloud-optimised, on their grid, 0 or 255, a mask where a date shows nothing;
                          OUT/probability/KEY.tif: float32, NaN where a date shows nothing
OUT/change.tif            of two images, and OUT/probability.tif (.png where date 1 is no TIFF)
OUT/label1/, label2/      of a semantic change detector: the classes of date 1 and date 2, in OUT/legend.json, 0 where a
                          date shows nothing; everywhere, changed or not (of two images label1.tif, label2.tif)
OUT/changes.csv           a line per pair: changed ground in px, as a share of what both dates show, and in m²
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from changeanywhere.diffusion.pipeline import find_device
from changeanywhere.errors import ModelError, OutputError
from changeanywhere.legend import Legend
from changeanywhere.models.detectors import Detector, SemanticDetector
from changeanywhere.models.detectors.folder import Purpose, load_detector, read_purpose
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.info import SAMPLING_SLACK
from changeanywhere.pairs.codec import encode_png
from changeanywhere.pairs.names import MASK_FOLDERS
from changeanywhere.prediction.inputs import OpenPair, open_pairs
from changeanywhere.prediction.options import PredictOptions
from changeanywhere.prediction.windows import Floats, Rows, Tiling, rows_of
from changeanywhere.progress import Progress, silent
from changeanywhere.rasters.facts import Valid, Window
from changeanywhere.rasters.gate import whole
from changeanywhere.rasters.ground import georef_of, gsd_of
from changeanywhere.scenes.rasters_out import Raster, cog
from changeanywhere.storage import atomic_write
from changeanywhere.terminal import say
from changeanywhere.text import csv_cell

TABLE = "changes.csv"


@dataclass(frozen=True)
class Predicted:
    """A line of ``changes.csv``."""

    key: str
    changed_px: int
    valid_px: int
    """Ground that both dates show."""
    share: float
    """Of that ground, what is called changed."""
    area_m2: float | None
    """Of what is called changed; None without a place on the ground."""


def predict(options: PredictOptions, progress: Progress = silent) -> list[Predicted]:
    """Write change maps of every pair that ``options`` name; returns the lines of the table.

    Raises :class:`ModelError` for a folder that is no detector, :class:`PairsError` for images that are no pair.
    """
    options.check()
    device = find_device(options.device)
    purpose = read_purpose(options.detector)
    name, net = load_detector(options.detector)
    net = channels_last(net.to(device))
    total, pairs = open_pairs(options, net.in_channels)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.out}: cannot be written ({error.strerror})") from error
    legend = net.legend if isinstance(net, SemanticDetector) else None
    if legend is not None:
        legend.save(options.out / "legend.json")
    tiling = Tiling(options.window, options.overlap)
    if purpose.about:
        say(f"{options.detector}: {purpose.about}")
    lines, warned = [], False
    for number, pair in enumerate(pairs):
        warned = warned or _warns(pair, purpose)
        many = tiling.count(pair.facts[0].height, pair.facts[0].width)
        done = [0]

        def windows(count: int, done: list[int] = done, many: int = many) -> None:
            done[0] += count
            if total == 1:
                progress("reading windows", done[0], many)

        rows = _rows(pair, net, options, tiling, windows)
        lines.append(_write(pair, rows, options, name, legend))
        if total > 1:
            progress("predicting pairs", number + 1, total)
    _write_table(options.out, lines)
    return lines


def _warns(pair: OpenPair, purpose: Purpose) -> bool:
    """Say that a pair is finer or coarser than what the detector knows, by more than the slack of models; whether it
    was said. A pair that does not state its ground sampling is taken on trust."""
    gsd = gsd_of(pair.facts[0], whole(pair.facts[0]))
    if gsd is None or purpose.gsd_m is None:
        return False
    low, high = purpose.gsd_m
    if low / SAMPLING_SLACK <= gsd <= high * SAMPLING_SLACK:
        return False
    known = f"the detector knows {low:g} to {high:g} m: resample, or take one trained on such images"
    say(f"{pair.files[0].name}: a ground sampling of {gsd:.3g} m; {known}", error=True)
    return True


def _rows(
    pair: OpenPair, net: Detector, options: PredictOptions, tiling: Tiling, progress: Callable[[int], None]
) -> Iterator[Rows]:
    num_layers = 1 + 2 * net.legend.num_classes if isinstance(net, SemanticDetector) else 1

    def read(windows: Sequence[Window]) -> Iterable[tuple[Floats, Valid | None]]:
        for start in range(0, len(windows), options.batch_size):
            some = windows[start : start + options.batch_size]
            parts = [pair.read(window) for window in some]
            shown = [n for n, (_, _, valid) in enumerate(parts) if valid is None or valid.any()]
            found = dict(zip(shown, probabilities(net, [parts[n][:2] for n in shown]), strict=True)) if shown else {}
            if not all(np.isfinite(layers).all() for layers in found.values()):
                raise ModelError(f"{options.detector}: says NaN of {pair.files[0]}; the detector is damaged")
            for n, (first, _, valid) in enumerate(parts):
                yield found.get(n, np.zeros((num_layers, *first.shape[1:]), np.float32)), valid
            progress(len(some))

    return rows_of(pair.facts[0].height, pair.facts[0].width, tiling, read, num_layers)


@torch.no_grad()
def probabilities(net: Detector, images: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Windows of both dates f32 ``[C, h, w]`` in [-1, 1], of one size → f32 ``[B, 1, h, w]``, the probability of
    change, or ``[B, 1 + 2 K, h, w]``, then those of the classes of date 1, and of date 2."""
    device = next(net.parameters()).device
    dates = (
        torch.from_numpy(np.stack(date)).to(device, memory_format=torch.channels_last)
        for date in zip(*images, strict=True)
    )
    change, *classes = net.semantic_logits(*dates) if isinstance(net, SemanticDetector) else (net(*dates),)
    layers = [change.float().softmax(1)[:, 1:], *(logits.float().softmax(1) for logits in classes)]
    found: Floats = torch.cat(layers, 1).cpu().numpy()
    return found


@dataclass(frozen=True)
class Files:
    """What is written of a pair."""

    change: Path
    probability: Path
    classes: tuple[Path, ...] = ()
    """Of a semantic change detector: one for each date."""
    legend: Legend | None = None
    """Of these."""


def _write(
    pair: OpenPair, rows: Iterator[Rows], options: PredictOptions, name: str, legend: Legend | None
) -> Predicted:
    facts = pair.facts[0]
    suffix = ".tif" if facts.container == "TIFF" else ".png"
    end = f"/{pair.key}{suffix}" if pair.key else suffix
    change, probability, *classes = (options.out / f"{what}{end}" for what in ("change", "probability", *MASK_FOLDERS))
    files = Files(change, probability, tuple(classes) if legend else (), legend)
    changed = valid = 0

    def counted() -> Iterator[Rows]:
        nonlocal changed, valid
        for part in rows:
            changed += int(((part.probability > options.threshold) & part.valid).sum())
            valid += int(part.valid.sum())
            yield part

    for file in (files.change, files.probability, *files.classes):
        file.parent.mkdir(parents=True, exist_ok=True)
    (_write_tifs if suffix == ".tif" else _write_pngs)(pair, counted(), options, name, files)
    gsd = gsd_of(facts, whole(facts))
    area = None if gsd is None else round(changed * gsd**2, 2)
    return Predicted(pair.key or options.inputs[1], changed, valid, round(changed / max(valid, 1), 6), area)


def _write_tifs(pair: OpenPair, rows: Iterator[Rows], options: PredictOptions, name: str, files: Files) -> None:
    facts = pair.facts[0]
    georef, masked = georef_of(facts, whole(facts)), pair.may_lack_ground
    tags = {"DETECTOR": name, "THRESHOLD": f"{options.threshold:g}", "DATE_1": pair.files[0].name}
    tags["DATE_2"] = pair.files[1].name
    size = facts.height, facts.width
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".part.", dir=options.out)))
        masks = stack.enter_context(
            cog(files.change, Raster(*size, 1, "uint8", georef, masked=masked, tags=tags), scratch / "change")
        )
        shares = stack.enter_context(
            cog(
                files.probability,
                Raster(*size, 1, "float32", georef, nodata=np.nan, tags=tags),
                scratch / "probability",
            )
        )
        named = [
            stack.enter_context(
                cog(file, Raster(*size, 1, "uint8", georef, nodata=0, legend=files.legend, tags=tags), scratch / what)
            )
            for file, what in zip(files.classes, MASK_FOLDERS, strict=False)
        ]
        for part in rows:
            found = (part.probability > options.threshold) & part.valid
            masks.put(part.row, found[..., None].astype(np.uint8) * 255, part.valid if masked else None)
            shares.put(part.row, np.where(part.valid, part.probability, np.float32(np.nan))[..., None])
            for raster, classes in zip(named, part.classes if named else (), strict=True):
                raster.put(part.row, classes[..., None])


def _write_pngs(pair: OpenPair, rows: Iterator[Rows], options: PredictOptions, name: str, files: Files) -> None:
    parts = list(rows)
    shares = np.concatenate([np.where(part.valid, part.probability, 0) for part in parts])
    atomic_write(files.change, encode_png((shares > options.threshold).astype(np.uint8) * 255))
    atomic_write(files.probability, encode_png(np.rint(shares * 255).astype(np.uint8)))
    for number, file in enumerate(files.classes):
        atomic_write(file, encode_png(np.concatenate([part.classes[number] for part in parts])))


def _write_table(out: Path, lines: Sequence[Predicted]) -> None:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow([field.name for field in fields(Predicted)])
    rows.writerows([csv_cell(value) for value in astuple(line)] for line in lines)
    atomic_write(out / TABLE, table.getvalue().encode())
