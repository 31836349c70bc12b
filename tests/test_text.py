"""Names, credits and recipes of others: escaped for where they go, read within bounds."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from changeanywhere import text
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.paper_shape import latex as latex_tables
from changeanywhere.benchmark.pictures import curves
from changeanywhere.benchmark.tables import _line, _write_csv
from changeanywhere.cli import run
from changeanywhere.documents import DocumentError, finite, parse_json, parse_yaml, to_json
from changeanywhere.errors import ConfigError, LegendError
from changeanywhere.events.transitions import load_table
from changeanywhere.legend import Legend, LegendClass, load_legend, load_legend_map
from changeanywhere.models.folder import save_model
from changeanywhere.shipped import ROOT
from conftest import tiny_model, write_source

HOSTILE = [
    "x\n# heading\n<script>alert(1)</script>",
    "a|b|c",
    "`code` **bold** [link](javascript:alert(1)) ![x](http://x/y.png)",
    "\x1b[2J\x1b]0;title\x07red",
    "\u202egnp.exe",
    '=HYPERLINK("http://x","y")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\\input{/etc/passwd} $x$ 50% a_b #1 {y} ~ ^ &",
    '"><svg onload=alert(1)>',
    "---\nlicense: mit\n---",
    "</pre></td>&lt;",
    "a\r\nb\u2028c\x00d\x85e",
]


class Tags(HTMLParser):
    """Counts tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.update([tag, *(f"{tag}.{name}" for name, _ in attrs)])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_means_itself_wherever_it_goes(hostile: str) -> None:
    line = text.markdown(hostile)
    assert "\n" not in line and line.isprintable()
    assert not re.search(r"(?<!\\)[`*\[\]|~]|<", line)
    page = Tags()
    page.feed(f"<td title='{text.xml(hostile)}'>{text.xml(hostile)}</td>")
    assert page.seen == Counter({"td": 1, "td.title": 1})
    ElementTree.fromstring(f"<svg><text a='{text.xml(hostile)}'>{text.xml(hostile)}</text></svg>")
    tex = text.latex(hostile).replace(r"\textbackslash{}", "").replace(r"\textasciicircum{}", "")
    assert not re.search(r"(?<!\\)[{}$&#_%]|\\[a-z]", tex.replace(r"\textasciitilde{}", ""))
    cell = text.csv_cell(hostile)
    assert isinstance(cell, str) and cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
    span = text.code_span(hostile)
    fence = re.match("`+", span)
    assert fence and span.endswith(fence[0]) and "\n" not in span
    assert fence[0] not in span[len(fence[0]) : -len(fence[0])].split(), "it ends where it ends"
    assert text.visible(hostile).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "name",
    ["bareland", "vegetation_mixed", "fc_siam_diff", "changeformer_mit-b0", "CC-BY-4.0", "Zürich", "草地", "می‌خواهم"],
)
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    for function in (text.markdown, text.xml, text.one_line, text.visible, text.csv_cell):
        assert function(name) == name
    assert text.code_span(name) == f"`{name}`"
    for number in ("-", "-1.2", "+3.4 ± 0.5 (within noise)", "12.5 ± 1.0", "", 3, None, 0.5):
        assert text.csv_cell(number) == number


HOSTILE_CREDITS = HOSTILE[:5] + HOSTILE[9:]


