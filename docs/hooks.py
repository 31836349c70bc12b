"""What the site adds to the pages of docs/ while it is built (``make docs``).

Pages that lie elsewhere in the repository, files that pages link to, notebooks as executed, formulas as MathML.
Nothing is fetched.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
ASSETS = "src/changeanywhere/assets"
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "card-mini.md": f"{ASSETS}/mini/README.md",
    "card-mini-segmenter.md": f"{ASSETS}/mini-segmenter/README.md",
    "card-mini-detector.md": f"{ASSETS}/mini-detector/README.md",
    "weights-mini.md": "weights/mini/README.md",
}
"""Page of the site → file of the repository."""
LINK = re.compile(r"(?<!!)\[((?:[^\[\]\n]|\n(?!\n)|\[[^\]\n]*\]){0,300})\]\(([^)\s]{1,300})\)")
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2`*$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r" *(?:[-*+]|\d+\.) ")
BLOCK, INLINE = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL), re.compile(r"\$`([^`]+)`\$")
KEPT = 60
"""Lines of a cell's printed output that are shown."""


def on_config(config: Any) -> Any:
    """A page that the navigation does not name stands at its end, so that none is lost."""
    named = str(config["nav"])
    left = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]
    if left:
        config["nav"].append({"More": left})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Pages from elsewhere, notebooks, and the files that any of them links to."""
    from mkdocs.structure.files import File

    texts = {file.src_uri: file.content_string for file in files if file.src_uri.endswith(".md")}
    made = {name: _from_elsewhere(path) for name, path in PAGES.items()}
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    made |= {f"notebooks/{path.stem}.md": _notebook(path) for path in notebooks}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name, text in (texts | made).items():
        for _, target in LINK.findall(text):
            path = _outside(name, target)
            if path and path.is_file() and _page_of(path) is None and files.get_file_from_path(_copied(path)) is None:
                files.append(File.generated(config, _copied(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/ lead to copies; lists begin behind a blank line, as elsewhere; formulas are MathML."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_text(markdown[end : fence.start()], page.file.src_uri), fence.group()]
        end = fence.end()
    return "".join([*parts, _text(markdown[end:], page.file.src_uri)])


def _text(text: str, name: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        if ITEM.match(line) and not line.startswith(" ") and lines and _is_prose(lines[-1]):
            lines.append("")
        lines.append(line)
    text = "\n".join(lines)
    text = BLOCK.sub(
        lambda found: f'<div class="formula">{convert(found.group(1).strip(), display="block")}</div>', text
    )
    text = INLINE.sub(lambda found: convert(found.group(1)), text)
    return LINK.sub(lambda found: _link(found.group(1), found.group(2), name), text)


def _is_prose(line: str) -> bool:
    """Of a paragraph, which a list would otherwise go on."""
    return bool(line.strip()) and not line.startswith(("#", ">", "|", " ")) and not ITEM.match(line)


def _link(words: str, target: str, name: str) -> str:
    path = _outside(name, target)
    if path is None:
        return f"[{words}]({target})"
    if not path.is_file():
        return words  # a folder has no page
    up, anchor = "../" * name.count("/"), target.partition("#")[2]
    return f"[{words}]({up}{_page_of(path) or _copied(path)}{'#' + anchor if anchor else ''})"


def _outside(name: str, target: str) -> Path | None:
    """What a link means that leaves docs/; None for all others."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    path = (ROOT / "docs" / name).parent.joinpath(target.partition("#")[0]).resolve()
    if path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT) or not path.exists():
        return None
    return path


def _page_of(path: Path) -> str | None:
    """The page that a file of the repository is on this site."""
    own = path.relative_to(ROOT).as_posix()
    return "index.md" if own == "README.md" else next((name for name, file in PAGES.items() if file == own), None)


def _copied(path: Path) -> str:
    own = path.relative_to(ROOT).as_posix()
    shown = path.suffix in (".png", ".jpg", ".svg", ".html")
    return f"source/{own}" if shown else f"source/{own}.txt"  # a browser shows it and does not save it


def _from_elsewhere(path: str) -> str:
    """Without front matter; links as they would stand in docs/."""
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)

    def moved(found: re.Match[str]) -> str:
        target = found.group(2)
        if "://" in target or target.startswith("#"):
            return found.group()
        file, hash_, anchor = target.partition("#")
        there = (ROOT / path).parent.joinpath(file).resolve()
        return f"[{found.group(1)}]({_from_docs(there)}{hash_}{anchor})"

    return LINK.sub(moved, text)


def _from_docs(path: Path) -> str:
    docs = ROOT / "docs"
    return path.relative_to(docs).as_posix() if path.is_relative_to(docs) else f"../{path.relative_to(ROOT).as_posix()}"


def _notebook(path: Path) -> str:
    """A notebook as a page: text, code, and what it said when it was executed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            kind, shown = ("bash", source.partition("\n")[2]) if source.startswith("%%bash") else ("python", source)
            parts += [f"```{kind}\n{shown}\n```", *map(_output, _joined(cell["outputs"]))]
    return "\n\n".join([*parts, f"*Executed as it stands here; the file: [{path.name}]({path.name}).*\n"])


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was printed in one go, which may have come line by line."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if found and "text" in output and "text" in found[-1]:
            found[-1] = {"text": ["".join(found[-1]["text"]), "".join(output["text"])]}
        else:
            found.append(output)
    return found


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{"".join(data[kind]).strip()}" alt="output of the cell above">'
    text = "".join(output.get("text") or data.get("text/plain") or [])
    lines = text.rstrip().splitlines()
    shown = [*lines[:KEPT], f"… {len(lines) - KEPT} more lines"] if len(lines) > KEPT else lines
    return f'<pre class="said">{html.escape(chr(10).join(shown))}</pre>'
