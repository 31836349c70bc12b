"""Imports go downward only, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "changeanywhere"
FLOORS = [
    ["errors", "machine", "regular"],
    ["documents", "folders", "text"],
    ["help", "limits", "seals", "terminal"],
    ["colours", "flags", "plain", "progress", "seeds", "shipped", "stopping", "storage"],
    ["buckets", "leases"],
    ["legend"],
    ["sample"],
    ["rasters"],
    ["events"],
    ["sources"],
    ["pairs"],
    ["exporting"],
    ["models"],
    ["diffusion"],
    ["painters"],
    ["generation"],
    ["scenes"],
    ["training"],
    ["evaluation", "benchmark", "labelling", "prediction"],
    ["preview", "understood"],
    ["check_data"],
    ["check_set"],
    ["api", "check", "completion", "init"],
    ["studio"],
    ["__init__"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
NETWORKS = {
    *(
        f"models/detectors/{name}.py"
        for name in ("bit", "changeformer", "changer", "fcsn", "lightcdnet", "resnet", "siam_unet", "snunet")
    ),
    *(f"models/{name}.py" for name in ("denoiser", "efficientnet", "first_stage", "segmenter")),
}
"""Files of networks: what one is built from may be long, and have as many parameters as its paper."""
MAX_LINES, MAX_PARAMETERS = 60, 8
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
LIGHT = {"diffusion.options", "labelling.options", "models.info"}
"""Files of heavy rooms that hold words alone: whoever needs the words may read them, without torch."""
INSIDE = {
    "events": "options correlation instances placement bank ground disappearance appearance regions transitions engine "
    "__init__",
    "rasters": "unplaced facts ground tiff flat gate values classes __init__",
    "sources": "problems base joined files entries splits options matching dates provenance official layouts alone "
    "drafts legends unchanged tiles __init__",
    "pairs": "names split layouts annotations record summary card labels masks codec containers hub metadata kept "
    "reader semantics unlabelled pictures report sheet writer __init__",
    "painters": "base checked exemplars pasting diffusion registry __init__",
    "exporting": "options items renewed target base folders opencd tables shapes coco yolo xview2 taco registry export "
    "__init__",
    "prediction": "options windows inputs predict __init__",
    "labelling": "options windows masks regions pictures networks predictions reading records label __init__",
    "generation": "nuisances found second targets like options fit tiles channel job learning lanes planners plan "
    "executors finish shard hands turns fidelity painting carried dataset prepare shares cluster generate simulate "
    "speed __init__",
    "studio": "__init__ options light edits painting uploads keeping review session snippets jobs studio pictures acts "
    "charts looks reports wiring paint_tab review_tab generate_tab page server",
    "scenes": "options vectors inputs planning exemplars settings prepare rasters_out work paint descriptions report "
    "tiles generate __init__",
}
"""Files of a room, each of which may import those before it."""


def module_of(path: Path) -> str:
    """Dotted name below the package: "events.bank", "events" for its __init__."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("changeanywhere.") in MODULES else module for name in whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "changeanywhere":
                found.add("__init__")
            elif name.startswith("changeanywhere."):
                found.add(name.removeprefix("changeanywhere."))
    return found - {module_of(path)}


def floor_of(module: str) -> int:
    return FLOOR_OF[module.partition(".")[0]]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downward(module: str) -> None:
    own = module.partition(".")[0]
    for other in imported_modules(MODULES[module]) - LIGHT:
        room = other.partition(".")[0]
        assert room == own or floor_of(other) < floor_of(module), f"{module} imports {other}, which stands above it"


@pytest.mark.parametrize("room", INSIDE)
def test_imports_go_downward_inside_a_room(room: str) -> None:
    order = INSIDE[room].split()
    files = [module for module in MODULES if module.partition(".")[0] == room]
    inside = {module: module.split(".")[1] if "." in module else "__init__" for module in files}
    assert set(inside.values()) == set(order), "every file has its place"
    for module, name in inside.items():
        for other in imported_modules(MODULES[module]) & set(files):
            before = order.index(inside[other]) < order.index(name) or inside[other] == name == "executors"
            assert before, f"{module} imports {other}, which stands above it"


def test_imports_go_in_no_circle() -> None:
    """File by file, over the whole house, imports inside functions among them."""
    below = {module: imported_modules(path) & set(MODULES) for module, path in MODULES.items()}
    while below:
        ground = [module for module, others in below.items() if not others & set(below)]
        assert ground, f"imports in a circle among {sorted(below)}"
        for module in ground:
            del below[module]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


def size_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Lines, decorators left out, and parameters, ``self`` and ``cls`` left out."""
    assert function.end_lineno is not None
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if a]
    return function.end_lineno - function.lineno + 1, len([name for name in names if name not in ("self", "cls")])


def too_large(path: Path, tree: ast.AST, within: str = "") -> set[str]:
    """``folder/file.py:Class.function`` of all functions above the limits, nested ones included."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines, parameters = size_of(node)
            if lines > MAX_LINES or parameters > MAX_PARAMETERS:
                found.add(f"{path.relative_to(PACKAGE).as_posix()}:{name}")
        found |= too_large(path, node, name)
    return found


def test_functions_stay_small() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).as_posix() not in NETWORKS]
    found = set().union(*(too_large(file, ast.parse(file.read_text())) for file in files))
    assert not found, f"longer than {MAX_LINES} lines, or more than {MAX_PARAMETERS} parameters"
    assert all((PACKAGE / name).is_file() for name in NETWORKS)


def test_too_large_functions_are_found() -> None:
    parameters = ", ".join(f"p{i}" for i in range(MAX_PARAMETERS + 1))
    body = "        pass\n" * MAX_LINES
    source = (
        f"class A:\n    def fits(self, *, {parameters[4:]}): ...\n    async def wide(self, {parameters}): ...\n"
        f"    def long(self):\n{body}\ndef f():\n    def inner(*, {parameters[4:]}, **more): ...\n"
    )
    found = too_large(PACKAGE / "x.py", ast.parse(source))
    assert found == {"x.py:A.wide", "x.py:A.long", "x.py:f.inner"}


@pytest.mark.parametrize(
    "code",
    [
        "import changeanywhere",
        "from changeanywhere.cli import run; run(['--help'])",
        "from changeanywhere.cli import run; run(['simulate', '--help'])",
        "import changeanywhere.generation.simulate",
        "import changeanywhere.generation.generate",
        "import changeanywhere.scenes.generate",
        "import changeanywhere.check",
        "import changeanywhere; changeanywhere.load_source; changeanywhere.simulate; changeanywhere.load_pairs",
    ],
)
def test_no_torch(code: str) -> None:
    check = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
