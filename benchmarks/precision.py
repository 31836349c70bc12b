"""What a pair costs in float32 and in bfloat16, with all instructions of this processor and with fewer.

    python benchmarks/precision.py

CPU seconds per further pair of ``generate`` on one thread, embedded model and example tiles, files included; they hold
on a machine that others use too. Each figure comes from processes of its own, since the libraries choose once. The
limits are those of tests/processors.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

import changeanywhere as ca
from changeanywhere.diffusion.pipeline import default_dtype

LIMITS = {
    "all of them": None,
    "AVX-512 with bf16, no AMX": ("avx512", "AVX512_CORE_BF16", "AVX512_E3"),
    "AVX-512 without bf16": ("avx512", "AVX512_CORE_VNNI", "AVX512_E1"),
    "AVX2": ("avx2", "AVX2", "AVX2"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
DTYPES = ("float32", "bfloat16")
FIRST = 4  # pairs that are not counted: they load and warm up


def measure(dtype: str, num_pairs: int, model: str) -> float:
    """CPU seconds per pair of this process, beyond what the first ones cost."""
    source = Path(str(resources.files("changeanywhere") / "assets" / "examples"))
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (FIRST, FIRST + num_pairs):
            out = Path(folder) / str(count)
            started = time.process_time()
            ca.generate(source, out, model=model, num_pairs=count, dtype=dtype, num_threads=1, seed=1)
            spent.append(time.process_time() - started)
    return (spent[1] - spent[0]) / num_pairs


def main(argv: Sequence[str] | None = None) -> None:
    """A row per limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="pairs that are timed")
    parser.add_argument("--rounds", type=int, default=2, help="processes per figure; the lower figure counts")
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--measure", choices=DTYPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(measure(arguments.measure, arguments.pairs, arguments.model))
        return
    own = {key: value for key, value in os.environ.items() if key not in VARIABLES} | {"OMP_NUM_THREADS": "1"}
    print(f"default of this machine: {default_dtype(torch.device('cpu'))}\n")
    print("| instructions | float32 | bfloat16 |\n|---|---|---|")
    for name, limits in LIMITS.items():
        if limits and torch.backends.cpu.get_cpu_capability() not in ("AVX512", limits[0].upper()):
            print(f"| {name} | not on this processor | |")
            continue
        environment = own | (dict(zip(VARIABLES, limits, strict=True)) if limits else {})
        seconds = []
        for dtype in DTYPES:
            command = [sys.executable, __file__, "--measure", dtype, "--pairs", str(arguments.pairs)]
            command += ["--model", arguments.model]
            rounds = [
                float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
                for _ in range(arguments.rounds)
            ]
            seconds.append(min(rounds))
        print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
