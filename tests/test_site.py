"""The documentation site: everything has its place in it, links lead somewhere, code in it is what it says it is."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "changeanywhere"
PAGES = sorted(DOCS.glob("*.md"))
CARDS = {f"card-{name}.md" for name in ("mini", "mini-segmenter", "mini-detector")}
MADE = {*CARDS, "weights-mini.md", "changelog.md", "contributing.md"}
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def navigation() -> list[str]:
    """Pages of the site in their order."""
    text = (ROOT / "mkdocs.yml").read_text().replace("!!python/object/apply:", "!")

    class Loader(yaml.SafeLoader):
        """Passes over what names Python."""

    Loader.add_constructor(None, lambda *_: None)
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, str):
            found.append(node)
        else:
            for each in node.values() if isinstance(node, dict) else node:
                walk(each)

    walk(yaml.load(text, Loader)["nav"])
    return found


def built(tmp_path: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The site, built as ``make docs`` builds it."""
    pytest.importorskip("material", reason="the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    return tmp_path / "site", subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    site, finished = built(tmp_path)
    assert finished.returncode == 0, finished.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(), flags=re.DOTALL)
        loaded = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="(https?:)?//[^"]*"', text)
        assert loaded == [], f"{page.name} fetches something"
        for target in re.findall(r'(?:href|src)="([^"#:?]+)(?:#[^"]*)?"', text):
            assert (page.parent / target).exists() or page.name == "404.html", f"{page.name}: {target}"
    assert "MathML" in (site / "method.html").read_text() and "$$" not in (site / "method.html").read_text()


def test_every_page_is_in_the_navigation() -> None:
    named = navigation()
    assert len(named) == len(set(named))
    assert [page.name for page in PAGES if page.name not in named] == []
    assert [name for name in named if "/" not in name and name not in MADE and not (DOCS / name).is_file()] == []


def test_two_clicks_from_the_readme() -> None:
    """Own classes, own CRS, cluster, licence of a generated set: at most two links away."""
    wanted = {"own-classes.md", "own-crs.md", "cluster.md", "licences.md"}
    near = {Path(target).name for target in re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text())}
    further = {
        Path(target).name
        for name in near
        if (DOCS / name).suffix == ".md"
        for target in re.findall(r"\]\(([^)#:]+\.md)", (DOCS / name).read_text())
    }
    assert wanted <= near | further
    assert wanted <= near, "the README itself names them"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        notebook = target.startswith("notebooks/") and (DOCS / target).with_suffix(".ipynb").is_file()
        assert ":" in target or target in MADE or notebook or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_in_the_pages_is_code(page: Path) -> None:
    """Python parses, and where it is said to stand in a file it does; YAML and JSON are read."""
    for kind, title, code in FENCE.findall(page.read_text()):
        if kind == "python":
            ast.parse(textwrap.dedent(code))
            if title:
                here, there = ("".join(text.split()) for text in (code, (SOURCE / title).read_text()))
                assert here in there, f"{page.name}: not in {title}\n{code}"
        elif kind == "yaml":
            assert yaml.safe_load(code) is not None
        elif kind == "json":
            json.loads(code)


def test_reference_of_names_is_current() -> None:
    page = runpy.run_path(str(DOCS / "api_reference.py"))
    assert (DOCS / "api.md").read_text() == page["reference"](), "make reference"


@pytest.mark.parametrize("name", ["1-generate", "2-train", "3-evaluate"])
def test_notebooks_are_their_sources_executed(name: str) -> None:
    pytest.importorskip("nbclient", reason="the extra docs")
    source = runpy.run_path(str(DOCS / "notebooks" / "execute.py"))["notebook_of"](
        (DOCS / "notebooks" / f"{name}.py").read_text()
    )
    kept = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text())
    assert ["".join(c["source"]) for c in kept["cells"]] == [c["source"] for c in source.cells], "make notebooks"
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code) and any(cell["outputs"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    """docs/tutorial.md in its order; the scores that it prints hold roughly."""
    text = (DOCS / "tutorial.md").read_text()
    programs = Path(sys.executable).parent
    for kind, _, code in FENCE.findall(text):
        commands = [[sys.executable, "-c", code]]
        if kind == "console":
            words = [shlex.split(line.removeprefix("$ "))[1:] for line in code.splitlines() if line.startswith("$ ")]
            commands = [[str(programs / "changeanywhere"), *each] for each in words]
        for command in commands:
            finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
            assert finished.returncode == 0, f"{command}\n{finished.stderr}"
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["overall"]["f1"]
    (said,) = re.findall(r"F1 of \*\*(0\.\d+)\*\*", text)
    assert abs(found - float(said)) < 0.15


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="the extra docs")
    module = runpy.run_path(str(DOCS / "notebooks" / "execute.py"))
    for name in module["NAMES"]:
        module["execute"](name, tmp_path)
