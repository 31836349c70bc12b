"""The dataset card: README.md of a generated dataset, with the front matter that dataset hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend
from changeanywhere.pairs.names import FOUND, SPLITS, table_name
from changeanywhere.pairs.record import FILE_FOLDERS, PairRecord
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.text import code_span, markdown, one_line

SPDX_TO_HUB = {"CC0-1.0": "cc0-1.0", "CC-BY-4.0": "cc-by-4.0", "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0"}
HUB_SPLITS = {"val": "validation"}
"""Names of splits on hubs, where they are not ours."""


def dataset_card(legend: Legend, counts: SetSummary, how: str) -> str:
    """Markdown with YAML front matter; ``how`` the other date of a pair comes about: "is painted by …"."""
    first = counts.first
    assert first is not None  # a set has at least one pair
    what = (
        f"{counts.count} pairs made by `changeanywhere generate` from single-date tiles of {code_span(first.source)}. "
        f"{_dates(counts)} {one_line(how) or 'is made by another method.'}"
    )
    return "\n".join(
        [
            *_front_matter(counts),
            what,
            *_seconds(counts),
            "",
            _folders(counts),
            *_counts(legend, counts),
            *_credit(counts),
            *_made(first),
        ]
    )


FOLDERS = """\
The change masks agree with the semantic masks by construction (checked for every pair written). That the \
*pixels* show what the masks say is not guaranteed: they are generated.

| folder | content |
|---|---|
| `A/`, `B/` | image of date 1 and date 2; `real_date` in the metadata says which is real |
| `label/` | change mask, 0 or 255 |
| `label1/`, `label2/` | semantic masks, index, 0 = unknown; names and colours in `legend.json` |
| `list/*.txt` | splits; no scene is in two of them |
| `metadata.jsonl` | one line per pair: source, licence, events, seed, model, settings |
| `train.jsonl`, … | what `datasets.load_dataset("THIS_FOLDER")` reads: a flat table per split, by `key` |

