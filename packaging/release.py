"""A release, made and checked, and left in ``dist/``: nothing is uploaded. ``make release [SIGN=KEY]``.

One version everywhere → wheel and source → ``twine check`` → what is in them → notes from the changelog → bill of
materials and licences of what an install brings → checksums → signatures (GnuPG, where a key is named).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPECTED = {
    "wheel": (
        "assets/mini/model.json",
        "assets/mini-segmenter/model.safetensors",
        "assets/mini-detector/model.safetensors",
        "assets/mini-detector/detector.json",
        "assets/examples/legend.json",
        "recipes/mini.yaml",
        "py.typed",
    ),
    "sdist": ("CHANGELOG.md", "NOTICE", "constraints.txt", "docs/architecture.md", "tests/conftest.py"),
}
"""Of each archive, files whose want would be noticed late."""


class ReleaseError(Exception):
    """What keeps a version from being released, in one line."""


def versions(root: Path) -> dict[str, str]:
    """File → the version it names."""
    found = {"pyproject.toml": str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])}
    found[".zenodo.json"] = str(json.loads((root / ".zenodo.json").read_text())["version"])
    for name, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("packaging/conda/recipe.yaml", r'version: "(\S+)"')):
        match = re.search(pattern, (root / name).read_text(), re.MULTILINE)
        found[name] = match[1] if match else "none"
    return found


def one_version(root: Path) -> str:
    """The version that all files name; :class:`ReleaseError` where they disagree."""
    found = versions(root)
    if len(set(found.values())) > 1:
        raise ReleaseError(f"versions differ: {', '.join(f'{name} {value}' for name, value in found.items())}")
    return found["pyproject.toml"]


def notes(changelog: str, version: str) -> str:
    """The changelog's part on ``version``; :class:`ReleaseError` where it has none, or one without a date."""
    match = re.search(
        rf"^## {re.escape(version)}(?: \(([^)]*)\))?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if match is None:
        raise ReleaseError(f"CHANGELOG.md has no section {version}")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", match[1] or ""):
        raise ReleaseError(f"CHANGELOG.md: {version} ({match[1]}); allowed: its date, (YYYY-MM-DD)")
    return match[2].strip() + "\n"


def check_archives(dist: Path) -> list[Path]:
    """Wheel and source in ``dist``, whole; :class:`ReleaseError` naming what is missing."""
    (wheel,), (sdist,) = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        held = {"wheel": [name.removeprefix("changeanywhere/") for name in archive.namelist()]}
    with tarfile.open(sdist) as archive:
        held["sdist"] = [name.partition("/")[2] for name in archive.getnames()]
    for kind, names in EXPECTED.items():
        missing = set(names) - set(held[kind])
        if missing:
            raise ReleaseError(f"{kind} lacks {', '.join(sorted(missing))}")
    return [wheel, sdist]


def checksums(files: Sequence[Path]) -> str:
    """Lines that ``sha256sum --check`` reads."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(command[:4])} …: exit code {done.returncode}")


def _materials(dist: Path) -> list[Path]:
    """What the environment of this Python holds: CycloneDX, and a table of licences."""
    bill, licences = dist / "sbom.cdx.json", dist / "licences.csv"
    _run(sys.executable, "-m", "cyclonedx_py", "environment", "--of", "JSON", "-o", str(bill), sys.executable)
    _run(sys.executable, "-m", "piplicenses", "--format=csv", "--with-urls", f"--output-file={licences}")
    return [bill, licences]


def release(dist: Path, sign: str | None, draft: bool) -> list[Path]:
    """Fill ``dist``; returns its files. ``draft``: of a tree with changes and a changelog without a date, too."""
    version = one_version(ROOT)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    if changed.stdout and not draft:
        raise ReleaseError("the tree has changes; commit them, or give --draft")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if draft:
        changelog = changelog.replace(f"## {version} (unreleased)", f"## {version} (1970-01-01)")
    text = notes(changelog, version)
    shutil.rmtree(dist, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(dist))
    archives = check_archives(dist)
    _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, archives))
    (dist / "NOTES.md").write_text(text, "utf-8")
    files = [*archives, dist / "NOTES.md", *_materials(dist)]
    (dist / "SHA256SUMS").write_text(checksums(files))
    files.append(dist / "SHA256SUMS")
    if sign is not None:
        for file in list(files):
            _run("gpg", "--batch", "--yes", "--local-user", sign, "--armor", "--detach-sign", str(file))
            files.append(file.with_name(f"{file.name}.asc"))
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 made, 1 what is in the way is said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--sign", metavar="KEY", help="GnuPG key that signs every file")
    parser.add_argument("--draft", action="store_true", help="a trial, of a tree that is not ready")
    options = parser.parse_args(arguments)
    try:
        files = release(options.dist, options.sign, options.draft)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{file.stat().st_size:>10}  {file}" for file in files))
    print(
        "next: git tag --sign, then twine upload the wheel, the source and their .asc; NOTES.md is the release's text"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