@pytest.mark.parametrize("hostile", HOSTILE_CREDITS)
def test_a_generated_set_says_names_as_they_are(tmp_path: Path, hostile: str) -> None:
    """The reported case: a credit became a heading and a script in the dataset card. Class names and licences too."""
    if "\x00" in hostile:
        hostile = hostile.replace("\x00", "")
    legend = load_legend("mini")
    first = replace(legend.classes[0], name=f"bare {hostile}")
    legend = Legend(f"of {hostile}", (first, *legend.classes[1:]))
    source = write_source(tmp_path / "src", num_tiles=2, legend=legend)
    with (source / "provenance.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("patch", "scene", "licence", "attribution"),
                ("tile_0", "a", hostile, hostile),
                ("tile_1", "b", hostile, hostile),
            ]
        )
    out = tmp_path / "out"
    save_model(replace(tiny_model(), legend=legend), tmp_path / "model")
    arguments = ["generate", "--source", str(source), "--out", str(out), "--num-pairs", "2", "--tile-size", "64"]
    arguments += ["--model", str(tmp_path / "model"), "--num-steps", "2", "--events.min-area", "16"]
    assert run(arguments) == 0
    card = (out / "README.md").read_text()
    head, _, body = card.partition("# Bi-temporal")
    assert head.startswith("---\n") and head.endswith("---\n") and head.count("---") == 2
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "## Counts",
        "## Licences and credit",
        "## How it was made",
    ]
    prose = re.sub(r"```json.*?```", "", body, flags=re.DOTALL)
    assert "<" not in prose and "\x1b" not in card
    table = prose[prose.index("| class | index") :]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3, 4}
    page = Tags()
    page.feed((out / "report.html").read_text())
    assert not {"h1.onload", "svg.onload"} & set(page.seen) and page.seen["script"] == 1, "the page's own"
    own = re.search(r"<script>.*?</script>", (ROOT / "assets" / "report.html").read_text(), re.DOTALL)
    assert own is not None and own[0] in (out / "report.html").read_text(), "and nothing in it"
    assert page.seen["pre"] == 1 and page.seen["li"] == legend.num_classes
    for line in (out / "metadata.jsonl").read_text().rstrip("\n").split("\n"):
        assert json.loads(line, parse_constant=pytest.fail)["attribution"] is not None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_tables_of_a_benchmark(tmp_path: Path, hostile: str) -> None:
    row = {"detector": hostile, "arm": hostile, "share": 5, "f1": 0.5, "f1_error": 0.1}
    ElementTree.fromstring(curves([row], 0.1))
    line = _line([hostile, "1"])
    assert len(re.findall(r"(?<!\\)\|", line)) == 3 and "\n" not in line
    tex = latex_tables([(hostile, [["method", "F1"], [hostile, "1.0 ± 0.1"]])])
    assert tex.count("\\begin{") == tex.count("\\end{") == 1 and tex.splitlines()[0].startswith("% ")
    assert len(tex.splitlines()) == 5
    _write_csv(tmp_path / "t.csv", [["a", "b"], [hostile, -1.5]])
    (cell, number) = list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text())))[1]
    assert cell[0] not in "=+-@" and number == "-1.5"


PATHS = ["x/../../ESCAPED", "..", ".", "", "/abs", "a\\b", "a b", "a\n", "~x", "-rf", "a:b", "ü", "." * 300]


@pytest.mark.parametrize("name", PATHS)
def test_names_of_arms_lead_nowhere(tmp_path: Path, name: str) -> None:
    options = BenchmarkOptions(tmp_path / "out", pairs="x", pretraining={name: "x"})
    with pytest.raises(ConfigError, match=r"pretraining is .* allowed: names of letters"):
        options.check()


def test_arms_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretraining = json.dumps({"x/../../../../../ESCAPED": "o"})
    deep = tmp_path / "sub" / "deep"
    deep.mkdir(parents=True)
    assert run(["benchmark", "--out", str(deep / "out"), "--pairs", "o", "--pretraining", pretraining]) == 2
    assert "ESCAPED" in capsys.readouterr().err and not list(tmp_path.rglob("*ESCAPED*"))


