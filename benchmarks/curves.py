"""Training curves of a run as one SVG, from the metrics.jsonl of its stages.

python benchmarks/curves.py --run runs/mini --out docs/mini-curves.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PANELS = (
    ("first_stage", "psnr", "first stage: PSNR of a batch, dB", False),
    ("first_stage", "chroma", "first stage: error of colour differences, L1", True),
    ("first_stage", "st_lpips", "first stage: ST-LPIPS", True),
    ("denoiser", "loss", "denoiser: loss", True),
)
WIDTH, HEIGHT, LEFT, BASE = 400, 220, 52, 180
SMOOTHING = 9  # points; batches differ more than steps do


def panel(steps: np.ndarray, values: np.ndarray, title: str, logarithmic: bool) -> str:
    """One set of axes: raw points pale, running median strong."""
    shown = np.log10(values) if logarithmic else values
    low, high = float(shown.min()), float(shown.max())
    scale = (BASE - 40) / max(high - low, 1e-9)
    x = LEFT + (WIDTH - LEFT - 12) * steps / steps.max()
    half = SMOOTHING // 2
    median = np.array([np.median(shown[max(0, i - half) : i + half + 1]) for i in range(len(shown))])

    def points(y: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{BASE - (b - low) * scale:.1f}" for a, b in zip(x, y, strict=True))

    ends = [10**v if logarithmic else v for v in (low, high)]
    return (
        f'<text x="{LEFT}" y="24" font-weight="600">{title}</text>'
        f'<path d="M{LEFT} 40V{BASE}H{WIDTH - 12}" fill="none" stroke="#999"/>'
        f'<polyline points="{points(shown)}" fill="none" stroke="#9bc" stroke-width="1"/>'
        f'<polyline points="{points(median)}" fill="none" stroke="#0b62c4" stroke-width="2"/>'
        f'<text x="{LEFT - 6}" y="46" text-anchor="end">{ends[1]:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{BASE}" text-anchor="end">{ends[0]:.3g}</text>'
        f'<text x="{LEFT}" y="{BASE + 18}">0</text>'
        f'<text x="{WIDTH - 12}" y="{BASE + 18}" text-anchor="end">step {steps.max():.0f}</text>'
    )


def series(log: Path, name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows of a log that have the value; none without the log."""
    rows = map(json.loads, log.read_text().splitlines()) if log.is_file() else ()
    return [(row["step"], row[name]) for row in rows if name in row]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that train wrote")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    arguments = parser.parse_args(argv)
    parts = []
    logs = {stage: arguments.run / "training" / stage / "metrics.jsonl" for stage, *_ in PANELS}
    found = [(title, logarithmic, series(logs[stage], name)) for stage, name, title, logarithmic in PANELS]
    panels = [(title, logarithmic, rows) for title, logarithmic, rows in found if rows]
    for number, (title, logarithmic, rows) in enumerate(panels):
        steps, values = np.array(rows).T
        row, column = divmod(number, 2)
        body = panel(steps, values, title, logarithmic)
        parts.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT})">{body}</g>')
    width, height = min(len(panels), 2) * WIDTH, -(-len(panels) // 2) * HEIGHT
    arguments.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
    print(f"{arguments.out}: {len(panels)} curves")


if __name__ == "__main__":
    main()
