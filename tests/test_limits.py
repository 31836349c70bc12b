"""Every option is looked at before work begins; and the ends of commands: pipes, threads, terminals."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from changeanywhere import machine
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.check import CheckOptions
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.evaluation.detector_options import DetectorEvaluationOptions
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.exporting.options import ExportOptions
from changeanywhere.generation.nuisances import NuisanceOptions
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.speed import SpeedOptions
from changeanywhere.init import InitOptions
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.limits import LIMITS, MAX_SEED, check_limits
from changeanywhere.models.import_options import ImportDetectorOptions, ImportOptions
from changeanywhere.prediction.options import PredictOptions
from changeanywhere.scenes.options import SceneOptions
from changeanywhere.seeds import STEPS, step_seed
from changeanywhere.shipped import RecipesOptions
from changeanywhere.training.command import TrainOptions
from conftest import write_source

PLACE = Path("x")
OPTIONS: list[Any] = [
    GenerateOptions(source=PLACE, out=PLACE),
    LabelOptions(source=PLACE, out=PLACE),
    SceneOptions(scene=("scene.tif",), mask=("mask.tif",), out=PLACE),
    EvaluateOptions(out=PLACE),
    DetectorEvaluationOptions(detector=PLACE, pairs=PLACE, out=PLACE),
    ExportOptions(pairs=PLACE, layout="levir", out=PLACE),
    RecipesOptions(),
    SpeedOptions(),
    PredictOptions(detector=PLACE, inputs=("pairs",), out=PLACE),
    BenchmarkOptions(out=PLACE),
    TrainOptions(out=PLACE),
    CheckOptions(path=PLACE),
    InitOptions(path=PLACE),
    ImportOptions(checkpoint=PLACE, out=PLACE, legend="mini"),
    ImportDetectorOptions(checkpoint=PLACE, out=PLACE),
]
NUISANCES = {field.name for field in dataclasses.fields(NuisanceOptions)}


def fields_of(options: Any) -> Iterator[tuple[Any, str, Any]]:
    """(the section it is in, name, type) of every option."""
    for name, hint in typing.get_type_hints(type(options)).items():
        if dataclasses.is_dataclass(hint):
            yield from fields_of(getattr(options, name))
        else:
            yield options, name, hint


NUMBERS = sorted(
    {
        (OPTIONS.index(options), name)
        for options in OPTIONS
        for _, name, hint in fields_of(options)
        if "int" in str(hint) or "float" in str(hint)
    }
)


def with_value(options: Any, name: str, value: Any) -> Any:
    """``options`` with a value in the field ``name``, wherever its section is; nothing else is checked."""
    copy = dataclasses.replace(options)
    for field in dataclasses.fields(options):
        inner = getattr(options, field.name)
        if field.name == name:
            object.__setattr__(copy, name, value)
            return copy
        if dataclasses.is_dataclass(inner):
            object.__setattr__(copy, field.name, with_value(inner, name, value))
    return copy


def test_every_number_has_its_bounds_in_the_table() -> None:
    asked = {name for _, name in NUMBERS}
    unbounded, idle = sorted(asked - LIMITS.keys() - NUISANCES), sorted(LIMITS.keys() - asked)
    assert not unbounded, "options without bounds in limits.py"
    assert not idle, "bounds of no option in limits.py"
    for options in OPTIONS:
        check_limits(options)


@pytest.mark.parametrize(("place", "name"), NUMBERS)
def test_numbers_beyond_reason_are_refused(place: int, name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, 10**19, -(10**19), 1e300):
        for kind in (value, [value], {"a": value}):
            with pytest.raises(ConfigError, match=name):
                check_limits(with_value(OPTIONS[place], name, kind))
    if name in LIMITS:
        least, most = LIMITS[name]
        for value in (least - 1, most * 2 + 1):
            with pytest.raises(ConfigError, match=name):
                check_limits(with_value(OPTIONS[place], name, value))


def test_words_and_lists_are_bounded() -> None:
    for value in ("a\0b", "x" * 5000, Path("a\0b"), ["x"] * 10_001, {"a\0": 1}, dict.fromkeys(range(10_001), 1.0)):
        with pytest.raises(ConfigError):
            check_limits(with_value(OPTIONS[0], "legend", value))


def test_every_stream_of_the_largest_seed_fits() -> None:
    assert all(step_seed(name, MAX_SEED, 10**9, 64) < 2**63 for name in STEPS)


ODD = [
    *("--num-pairs=1000000000", "--pairs-per-image=99999", "--seed=-1", f"--seed={10**30}", "--shard-size=0"),
    *("--targets.no-change=nan", '--targets.ratios={"0.1-0.2": .nan}', '--targets.ratios={"nan-0.2": 0.1}'),
    *("--targets.ratios=" + '{"0-1": -1}', "--events.scale=[nan,1]", "--events.events-per-pair=[3,1]"),
    *("--num-threads=100000", "--batch-size=100000000", "--device=cuda:99", "--device=moon", "--dtype=int3"),
    *("--max-megapixels=inf", "--stretch=[nan,98]", "--bands=[99999999999]", "--tile-size=1000000000"),
    *("--events.min-area-m2=nan", "--free-fraction=nan", "--guidance-scale=inf", "--nuisances.noise=[nan,nan]"),
    *("--exemplar-strength=nan", "--exemplar-strength=[0.4,nan]", "--legend=a\0b", f"--legend={'x' * 9999}"),
]


@pytest.mark.parametrize("flag", ODD)
def test_odd_options_are_one_line(
    tmp_path: Path, tiny_model_folder: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "src", num_tiles=101 if "per-image" in flag else 2)
    command = ["generate", f"--source={tmp_path / 'src'}", f"--out={tmp_path / 'out'}", "--tile-size=64", flag]
    assert run([*command, f"--model={tiny_model_folder}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("changeanywhere: error: "), said
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_reader_that_goes_ends_a_command_quietly(tmp_path: Path) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    for command in (["check", str(tmp_path / "src")], ["--help"], ["generate", "--help"], ["--version"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "changeanywhere", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)  # argparse says its help and looks no further
        process.stderr.close()


DAMAGED = [b"", b"[]", b"{", b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe", b"null", b"1" * 9000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize(
    "name", ["detector.json", "segmenter.json", "model.json", "training/denoiser/metrics.jsonl", "metadata.jsonl"]
)
def test_malformed_json_of_any_folder_is_one_line(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content + b"\n" * (name.endswith("metrics.jsonl") and bool(content)))
    if name == "metadata.jsonl":
        for folder in ("A", "B", "label"):
            (file.parent / folder).mkdir()
            (file.parent / folder / "a.png").write_bytes(b"")
    code = run(["check", str(tmp_path / "x")])
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") == (1 if code else 0), said.err
    assert code == 2 or (name.endswith("jsonl") and not content), said.out


def test_a_line_of_a_log_that_a_kill_cut_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "training" / "denoiser" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 50, "loss": 0.25}\n{"step": 100, "lo')
    assert run(["check", str(tmp_path)]) == 0
    assert "denoiser: step 50, loss 0.2500" in capsys.readouterr().out
    log.write_text('{"step": 50, "lo\n{"step": 100, "loss": 0.2}\n')
    assert run(["check", str(tmp_path)]) == 2


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    code = "import changeanywhere, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for before, after in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": before} if before else {}
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.split() == [after, "False"]


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu.max": "100000 0"}, 8),
    ],
)
def test_processors_are_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], count: int
) -> None:
    """Of affinity and container, as they are set; the load of the moment has no part in it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    monkeypatch.setattr(machine, "read_file", lambda name: files.get(name.rpartition("/")[2], ""))
    assert machine.usable_processors() == count
