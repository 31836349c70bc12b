"""``changeanywhere export``: a set of pairs in another layout, with its licences and credits. No torch here.

Beside what the layout asks for lie ``metadata.jsonl`` (a line per pair, with the files that it is in now),
``legend.json`` (the classes that are written), ``README.md`` (card: licences, credits, how to load it) and
``exported.jsonl`` (what was written, :mod:`.renewed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.documents import to_json
from changeanywhere.errors import PairsError
from changeanywhere.exporting.base import CARRIED, Exporter
from changeanywhere.exporting.items import Item, SetInfo, open_set
from changeanywhere.exporting.options import ExportOptions
from changeanywhere.exporting.registry import EXPORTERS
from changeanywhere.exporting.renewed import CARD, LINES, renewed
from changeanywhere.exporting.target import Target
from changeanywhere.pairs.card import SPDX_TO_HUB
from changeanywhere.pairs.names import SPLITS
from changeanywhere.progress import Progress, silent
from changeanywhere.storage import LocalStore
from changeanywhere.text import code_span, markdown


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    splits: Mapping[str, int]
    """Pairs by split."""
    lost: tuple[str, ...]
    """What of the pairs the layout cannot carry, in words."""


def export(options: ExportOptions, progress: Progress = silent, *, inside: bool = False) -> ExportReport:
    """Write the pairs in ``options.layout``, in place of an earlier export in ``out``, which stays until the new one is
    whole; ``inside``: ``out`` may lie in the set itself.

    Raises :class:`ConfigError` for a layout that they do not fit, :class:`LegendError` for classes that do not,
    :class:`PairsError` for pairs that cannot be read, :class:`OutputError` for a folder that cannot be written, or
    that holds anything but an export.
    """
    options.check(inside)
    with renewed(options.out, options.layout) as folder:
        info, lost = _write(options, folder, progress)
    return ExportReport({split: info.splits[split] for split in SPLITS if info.splits[split]}, lost)


def _write(options: ExportOptions, folder: Path, progress: Progress) -> tuple[SetInfo, tuple[str, ...]]:
    """The whole export into ``folder``; what of the pairs it cannot carry."""
    info, items = open_set(options)
    target = Target(folder, options.link)
    exporter = EXPORTERS[options.layout](target, info)
    try:
        with LocalStore(folder).create(LINES) as lines:
            for number, item in enumerate(items):
                files = exporter.add(item)
                lines.write((to_json(_line(item, files), ensure_ascii=False) + "\n").encode())
                progress(f"writing {options.layout}", number + 1, info.total)
        exporter.finish()
    finally:
        exporter.close()
    if not info.splits:
        raise PairsError(f"{options.pairs}: holds no pairs")
    if info.legend is not None:
        target.put("legend.json", (to_json(info.legend.to_dict(), indent=1) + "\n").encode())
    lost = _lost(exporter, info)
    target.put(CARD, _card(exporter, info, lost).encode())
    return info, lost


def _line(item: Item, files: Mapping[str, str]) -> dict[str, Any]:
    """The pair's line with the files that it is in now, and where on the ground it lies."""
    kept = {name: value for name, value in item.record.items() if not name.endswith("_file_name")}
    kept.pop("container", None)
    if item.georef is not None:
        kept |= {"crs": item.georef.crs, "transform": list(item.georef.transform)}
    return {"key": item.key, **{f"{what}_file_name": name for what, name in files.items()}, **kept, "split": item.split}


def _lost(exporter: Exporter, info: SetInfo) -> tuple[str, ...]:
    lost = list(info.without)
    if info.unlisted:
        lost.append(f"{info.unlisted} pairs that no list of the set names")
    if info.legend is not None and "semantic" not in exporter.carries:
        lost.append("semantic masks of unchanged ground")
    left = info.ignored - (info.noted if "ignored" in exporter.carries else 0)
    if left:
        lost.append(f"ground that labels leave out, in {left} pairs: it is written as unchanged")
    return (*lost, *exporter.lost())


def _card(exporter: Exporter, info: SetInfo, lost: tuple[str, ...]) -> str:
    licences = list(info.licences)
    hub = SPDX_TO_HUB.get(licences[0], "other") if len(licences) == 1 else "other"
    counts = ", ".join(f"{split} {info.splits[split]}" for split in SPLITS if info.splits[split])
    parts = ["---", f"license: {hub}", "task_categories:\n- image-segmentation"]
    parts += ["tags:\n- change-detection\n- remote-sensing", *exporter.front_matter(), "---"]
    parts += [f"# {markdown(info.name)}", "", f"Pairs of two dates in the layout `{exporter.name}`: {counts}.", ""]
    parts += ["```", exporter.tree, "```", "", "```python", exporter.load.replace('"OUT', '"THIS_FOLDER'), "```", ""]
    parts += [f"Carried: {', '.join(CARRIED[name] for name in CARRIED if name in exporter.carries)}."]
    parts += [f"Not carried: {markdown(what)}." for what in lost]
    if info.legend is not None:
        parts += ["", "| class | index | colour |", "|---|---|---|"]
        parts += [f"| {markdown(c.name)} | {c.index} | {', '.join(map(str, c.color))} |" for c in info.legend.classes]
    parts += ["", "## Licences and credit", ""]
    parts += [f"- {markdown(name)}: {n} pairs" for name, n in sorted(info.licences.items())]
    parts += [f"- credit: {markdown(name)} ({n} pairs)" for name, n in sorted(info.credits.items())]
    parts += [f"- masks of {n} pairs were read by {code_span(name)}" for name, n in sorted(info.machines.items())]
    return "\n".join([*parts, "", "Licence and credit of each pair, and how it was made: `metadata.jsonl`.", ""])
