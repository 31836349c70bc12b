"""Who paints what on a cluster, without one: lost actors, stragglers, refusals."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

import pytest

from changeanywhere.cli import run
from changeanywhere.generation.cluster import LEAST_SECONDS, _Run


def test_a_straggler_is_begun_twice_once_nothing_waits() -> None:
    now = time.monotonic()
    slow = now - 100 * LEAST_SECONDS
    running = {"a": (None, 7, slow), "b": (None, 8, now)}
    assert _Run(deque([1]), running=dict(running), taken=[1.0]).straggler() is None, "others wait"
    assert _Run(deque(), running=dict(running)).straggler() is None, "nothing is known of how long it takes"
    run_ = _Run(deque(), running=dict(running), taken=[1.0])
    assert run_.straggler() == 7
    run_.running["c"] = (None, 7, now)
    assert run_.straggler() is None and run_.copies_of(7) == 2
    assert _Run(deque(), running=dict(running), taken=[1000 * LEAST_SECONDS]).straggler() is None, "all are slow"


@pytest.mark.parametrize("flag", ["--address=auto", "--workers=2", "--executor=slurm", "--workers=0"])
def test_options_that_nothing_reads(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", f"--source={tmp_path}", f"--out={tmp_path / 'out'}", flag]) == 2
    assert "allowed" in capsys.readouterr().err


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from changeanywhere.errors import ConfigError
    from changeanywhere.generation.cluster import require_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'changeanywhere\[ray\]'"):
        require_ray()
