"""Numbers of a training in the services that people watch: real runs of MLflow and of W&B without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from changeanywhere.cli import run
from changeanywhere.training.tracking import RUNS, Tracking
from conftest import write_source

TRAIN = [
    "--data.source=src", "--data.tile-size=64", "--first-stage.crop-size=64", "--first-stage.channels=[8,8,8]",
    "--first-stage.layers-per-block=1", "--first-stage.norm-groups=4", "--first-stage.num-codes=16",
    "--first-stage.batch-size=2", "--first-stage.warmup-steps=0", "--first-stage.perceptual-weight=0",
    "--run.num-workers=0", "--run.log-every=1", "--out=run",
]  # fmt: skip


def train(num_steps: int, *more: str) -> int:
    return run(["train", "first-stage", *TRAIN, f"--first-stage.num-steps={num_steps}", *more])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "src", num_tiles=4)
    return tmp_path


def losses_of(folder: Path) -> list[float]:
    lines = (folder / "run/training/first_stage/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed (pip install mlflow-skinny)")
def test_mlflow_has_every_line_and_a_resumed_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the small MLflow has no database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{here}/mlruns")
    mlflow.set_tracking_uri(f"file:{here}/mlruns")
    assert train(2, "--track=mlflow") == 0
    assert train(4, "--track=mlflow") == 0
    ((one,),) = [mlflow.search_runs(search_all_experiments=True, output_format="list")]
    history = mlflow.MlflowClient().get_metric_history(one.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert [point.value for point in history] == pytest.approx(losses_of(here), rel=1e-5)
    assert one.info.run_name == "run/first_stage" and one.info.status == "FINISHED"
    assert one.data.params["first_stage.batch_size"] == "2" and one.data.params["run.seed"] == "0"


@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed (pip install wandb)")
def test_wandb_writes_without_a_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train(2, "--track=wandb") == 0
    (file,) = (here / "run/training/first_stage/wandb").glob("offline-run-*/run-*.wandb")
    assert json.loads((here / "run/training/first_stage" / RUNS).read_text())["wandb"] in file.name
    assert b"first_stage.batch_size" in file.read_bytes()


def test_a_service_that_is_not_there_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(2, "--track=neptune") == 2
    assert "track is 'neptune'; allowed: mlflow, wandb" in capsys.readouterr().err
    missing = [name for name in ("mlflow", "wandb") if find_spec(name) is None]
    for name in missing:
        assert train(2, f"--track={name}") == 2
        assert f"track is '{name}'; it needs {name}: pip install {name}" in capsys.readouterr().err
    assert not (here / "run/training/first_stage/checkpoint.pt").exists()


class Service:
    """Stands for a service: keeps what it is told, or fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told = fails, list[Any]()
        self.tracker = type("Run", (), {"id": "run-1"})()

    def _do(self, what: str, *values: Any) -> None:
        if what == self.fails:
            raise ConnectionError("no route\nto host")
        self.told.append((what, *values))

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("settings", values)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._do("log", values, step)

    def finish(self) -> None:
        self._do("finish")


@pytest.mark.parametrize("fails", ["", "log", "finish", "start"])
def test_a_service_that_is_lost_ends_no_training(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(fails)
    monkeypatch.setattr("changeanywhere.training.tracking._service", lambda *_: service)
    recipe = {"run": {"seed": 3, "names": ["a", "b"]}, "init": None}
    if fails == "start":
        with pytest.raises(Exception, match=r"track is 'wandb', which does not begin .*no route to host"):
            Tracking(["wandb"], tmp_path, "denoiser", recipe)
        return
    tracking = Tracking(["wandb"], tmp_path, "denoiser", recipe)
    tracking.log({"loss": 1.0}, 1)
    tracking.log({"loss": 0.5}, 2)
    tracking.close()
    settings = ("settings", {"run.seed": 3, "run.names": "['a', 'b']", "init": "None"})
    whole = [("start",), settings, ("log", {"loss": 1.0}, 1), ("log", {"loss": 0.5}, 2), ("finish",)]
    assert service.told == {"": whole, "log": whole[:2], "finish": whole[:-1]}[fails]
    errors = capsys.readouterr().err
    assert ("lost (ConnectionError: no route to host)" in errors) == (fails == "log")
    assert errors.count("\n") == (1 if fails else 0)
    assert json.loads((tmp_path / RUNS).read_text()) == {"wandb": "run-1"}
