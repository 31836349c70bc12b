"""The numerical tests as on other processors: with fewer instructions than this one has, one thread and two.

    python tests/processors.py            # every setting that this processor can take (half an hour on two cores)
    python tests/processors.py --short    # one that is far from this processor's own, and the quickest tests

Three libraries choose their instructions on their own, PyTorch's kernels (ATen), oneDNN and MKL, and each choice is
another order of sums. A line per setting says what they took and how it ended; one that this processor cannot take is
skipped, with the reason. bf16 off: what asks for the default precision gets float32, as on a processor without bf16.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from changeanywhere.diffusion.pipeline import default_dtype

TESTS = Path(__file__).parent
SHORT = ["test_blended.py", "test_golden_ldm.py", "test_mini.py", "test_models.py", "test_scale.py", "test_training.py"]
SHORT_WITHOUT = "processes or interrupted or learns or command"
"""Of these files, left out of the short form: what takes longest."""
PROBE = """
import torch
torch.randn(64, 64) @ torch.randn(64, 64)
torch.conv2d(torch.randn(32, 16, 32, 32), torch.randn(16, 16, 3, 3))
print("ATen", torch.backends.cpu.get_cpu_capability())
"""


@dataclass(frozen=True)
class Setting:
    """Instructions that the libraries may use, by their environment variables; none: all that the processor has."""

    name: str
    limits: dict[str, str] = field(default_factory=dict)
    bf16: bool = False
    """Whether processors of this kind compute in bf16."""


def limits(aten: str, onednn: str, mkl: str) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


SETTINGS = [
    Setting("this processor", bf16=True),
    Setting("AVX-512 with bf16", limits("avx512", "AVX512_CORE_BF16", "AVX512_E3"), bf16=True),
    Setting("AVX-512 without bf16", limits("avx512", "AVX512_CORE_VNNI", "AVX512_E1")),
    Setting("first AVX-512", limits("avx512", "AVX512_CORE", "AVX512")),
    Setting("AVX2", limits("avx2", "AVX2", "AVX2")),
    Setting("no vectors", limits("default", "SSE41", "SSE4_2")),
]


def cannot(setting: Setting) -> str | None:
    """Why this processor cannot take a setting. ATen does not ask: told to, it takes what is not there."""
    if not setting.limits:
        return None
    own, asked = torch.backends.cpu.get_cpu_capability(), setting.limits["ATEN_CPU_CAPABILITY"].upper()
    order = ["DEFAULT", "AVX2", "AVX512"]
    if own not in order:
        return f"this processor is of another family (ATen takes {own})"
    if order.index(asked) > order.index(own):
        return f"this processor has no {asked} (ATen takes {own})"
    if setting.bf16 and default_dtype(torch.device("cpu")) != "bfloat16":
        return "this processor has no bf16"
    return None


def taken(environment: dict[str, str]) -> str:
    """What the three libraries say that they use."""
    verbose = {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment | verbose, capture_output=True, text=True)
    parts = re.findall(r"^ATen \w+", done.stdout, re.MULTILINE)
    parts += [f"oneDNN {isa.removeprefix('Intel ')}" for isa in re.findall(r"info,cpu,isa:(.+)", done.stdout)[:1]]
    for line in re.findall(r"MKL_VERBOSE oneMKL (.+)", done.stdout)[:1]:
        parts.append(f"MKL {' '.join(re.findall(r'[(]Intel[(]R[)] ([^)]+)[)]', line))}")
    return ", ".join(parts)


def run(setting: Setting, threads: int, bf16: bool, selection: list[str]) -> bool:
    """Run the tests in a setting, print its line; whether all passed."""
    own = {key: value for key, value in os.environ.items() if key not in limits("", "", "")}
    environment = own | setting.limits | {"OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # on a busy machine threads that spin wait for each other's turn
    command = [sys.executable, "-m", "pytest", "-m", "numerical and not slow and not faults", "-p", "no:cacheprovider"]
    command += ["--threads", str(threads), "--bf16", "native" if bf16 else "off", *selection]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    name = f"{setting.name}, {threads} thread{'s' if threads > 1 else ''}, bf16 {'on' if bf16 else 'off'}"
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout.strip().rsplit("\n", 1)[-1])
    verdict, seconds = "FAILED" if done.returncode else "passed", time.monotonic() - started
    print(f"{verdict}: {name}: {', '.join(counts)} in {seconds:.0f} s; {taken(environment)}", flush=True)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:], sep="\n", flush=True)
    return done.returncode == 0


def main() -> int:
    """Exit code 1 if any setting failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one setting, the quickest tests")
    parser.add_argument("--only", help="settings with this in their name")
    arguments = parser.parse_args()
    if arguments.short:
        possible = [setting for setting in reversed(SETTINGS) if setting.limits and not cannot(setting)]
        chosen = next((s for s in possible if s.name == "AVX2"), SETTINGS[0])
        files = [str(TESTS / name) for name in SHORT]
        return 0 if run(chosen, 2, False, [*files, "-k", f"not ({SHORT_WITHOUT})"]) else 1
    native = default_dtype(torch.device("cpu")) == "bfloat16"
    passed = True
    for setting in SETTINGS:
        if arguments.only and arguments.only not in setting.name:
            continue
        reason = cannot(setting)
        if reason:
            print(f"skipped: {setting.name}: {reason}", flush=True)
            continue
        for bf16 in (True, False) if setting.bf16 else (False,):
            if bf16 and not native:
                print(f"skipped: {setting.name}, bf16 on: this processor has no bf16", flush=True)
                continue
            for threads in (1, 2):
                if threads > (os.cpu_count() or 1):
                    print(f"skipped: {setting.name}, {threads} threads: this machine has one", flush=True)
                    continue
                passed &= run(setting, threads, bf16, [])
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
