"""What the fuzzer tries: files damaged at random, odd options, odd folders, the reported cases, their siblings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_seeds import GENERATE, PASTE, SEEDS, SIMULATE, Draw, png_of_size
from fuzz_world import Trial

VALUES = [
    *(
        "-1",
        "0",
        "1",
        "2",
        "3",
        "64",
        "1000000000",
        "100000000000000000000",
        "1e9",
        "0.5",
        "-0.0",
        "nan",
        "inf",
        "-inf",
    ),
    *("", "null", "true", "[]", "{}", "[1,2", "{a: b", "[nan,1]", "[0.2,0.1]", "[-1,-1]", '{"x": 1}', '{"0-1": nan}'),
    *("../x", "a/../../b", "/", "pipe", "victim/file", "src", "x" * 5000, "é", "\u202eabc", "\x1b[2J", "s3://b/x"),
    *("&a [*a]", "!!python/object/apply:os.system [id]", "[" * 2000, "cuda:7", "meta", "float16", "ddim", "1:99:99"),
]
FLAGS = {
    "generate": "seed num-pairs pairs-per-image shard-size batch-size num-steps free-fraction guidance-scale eta "
    "sampler known-noise dilate-cells window-margin exemplar-strength image-format device dtype num-threads method "
    "legend legend-map masks-t2 model tile-size bands stretch licences max-megapixels on-error class-names first-class "
    "ignore-value source out targets.no-change targets.ratios targets.class-pairs events.kinds events.margin "
    "events.min-area events.scale events.spread events.events-per-pair events.max-share events.group-size "
    "events.transitions events.min-area-m2 nuisances.season nuisances.jpeg nuisances.blur nuisances.dates "
    "filter.model filter.action filter.min-score filter.attempts painter-options config",
    "simulate": "seed num-pairs pairs-per-image tile-size legend class-names first-class ignore-value bands stretch "
    "targets.no-change targets.ratios events.kinds events.min-area events.scale events.spread events.transitions "
    "source out config max-megapixels on-error",
    "check": "preview legend legend-map model bands tile-size class-names max-megapixels first-class config",
    "evaluate": "pairs model source judge real-pairs num-images num-steps max-pairs batch-size seed out config",
    "benchmark": "pairs name shares seeds detectors pretraining change-classes rivals val-share lists paper-tables "
    "num-panels out config pretrain.num-steps scratch-learning-rates",
    "init": "class-names model config",
    "train segmenter": "data.source data.tile-size segmenter.batch-size segmenter.crop-size segmenter.learning-rate "
    "segmenter.warmup-steps segmenter.backbone run.seed run.mixed-precision run.num-workers out config init",
}
TRAIN = [
    "--data.source=src",
    "--data.tile-size=64",
    "--segmenter.backbone=unet",
    "--segmenter.crop-size=32",
    "--out=out",
]
TRAIN += ["--segmenter.batch-size=2", "--segmenter.warmup-steps=0", "--run.num-workers=0", "--segmenter.num-steps=1"]
BASES: dict[str, list[str]] = {
    "generate": GENERATE,
    "simulate": SIMULATE,
    "check": ["check", "src"],
    "evaluate": ["evaluate", "--pairs=nowhere", "--out=out"],
    "benchmark": ["benchmark", "--pairs=nowhere", "--out=out"],
    "init": ["init", "src"],
    "train segmenter": ["train", "segmenter", *TRAIN],
}
TEXTS = [
    b"", b"[]", b"{}", b"null", b"{", b"[" * 100_000, b'{"a": ' * 5000, b"NaN", b'{"a": Infinity}', b"\xff\xfe\x00",
    b"\0" * 9, b"1" * 10_000, b"\xef\xbb\xbf", b"a: &a [*a]", b"&x [1]: 2", b"2024-99-99", b'"\\ud800"', b"- " * 4000,
    b"a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b, *b]", b"=cmd()\n",
    b'{"classes": [{"name": "\\u001b[2J", "color": [0, 0, 0]}]}', b'{"classes": [{"name": "a", "color": [0, 0, 999]}]}',
]  # fmt: skip
SCALARS: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    10**9,
    10**30,
    1e300,
    "",
    "x",
    "../x",
    "/etc/passwd",
    [],
    {},
    [[]],
    {"a": 1},
    "é" * 9,
]


def other_bytes(content: bytes, draw: Draw) -> bytes:
    """Cut short, emptied, bytes changed, put in or taken out; or something else altogether."""
    how = draw(["cut", "flip", "insert", "remove", "double", "text", "json"])
    place = draw(0, max(0, len(content) - 1))
    if how == "text":
        return bytes(draw(TEXTS))
    if how == "json" or not content:
        return other_json(content, draw)
    if how == "cut":
        return content[:place]
    if how == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw(0, 7))]) + content[place + 1 :]
    if how == "insert":
        return content[:place] + bytes(draw([b"\0", b"\xff" * 9, b'"', b"\n", b",,,", b"{"])) + content[place:]
    return content[:place] + content[place + draw(1, 64) :] if how == "remove" else content + content


def other_json(content: bytes, draw: Draw) -> bytes:
    """A value in the middle replaced, removed or added."""
    try:
        whole = json.loads(content)
    except ValueError:
        return bytes(draw(TEXTS))
    place = whole
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key: Any = draw(list(keys))
        if isinstance(place[key], dict | list) and place[key] and draw([True, True, False]):
            place = place[key]
            continue
        if draw([True, True, True, False]):
            place[key] = draw(SCALARS)
        elif isinstance(place, dict):
            del place[key]
        else:
            place.append(draw(SCALARS))
        break
    return json.dumps(whole).encode()


def other_file(root: Path, draw: Draw) -> tuple[str, bool]:
    """Damage one file of the world; its name, and whether it is an image of the finished set."""
    part = draw(["src", "model", "set", "recipes", "src", "set"])
    files = sorted(path for path in (root / part).rglob("*") if path.is_file() and not path.is_symlink())
    file: Path = draw(files)
    how = draw(["bytes", "bytes", "bytes", "bytes", "link", "pipe", "folder", "gone", "size"])
    content = file.read_bytes()
    file.unlink()
    if how == "bytes":
        file.write_bytes(other_bytes(content, draw))
    elif how == "link":
        file.symlink_to(draw([root / "victim" / "file", root / "nowhere", file, root / "victim", "/dev/zero"]))
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "size":
        file.write_bytes(png_of_size(draw([1, 64, 30_000, 2**31 - 1]), draw([1, 64, 30_000]), draw([0, 2, 3, 6])))
    return f"{part}{file.suffix}", part == "set" and file.suffix == ".png"


def damaged_files(root: Path, draw: Draw) -> Trial:
    """One to three files are not what they were."""
    damaged = [other_file(root, draw) for _ in range(draw(1, 3))]
    again = [each.replace("--out=out", "--out=set") for each in PASTE]
    recipe = [f"--config=recipes/{draw(['generate.yaml', 'map.yaml'])}"]
    commands = [
        PASTE,
        GENERATE,
        SIMULATE,
        ["check", "src"],
        ["check", "set"],
        again,
        ["check", "model"],
        [*SIMULATE, *recipe],
    ]
    commands += [["train", "segmenter", *TRAIN], ["init", "src"], [*GENERATE, "--legend-map=recipes/map.yaml"]]
    command = draw(commands)
    images = any(of_images for _, of_images in damaged)
    return Trial(
        f"files: {min(name for name, _ in damaged)}",
        [command],
        refuse=images and command == ["check", "set"],
        outputs=("out", "set", *(["src"] if command[0] == "init" else [])),
        checked=images,
    )


def odd_options(root: Path, draw: Draw) -> Trial:
    """One to three options have odd values."""
    command = draw(sorted(FLAGS))
    flags = [f"--{draw(FLAGS[command].split())}={draw(VALUES)}" for _ in range(draw(1, 3))]
    named = [value for flag in flags for name, _, value in [flag.partition("=")] if name in ("--out", "--preview")]
    if any(value.startswith(("/", "..", "a/..", "victim")) for value in named):  # where others' files are: not named
        flags, named = [flag for flag in flags if not flag.startswith(("--out", "--preview"))], []
    outputs = ["out", *(value.partition("/")[0] for value in named if value not in ("src", "pipe", ""))]
    if command == "init":
        outputs.append("src")
    return Trial(f"options of {command}", [[*BASES[command], *flags]], outputs=tuple(outputs))


def odd_folders(root: Path, draw: Draw) -> Trial:
    """The output folder is a link, a file, somebody's, in the source, or holds links."""
    how = draw(["link", "file", "foreign", "inside", "address", "loop", "hidden"])
    command = draw([PASTE, SIMULATE])
    outputs: tuple[str, ...] = ("out",)
    out, refuse = root / "out", False
    if how == "link":
        (root / "real").mkdir()
        out.symlink_to(root / "real")
        outputs = ("out", "real")
    elif how == "file":
        out.write_bytes(b"x")
        refuse = True
    elif how == "foreign":
        out.mkdir()
        (out / "thesis.tex").write_bytes(b"precious")
        refuse = True
    elif how == "loop":
        out.symlink_to(out)
        refuse = True
    elif how == "hidden":
        out.mkdir()
        (out / draw(["A", "label1", "plan"])).write_bytes(b"x")
        refuse = True
    else:
        place = (
            draw(["src/out", "src/images/out", "src"])
            if how == "inside"
            else draw(["ftp://b/x", "http://b", "file:///x"])
        )
        command = [each.replace("--out=out", f"--out={place}") for each in command]
        refuse, outputs = True, ()
    return Trial(f"folder: {how}", [command], refuse, outputs)


def a_seed(root: Path, draw: Draw) -> Trial:
    """One of the reported cases, or of its siblings."""
    return SEEDS[draw(sorted(SEEDS))](root, draw)


KINDS: list[Callable[[Path, Draw], Trial]] = [
    damaged_files,
    damaged_files,
    odd_options,
    odd_options,
    odd_folders,
    a_seed,
]
