"""What comes with the package: recipes and example tiles by name, and all of it in the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.shipped import find_recipe, find_source, recipes, with_shipped

ROOT = Path(__file__).parents[1]


def test_recipes_are_listed_printed_and_taken_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"mini", "realistic", "ce-100k", "judge"} <= set(recipes())
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recipes()) + 1 and all(len(line) < 130 for line in lines)
    assert all(line.split()[0] == name and len(line.split()) > 3 for line, name in zip(lines, recipes(), strict=False))
    assert run(["recipes", "judge"]) == 0
    assert capsys.readouterr().out == recipes()["judge"].read_text()
    assert run(["recipes", "jugde"]) == 2 and "config is 'jugde'; allowed: a YAML file, or" in capsys.readouterr().err
    assert run(["recipes", "judge", "mini"]) == 2 and "2 words where one is taken" in capsys.readouterr().err


def test_a_name_is_a_recipe_and_a_file_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(recipes()["mini"])
    assert with_shipped(["--config", "mini", "--out", "mini"]) == ["--config", recipe, "--out", "mini"]
    assert with_shipped(["--config=mini"]) == [f"--config={recipe}"]
    assert with_shipped(["--config", "mini.yaml"]) == ["--config", "mini.yaml"]
    (tmp_path / "mini").write_text("seed: 1\n")
    assert with_shipped(["--config", "mini"]) == ["--config", "mini"]
    Path("judge").mkdir()
    named = with_shipped(["--config", "judge"])[1]
    assert named == str(find_recipe("judge")), "the folder of a run is no recipe, whatever its name"
    with pytest.raises(ConfigError, match=r"config is 'nimi'; allowed: a YAML file, or a recipe of the package: bench"):
        with_shipped(["--config", "nimi"])
    assert Path(find_source("examples")).is_dir() and len(ca.load_source("examples")) == 12
    (tmp_path / "examples").mkdir()
    assert find_source("examples") == "examples" and with_shipped(["--source", "examples"])[1] == "examples"
    assert find_recipe("judge").is_file()


def test_a_recipe_by_name_does_what_its_file_does(tmp_path: Path) -> None:
    for out, recipe in (("name", "events-quota"), ("file", str(ROOT / "recipes" / "events-quota.yaml"))):
        command = ["simulate", "--config", recipe, "--source", "examples", "--num-pairs", "20"]
        assert run([*command, "--out", str(tmp_path / out)]) in (0, 1)
    one, other = (tmp_path / out / "events.jsonl" for out in ("name", "file"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="pip install setuptools: it builds the wheel")
def test_the_wheel_runs_the_first_page_without_the_repository(tmp_path: Path) -> None:
    """In an environment of its own, which sees the other packages of this one and nothing of the checkout."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    left = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "demo", "tests", "docs")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=left, symlinks=True)  # builds leave things beside the source
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(tmp_path / "copy")], check=True, env=plain)
    (wheel,) = tmp_path.glob("changeanywhere-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    program = tmp_path / "env" / "bin"
    subprocess.run(
        [program / "python", "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, env=plain
    )
    others = sysconfig.get_path("purelib")  # by PYTHONPATH: no .pth of an editable install is followed
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": others, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    work = tmp_path / "work"
    work.mkdir()

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [program / "changeanywhere", *arguments], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import changeanywhere; print(changeanywhere.__file__)"
    found = subprocess.run([program / "python", "-c", where], cwd=work, env=environment, capture_output=True, text=True)
    assert str(tmp_path / "env") in found.stdout, "the wheel's own"
    assert call("--version").strip() == ca.__version__
    assert "realistic" in call("recipes")
    call("generate", "--source", "examples", "--out", "pairs", "--num-pairs", "4", "--seed", "1", "--num-steps", "2")
    assert "4 bi-temporal pairs" in call("check", "pairs")
    call(
        "generate",
        "--config",
        "realistic",
        "--source",
        "examples",
        "--out",
        "real",
        "--num-pairs",
        "2",
        "--num-steps",
        "2",
    )
    call("simulate", "--source", "examples", "--out", "masks", "--num-pairs", "4")
    assert "a demonstration" in call("predict", "--detector", "mini-detector", "pairs", "--out", "maps")
    call("export", "pairs", "--layout", "second", "--legend", "second", "--out", "second")