def test_messages_do_not_reach_the_terminal_as_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for hostile in ("\x1b[2J", "\x9b31m", "\u202e", "\x07", "a\nb"):
        assert run(["check", f"/nowhere{hostile}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error[:-1].isprintable()


def laughs(count: int = 9) -> str:
    """A billion of them in 500 bytes."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, count)]
    return "\n".join(lines)


BAD_YAML = {
    "laughs": laughs(),
    "laughs in mappings": "\n".join(
        [
            "a0: &a0 {x: 1}",
            *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}, s: *a{i - 1}}}" for i in range(1, 20)),
        ]
    ),
    "deep": "[" * 5000 + "]" * 5000,
    "deep mappings": "{a: " * 3000 + "1" + "}" * 3000,
    "deep lists": "- " * 3000 + "x",
    "itself": "a: &a [*a]",
    "many aliases": "a: &a 1\nb: [" + ", ".join(["*a"] * 1000) + "]",
    "large": "a: " + "x" * (5 * 2**20),
    "python": "a: !!python/object/apply:os.system [touch x]",
    "damaged": "a: [1, 2",
    "date": "a: 2024-99-99",
    "no text": "a: \x00",
    "a key twice": "seed: 1\nevents:\nnum_pairs: 2\nevents: {min_area: 3}",
    "a key twice inside": "a: [1, {b: 1, c: [2], b: 3}]",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_is_bounded_for_every_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(BAD_YAML[name])
    with pytest.raises(DocumentError) as caught:
        parse_yaml(BAD_YAML[name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    mini = load_legend("mini")
    for read in (
        lambda: load_legend_map(mini, load_legend("openearthmap"), file),
        lambda: load_table(str(file), mini),
    ):
        with pytest.raises(LegendError, match=re.escape(str(file))):
            read()
    for command in (["train", "segmenter"], ["generate"], ["benchmark"]):
        for given in (["--config", str(file)], [f"--config={file}"]):
            assert run([*command, *given, "--out", str(tmp_path / "out")]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            if name not in ("python", "date", "no text"):
                assert str(file) in error


def test_values_of_flags_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("{" + laughs().replace("\n", ", ") + "}", "[" * 5000 + "]" * 5000, "{a: " * 2000 + "1" + "}" * 2000):
        assert run(["benchmark", "--pairs", "o", "--out", str(tmp_path), "--pretraining", value]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_key_that_is_given_twice_is_named() -> None:
    with pytest.raises(DocumentError, match=r"^'events' is given twice \(line 4\)$"):
        parse_yaml(BAD_YAML["a key twice"])
    with pytest.raises(DocumentError, match=r"^'b' is given twice \(line 1\)$"):
        parse_yaml(BAD_YAML["a key twice inside"])
    with pytest.raises(DocumentError, match=r"^'name' is given twice$"):
        parse_json('{"classes": [{"name": "a", "index": 1, "name": "b"}]}')
    for sound in ("[a, a, {a: a}, {a: {a: [a]}}]", "a: b\nb: a\nc: {a: b, b: a}", "- a\n- a: a\n  b: b"):
        assert parse_yaml(sound)
    with pytest.raises(DocumentError, match="unhashable"):
        parse_yaml("? [a, a]\n: 1")
    assert parse_json('[{"a": 1}, {"a": 2, "b": {"a": 3}}]')[1]["b"] == {"a": 3}


def test_sound_yaml_is_read_as_before() -> None:
    assert parse_yaml("a: &x [1, 2.5, yes]\nb: *x\nc: {d: null}") == {
        "a": [1, 2.5, True],
        "b": [1, 2.5, True],
        "c": {"d": None},
    }
    for recipe in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")):
        assert isinstance(parse_yaml(recipe.read_bytes()), dict)


@pytest.mark.parametrize(
    "content", ["NaN", "[Infinity]", "-Infinity", "[" * 100_000, "{", "", "1" * 5000, "x" * (5 * 2**20)]
)
def test_json_of_others_is_bounded(tmp_path: Path, content: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)
    (tmp_path / "legend.json").write_text(content)
    with pytest.raises(LegendError, match=r"legend\.json: "):
        load_legend(tmp_path / "legend.json")


def test_json_that_is_written_has_no_infinity() -> None:
    content: dict[str, Any] = {"a": math.inf, "b": [1.5, math.nan, (-math.inf, "NaN")], "c": {"d": 2}}
    assert json.loads(to_json(content), parse_constant=pytest.fail) == finite(content)
    assert finite(content) == {"a": None, "b": [1.5, None, [None, "NaN"]], "c": {"d": 2}}
    assert to_json({"ü": 1}, ensure_ascii=False) == '{"ü": 1}' and to_json([1], indent=1) == "[\n 1\n]"
    assert LegendClass(1, "a", (0, 0, 0)).name == "a"
