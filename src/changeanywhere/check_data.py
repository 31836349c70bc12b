"""The parts of ``check`` that look at tiles and at pairs: what was understood, and what looks like a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from changeanywhere.errors import ChangeAnywhereError, EmptySplitError, InputError, PairsError
from changeanywhere.legend import Legend
from changeanywhere.models.info import find_model, outside_sampling, read_info
from changeanywhere.pairs.layouts import bare, layout_of
from changeanywhere.pairs.names import SPLITS
from changeanywhere.pairs.reader import PairDataset, load_pairs
from changeanywhere.preview import NUM_ROWS, draw_pairs, draw_samples
from changeanywhere.sample import SourceSample, change_mask_of
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.sources.files import read_info as read_header
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.legends import legend_of, where_from
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.sources.problems import SYSTEM, Problems, without_place
from changeanywhere.understood import (
    BandFigures,
    ClassShares,
    aligned,
    beside,
    percent,
    warnings_of,
    warnings_of_pairs,
)

MAX_SAMPLES = 64  # tiles or pairs whose pixels are read; spread evenly
NO_SOURCE = "not a model, dataset or training run, and as a source: "


def describe_source(
    folder: Path,
    options: SourceOptions,
    preview: Path | None = None,
    model: str | None = None,
    legend_map: Path | None = None,
) -> str:
    """Tiles under ``folder``; with ``model`` or ``legend_map`` as ``generate`` would give them to the model."""
    try:
        layout = find_layout(folder, Problems(options.on_error == "skip"))
        header = read_header(layout.entries[0].image)
        fitting = max(16, min(DEFAULT_TILE_SIZE, header.height // 16 * 16, header.width // 16 * 16))
        info = read_info(find_model(model or "mini")) if model or legend_map else None
        chosen = options.of_source(fitting, info.bands if info else None, info.stretch if info else None)
        source = open_source(folder, chosen)
        stored, numbers = legend_of(folder, chosen, layout)
        if info is not None:
            source = source.with_legend(info.legend, legend_map)
    except ChangeAnywhereError as error:
        raise InputError(f"{NO_SOURCE}{error}") from error
    rows = range(0, len(source), -(-len(source) // MAX_SAMPLES))
    shares, bands = ClassShares(source.legend), BandFigures()
    names: tuple[str, ...] = ()
    for i in rows:
        sample = source.read(i)
        shares.add(sample.item.key, sample.mask)
        bands.add(sample.image)
        names = sample.bands
    counted = numbers.counted(stored.num_classes)
    said = ", ".join(
        [f"{stored.num_classes} classes" + (f" from {counted[0]}" if counted[0] != 1 else "")]
        + [f"{number} ignored" for number in numbers.ignored]
        + ([f"as {source.legend.name} of {model or 'mini'}"] if info else [])
    )
    dated = sum(entry.second is not None for entry in layout.entries)
    facts = [
        ("layout", layout.described),
        ("legend", f"{stored.name} ({where_from(folder, chosen, layout)}): {said}"),
        *_of_items(source),
        ("second dates", f"of {dated} of {len(layout.entries)} images (--second.use)" if dated else ""),
        ("passed over", ", ".join(source.passed)),
        ("read", f"{len(rows)} of {len(source)} tiles read without a fault{_left_out(source)}"),
    ]
    lines = [f"{folder}: {len(source)} single-date tiles of {chosen.tile_size} px", *aligned(facts)]
    lines += [*shares.lines(), *bands.lines(names)]
    lines += [f"warning: {each}" for each in warnings_of(shares, bands, names, counted[0] != 0)]
    lines += [f"warning: {said}"] if (said := without_place(source)) else []
    sampling = outside_sampling(info or read_info(find_model("mini")), (item.gsd_m for item in source.items))
    lines += [f"warning: for the model {model or 'mini'}, {sampling}"] if sampling else []
    if preview is not None:
        draw_samples(_some(source), source.legend, preview)
        lines.append(f"picture: {preview}")
    return "\n".join([*lines, f"next: changeanywhere generate --source {folder} --out DIR"])


def _some(source: Source) -> list[SourceSample]:
    """A few, evenly spread."""
    return [source.read(i) for i in range(0, len(source), -(-len(source) // NUM_ROWS))]


def _left_out(source: Source) -> str:
    return f", {len(source.skipped)} left out: {source.skipped[0]}" if source.skipped else ""


def _of_items(source: Source) -> list[tuple[str, str]]:
    """Scenes, licences, ground sampling and CRS."""
    items = source.items
    splits = Counter(item.split for item in items if item.split)
    stated = "; tiles by split: " + ", ".join(f"{name} {splits[name]}" for name in SPLITS if splits[name])
    sampling = [item.gsd_m for item in items if item.gsd_m is not None]
    metres = f"{min(sampling):g} to {max(sampling):g} m" if sampling else "not known (provenance.csv can say it)"
    if sampling and min(sampling) == max(sampling):
        metres = f"{sampling[0]:g} m"
    if 0 < len(sampling) < len(items):
        metres += f", not known of {len(items) - len(sampling)} tiles"
    spread = range(0, len(items), -(-len(items) // MAX_SAMPLES))
    places = Counter(georef.crs if (georef := source.georef(i)) else "none" for i in spread)
    return [
        ("scenes", f"{len({item.scene for item in items})}{stated if splits else ''}"),
        ("licences", ", ".join(sorted({item.licence for item in items}))),
        ("sampling", metres),
        ("CRS", ", ".join(_short(crs) for crs, _ in places.most_common(3)) + (", …" if len(places) > 3 else "")),
    ]


def _short(crs: str) -> str:
    return crs if len(crs) <= 40 else f"{crs[:37]}…"


def _check_lists(folder: Path, max_megapixels: float | None) -> None:
    """:class:`PairsError` for a list that names what is not there: else a training alone would find it."""
    for split in SPLITS:
        if (folder / "list" / f"{split}.txt").is_file():
            with suppress(EmptySplitError):
                load_pairs(folder, split, max_megapixels)


def _in_two_splits(folder: Path) -> list[str]:
    """A line for each two splits whose lists name the same pairs."""
    layout = layout_of(folder)
    named = {} if layout is None else {s: set(map(bare, layout.split(folder, s))) for s in layout.splits(folder)}
    found = []
    for one, other in combinations(named, 2):
        if both := named[one] & named[other]:
            count = "1 pair is" if len(both) == 1 else f"{len(both)} pairs are"
            found.append(
                f"{count} in the lists of {one} and {other} ({min(both)}): what is learned from is no test of it"
            )
    return found


def describe_pairs(folder: Path, preview: Path | None = None, max_megapixels: float | None = None) -> str:
    """Pairs in ``folder``. :class:`PairsError` where labels and semantic masks disagree."""
    pairs = load_pairs(folder, max_megapixels=max_megapixels)
    _check_lists(folder, max_megapixels)
    pairs.require_files()
    file = folder / "legend.json"
    legend = Legend.load(file) if file.is_file() else None
    rows = range(0, len(pairs), -(-len(pairs) // MAX_SAMPLES))
    ratios, ignored, compared, first, second = [], [], 0, BandFigures(), BandFigures()
    shares = ClassShares(legend) if legend is not None else None
    elsewhere = []
    for i in rows:
        pair = pairs[i]
        elsewhere += [other] if (other := pairs.lies_elsewhere(i)) else []
        ratios.append(float(pair.change_mask.mean()))
        known = None if pair.ignored is None else ~pair.ignored
        ignored.append(0.0 if known is None else float(1 - known.mean()))
        first.add(pair.image_t1, known)
        second.add(pair.image_t2, known)
        if pair.mask_t1 is not None and pair.mask_t2 is not None:
            differs = pair.change_mask != change_mask_of(pair.mask_t1, pair.mask_t2)
            wrong = int((differs if known is None else differs & known).sum())
            compared += 1
            if wrong:
                raise PairsError(f"{folder}: change mask of {pair.key} disagrees with its semantic masks in {wrong} px")
            if shares is not None:
                shares.add(pair.key, pair.mask_t1)
                shares.add(pair.key, pair.mask_t2)
    ratio = sum(ratios) / len(ratios)
    lines = [f"{folder}: {len(pairs)} bi-temporal pairs, change ratio {ratio:.3f} (mean of {len(rows)})"]
    facts = [
        ("labels", _label_rule(pairs)),
        ("unchanged", f"{percent(sum(not r for r in ratios) / len(ratios))} of the pairs"),
        ("ignored", f"{percent(sum(ignored) / len(ignored))} of the ground" if any(ignored) else ""),
        ("legend", ", ".join(legend.names) if legend is not None else ""),
        ("passed over", _passed(folder)),
    ]
    lines += aligned(facts)
    if compared:
        lines.append(f"change masks agree with the semantic masks in the {compared} pairs read")
    lines += shares.lines() if shares is not None and shares.num_masks else []
    lines += beside(first, second)
    warned = [*warnings_of_pairs(ratios, ignored, elsewhere), *_in_two_splits(folder)]
    lines += [f"warning: {each}" for each in warned]
    if preview is not None:
        chosen = [pairs[i] for i in range(0, len(pairs), -(-len(pairs) // NUM_ROWS))]
        draw_pairs(chosen, legend, preview)
        lines.append(f"picture: {preview}")
    return "\n".join(lines)


def _label_rule(pairs: PairDataset) -> str:
    """Which values of labels count as changed, where the reader says so."""
    return pairs.label_rule


def _passed(folder: Path) -> str:
    layout = layout_of(folder)
    passed: set[Path] = set()
    names: Sequence[str] = () if layout is None else (*layout.images, layout.change, *layout.masks)
    for name in names:
        if layout is not None:
            layout.files(folder, name, passed)
    hidden = [f"{len(passed)} {SYSTEM}"] if passed else []
    return ", ".join([*hidden, *(layout.left_out(folder) if layout else ())])
