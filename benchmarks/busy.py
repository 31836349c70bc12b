"""What a busy core costs: the command of ``make demo`` on two processors, alone and beside one that is at work.

    python benchmarks/busy.py [--num-pairs 16] [--rounds 2] [--policies default ACTIVE]

Each line is what waiting threads do, beside what, and pairs per second: the best of the rounds, which take turns. The
share of its idle speed that a setting keeps is to be 60 % or more. Pinned to two processors where there are
more.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "src" / "changeanywhere" / "assets" / "examples"


@contextmanager
def busy(processor: int | None) -> Iterator[None]:
    """Something that takes all of one processor, in a process of its own."""
    if processor is None:
        yield
        return
    code = f"import os\nos.sched_setaffinity(0, [{processor}])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def speed(policy: str, num_pairs: int) -> float:
    """Pairs per second of the command, with the default number of threads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "changeanywhere",
            "generate",
            "--source",
            str(EXAMPLES),
            "--out",
            f"{folder}/out",
        ]
        command += ["--num-pairs", str(num_pairs), "--seed", "1"]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\(([\d.]+) pairs/s\)", said)
    assert found is not None, said
    return float(found.group(1))


def main(argv: Sequence[str] | None = None) -> None:
    """Print pairs per second of each setting, and the share of its idle speed that it keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pairs", type=int, default=16, help="pairs per round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each setting")
    parser.add_argument("--policies", nargs="*", default=["default", "ACTIVE"], help="of waiting threads")
    arguments = parser.parse_args(argv)
    allowed = os.sched_getaffinity(0)
    processors = sorted(allowed)[:2]
    rates: dict[tuple[str, str], float] = {}
    os.sched_setaffinity(0, processors)
    try:
        for _ in range(arguments.rounds):
            for policy in arguments.policies:
                for beside, processor in (("nothing", None), ("one busy processor", processors[0])):
                    with busy(processor):
                        rate = speed("" if policy == "default" else policy, arguments.num_pairs)
                    rates[policy, beside] = max(rate, rates.get((policy, beside), 0.0))
    finally:
        os.sched_setaffinity(0, allowed)
    for (policy, beside), rate in rates.items():
        print(f"{policy:8} beside {beside:20} {rate:6.2f} pairs/s ({rate / rates[policy, 'nothing']:.0%} of idle)")


if __name__ == "__main__":
    main()
