"""Imports go downward only, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "changeanywhere"
FLOORS = [
    ["errors"],
    ["flags", "legend", "progress", "stopping", "storage"],
    ["sample"],
    ["events"],
    ["sources"],
    ["pairs"],
    ["models"],
    ["diffusion"],
    ["training"],
    ["generation"],
    ["evaluation"],
    ["api", "check"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "changeanywhere":
                names = [f"changeanywhere.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("changeanywhere.")}
    return {part if part in FLOOR_OF else "__init__" for part in parts}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = part_of(path)
    for part in imported_parts(path):
        assert part == own or FLOOR_OF[part] < FLOOR_OF[own], f"{path.name} imports {part}, which stands above {own}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


@pytest.mark.parametrize(
    "code",
    [
        "import changeanywhere",
        "from changeanywhere.cli import run; run(['--help'])",
        "from changeanywhere.cli import run; run(['simulate', '--help'])",
        "import changeanywhere.generation.simulate",
        "import changeanywhere; changeanywhere.load_source; changeanywhere.simulate; changeanywhere.load_pairs",
    ],
)
def test_no_torch(code: str) -> None:
    check = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