```python
import changeanywhere as ca
pairs = ca.load_pairs("THIS_FOLDER", split="train")
pair = pairs[0]  # .image_t1 .image_t2 .change_mask .mask_t1 .mask_t2 .metadata
```
"""


def _seconds(counts: SetSummary) -> list[str]:
    """What real second dates had to do with it."""
    said = []
    if counts.seconds["base"]:
        said.append(
            f"In {counts.seconds['base']} pairs it was painted on a real image of another date, so that ground without "
            "a change differs as real dates do. Where the real dates differ in earnest nobody knows what is there: "
            f"{counts.ignored / counts.count:.1%} of the ground is unknown in both masks, and 255 in `ignore/`; what "
            "no test found there is called unchanged."
        )
    found = sum(count for kind, count in counts.kinds.items() if FOUND in kind.split("+"))
    if found:
        said.append(
            f"In {found} pairs changes stand that nobody painted (events of the kind `{FOUND}`): masks of both real "
            "dates differ there, and are as right as whoever labelled them."
        )
    if counts.seconds["style"]:
        said.append(
            f"In {counts.seconds['style']} pairs it has the colours, contrast and sharpness of a real image of another "
            "date."
        )
    return ["", *said] if said else []


def _folders(counts: SetSummary) -> str:
    """The table of folders, with ``ignore/`` where there is one."""
    row = "| `label1/`"
    more = "| `ignore/` | 255 where no label speaks of the ground, else 0 |\n" if counts.ignored else ""
    return FOLDERS.replace(row, more + row)


def _front_matter(counts: SetSummary) -> list[str]:
    licences = list(counts.licences)
    hub_licence = SPDX_TO_HUB.get(licences[0], "other") if len(licences) == 1 else "other"
    return [
        "---",
        f"license: {hub_licence}",
        "task_categories:\n- image-segmentation",
        "tags:\n- change-detection\n- remote-sensing\n- synthetic",
        f"size_categories:\n- {_size_category(counts.count)}",
        *hub_configs(
            [name for name in SPLITS if counts.in_tables[name]], list(counts.first.files) if counts.first else []
        ),
        "---",
        "# Bi-temporal change-detection pairs",
        "",
    ]


def hub_configs(splits: Sequence[str], folders: Sequence[str] = FILE_FOLDERS) -> list[str]:
    """Lines of the front matter: what ``load_dataset`` of Hugging Face reads, a table per split, and none of ``list/``,
    which it takes for text.

    The globs bring the images along where the set lies on a hub; which of them is of which split the table says.
    """
    if not splits:
        return []
    tables = ", ".join(table_name(name) for name in splits)
    lines = ["configs:", "- config_name: default", "  drop_labels: true", f"  metadata_filenames: [{tables}]"]
    lines.append("  data_files:")
    for name in splits:
        paths = ", ".join([table_name(name), *(f'"{folder}/**"' for folder in folders)])
        lines += [f"  - split: {HUB_SPLITS.get(name, name)}", f"    path: [{paths}]"]
    return lines


def _counts(legend: Legend, counts: SetSummary) -> list[str]:
    splits = {name: counts.splits[name] for name in SPLITS}
    ratios = sorted(counts.ratios)
    changed = sum(counts.transitions.values()) or 1
    most = counts.transitions.most_common(20)
    left_out, moved = (
        ", ".join(f"{n} {markdown(what)}" for what, n in each.items()) for each in (counts.left_out, counts.moved)
    )
    return [
        "## Counts",
        "",
        f"Splits: {_join(splits)}. Events: {_join(dict(sorted(counts.kinds.items())))}. "
        f"Share of changed pixels: median {ratios[len(ratios) // 2]:.2%}, "
        f"from {ratios[0]:.2%} to {ratios[-1]:.2%}.",
        *([f"Left out: {left_out}."] if left_out else []),
        *([f"Moved to a tile with room: {moved}."] if moved else []),
        "",
        "| class | index | colour |",
        "|---|---|---|",
        *[f"| {markdown(c.name)} | {c.index} | {c.color[0]}, {c.color[1]}, {c.color[2]} |" for c in legend.classes],
        "",
        "| change | share of changed pixels |",
        "|---|---|",
        *[f"| {markdown(name.replace('->', ' → '))} | {n / changed:.1%} |" for name, n in most],
        "",
    ]


def _credit(counts: SetSummary) -> list[str]:
    return [
        "## Licences and credit",
        "",
        *[
            f"- {markdown(licence)}: {n} pairs (licence of the real tile)"
            for licence, n in sorted(counts.licences.items())
        ],
        *[f"- credit: {markdown(name)} ({n} pairs)" for name, n in sorted(counts.credits.items())],
        *[
            f"- masks of {n} pairs were not drawn by people but read by {markdown(name)}: they are wrong in places"
            for name, n in sorted(counts.machines.items())
        ],
        "",
        "Method: Tang & Chen, *ChangeAnywhere: Sample Generation for Remote Sensing Change Detection via Semantic "
        "Latent Diffusion Model*, arXiv 2404.08892.",
        "",
    ]


def _made(first: PairRecord) -> list[str]:
    made = first.provenance
    return [
        "## How it was made",
        "",
        f"Model {code_span(made.model)} (hash {code_span(made.model_hash)}), {_join(made.versions)}."
        if made.model
        else f"No model, {_join(made.versions)}.",
        "",
        f"```json\n{to_json(made.settings, indent=1)}\n```",
        "",
    ]


def _dates(counts: SetSummary) -> str:
    if not counts.exchanged:
        return "Date 1 is real. Date 2"
    real = counts.count - counts.exchanged
    return f"In {real} pairs date 1 is real, in {counts.exchanged} date 2. The other date"


def _join(values: Mapping[str, object]) -> str:
    return ", ".join(f"{markdown(str(name))} {markdown(str(value))}" for name, value in values.items())


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "n>1M"
