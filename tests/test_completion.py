"""The TAB key: scripts of every shell, and what bash offers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from changeanywhere.cli import run
from changeanywhere.commands import COMMANDS
from changeanywhere.completion import OPTIONS, SHELLS
from changeanywhere.shipped import recipes

needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="pip install shtab")


@pytest.fixture(scope="module")
def bash() -> str:
    command = [sys.executable, "-c", "import sys, changeanywhere.cli as c; c.run(['completion', 'bash']); "
               "assert 'torch' not in sys.modules"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def offered(script: str, *words: str, folder: Path | None = None) -> list[str]:
    """What bash offers for the last of ``words``."""
    quoted = " ".join(f"'{word}'" for word in ("changeanywhere", *words))
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _shtab_changeanywhere; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.split()


def test_every_command_has_its_options() -> None:
    assert set(OPTIONS) == set(COMMANDS)


@needs_shtab
def test_bash_offers_commands_options_names_and_files(bash: str, tmp_path: Path) -> None:
    assert set(offered(bash, "")) >= set(COMMANDS)
    assert offered(bash, "gen") == ["generate"]
    assert "--num-pairs" in offered(bash, "generate", "--num") and "--scene" in offered(bash, "generate", "--sc")
    assert offered(bash, "generate", "--out", "x", "--progress", "") == ["bars", "json", "none"]
    assert set(offered(bash, "check", "--on-error", "")) == {"stop", "skip"}, "choices that help shows"
    assert "siam_unet_lite0" in offered(bash, "train", "detector", "--detector.name", "siam")
    assert offered(bash, "train", "detector", "--run.mixed-precision", "") == ["no", "bf16"]
    assert offered(bash, "export", "set", "--layout", "open") == ["opencd"]
    assert set(offered(bash, "generate", "--method", "")) >= {"diffusion", "copy_paste"}
    assert set(offered(bash, "generate", "--format", "")) == {"folder", "webdataset", "parquet"}
    assert offered(bash, "recipes", "") == list(recipes())
    assert "denoiser" in offered(bash, "train", "d")
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles.txt").write_text("")
    assert offered(bash, "generate", "--source", "til", folder=tmp_path) == ["tiles"], "folders alone"
    assert set(offered(bash, "predict", "til", folder=tmp_path)) == {"tiles", "tiles.txt"}


@needs_shtab
@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_takes_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "num-pairs" in script and "first-stage" in script
    program = shutil.which(shell)
    if program is None or shell == "powershell":
        return  # it is written; whether it is taken cannot be asked here
    (tmp_path / "script").write_text(script)
    subprocess.run([program, "-n", str(tmp_path / "script")], check=True, env=os.environ)


def test_no_other_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "csh"]) == 2
    assert "allowed: bash, zsh, fish, powershell" in capsys.readouterr().err


def test_without_shtab_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run(["completion", "zsh"]) == 2
    assert "pip install 'changeanywhere[completion]'" in capsys.readouterr().err
