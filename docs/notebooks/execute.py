"""Executes the notebooks of this folder in their order and writes them with their outputs: ``make notebooks``.

The sources are the ``.py`` files (cells begin with ``# %%``); a test executes them and compares (tests/test_site.py).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NAMES = ("1-generate", "2-train", "3-evaluate")
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook_of(source: str) -> Any:
    """Percent format → a notebook without outputs."""
    book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    pieces = CELL.split(source)[1:]
    for number, (kind, text) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        if kind:
            cell = nbformat.v4.new_markdown_cell(_uncommented(text))
        else:
            cell = nbformat.v4.new_code_cell(_uncommented(text) if text.startswith("# %%bash") else text.strip())
        cell["id"] = f"cell-{number}"
        book.cells.append(cell)
    return book


def _uncommented(text: str) -> str:
    return re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)


def execute(name: str, folder: Path) -> Any:
    """Run a notebook in ``folder``; raises where a cell does."""
    book = notebook_of((HERE / f"{name}.py").read_text(encoding="utf-8"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    NotebookClient(book, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    for cell in book.cells:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":  # progress is for whoever waits
            cell["outputs"] = [each for each in cell["outputs"] if each.get("name") != "stderr"]
    book["metadata"] = {"language_info": {"name": "python"}}
    return book


def main() -> None:
    """Execute all, in one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the set and the detector")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        nbformat.write(execute(name, work), HERE / f"{name}.ipynb")
        print(HERE / f"{name}.ipynb")


if __name__ == "__main__":
    main()
