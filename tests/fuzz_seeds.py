"""The reported cases, rebuilt: each changes the world in one of the ways in which files once broke a promise.

``SEEDS``: name → what makes it; ``draw`` picks among its siblings. The first twelve are what people download, the rest
is what people who mean harm write.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from safetensors.torch import load_file, save_file

from fuzz_world import Array, Trial

Draw = Callable[..., Any]
"""``draw(options)``: one of a list; ``draw(low, high)``: a number."""
EVENTS = ["--tile-size=64", "--events.min-area=16", "--num-pairs=4"]
SIMULATE = ["simulate", "--source=src", "--out=out", *EVENTS]
GENERATE = ["generate", "--source=src", "--model=model", "--out=out", "--num-steps=2", "--num-threads=1", *EVENTS]
GENERATE += ["--dtype=float32", "--shard-size=2", "--batch-size=2"]
PASTE = [*GENERATE[:4], *EVENTS, "--method=copy_paste", "--shard-size=2"]
MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


def masks_of(root: Path) -> dict[str, Array]:
    """Tile → mask."""
    return {f.stem: np.array(Image.open(f)) for f in sorted((root / "src" / "masks").glob("[!.]*.png"))}


def images_of(root: Path) -> dict[str, Array]:
    """Tile → image."""
    return {f.stem: np.array(Image.open(f)) for f in sorted((root / "src" / "images").glob("[!.]*.png"))}


def palette_of(root: Path) -> Array:
    """Colours of the world's legend, black first."""
    classes = json.loads((root / "src" / "legend.json").read_text())["classes"]
    return np.array([(0, 0, 0), *(entry["color"] for entry in classes)], np.uint8)


def write_tif(path: Path, values: Array, transform: Affine | None = None, crs: str | None = None, **more: Any) -> None:
    """``[H, W]`` or ``[H, W, C]``."""
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    colours, kinds = more.pop("colours", None), more.pop("kinds", None)
    size: dict[str, Any] = {
        "count": len(bands),
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
    }
    place = {} if transform is None else {"transform": transform, "crs": crs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(path, "w", driver="GTiff", **size, **place, **more)
    with file:
        if kinds:
            file.colorinterp = [ColorInterp[kind] for kind in kinds]
        if colours is not None:
            file.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(colours)})
        file.write(bands)


def png_of_size(width: int, height: int, kind: int = 2) -> bytes:
    """A header that claims a size, and hardly any pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def pairs_in(root: Path, label: Array | None = None) -> Path:
    """Two pairs of the field, of which 900 px of 4096 are changed."""
    rng = np.random.default_rng(0)
    for name in ("A", "B", "label"):
        (root / "p" / name).mkdir(parents=True)
    change = np.zeros((64, 64), np.uint8)
    change[10:40, 10:40] = 255
    for key in ("x", "y"):
        for name in ("A", "B"):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(root / "p" / name / f"{key}.png")
        Image.fromarray(change if label is None else label).save(root / "p" / "label" / f"{key}.png")
    return root / "p"


def bom(root: Path, draw: Draw) -> Trial:
    encoding = draw(list(MARKS))
    text = "patch,scene,split\r\ntile_0,s,train\r\ntile_1,s,train\r\n"
    (root / "src" / "provenance.csv").write_bytes(MARKS[encoding] + text.encode(encoding))
    legend = root / "src" / "legend.json"
    legend.write_bytes(MARKS[encoding] + legend.read_text().encode(encoding))
    return Trial("bom", [SIMULATE], truth=masks_of(root))


def cmyk_jpeg(root: Path, draw: Draw) -> Trial:
    """Ink is not light: what is read must be near the picture."""
    image = root / "src" / "images" / "tile_0.png"
    picture = Image.open(image).convert("CMYK")
    image.unlink()
    picture.save(image.with_suffix(".jpg"), quality=100, subsampling=0)

    def near(root: Path) -> None:
        if not (root / "out" / "A").is_dir():
            return
        seen = np.asarray(Image.open(image.with_suffix(".jpg")).convert("RGB")).astype(int)
        for file in (root / "out" / "A").glob("tile_0_*.png"):
            if np.abs(np.asarray(Image.open(file)).astype(int) - seen).mean() > 8:
                file.unlink()  # the sound check then misses it

    return Trial(
        "cmyk-jpeg", [PASTE, near, PASTE, ["check", "out"]], outputs=("out",), says="as it was written|reads? wit"
    )


def hidden_folders(root: Path, draw: Draw) -> Trial:
    for name in ("images", "masks"):
        hidden = root / "src" / name / ".ipynb_checkpoints"
        hidden.mkdir()
        (hidden / "tile_0-checkpoint.png").write_bytes((root / "src" / name / "tile_0.png").read_bytes())
        (root / "src" / name / f"._tile_{draw(0, 3)}.png").write_bytes(b"\0\x05\x16\x07")
    return Trial("hidden-folders", [SIMULATE], truth=masks_of(root))


def jpeg_in_tiff_mask(root: Path, draw: Draw) -> Trial:
    """Lossy files change classes: refused, or read as they were."""
    mask = root / "src" / "masks" / "tile_0.png"
    truth = masks_of(root)
    more: dict[str, Any] = draw([{"compress": "jpeg"}, {"compress": "webp"}, {"compress": "lerc", "max_z_error": 1}])
    values = np.stack([np.array(Image.open(mask))] * (3 if more["compress"] == "webp" else 1), -1)
    write_tif(mask.with_suffix(".tif"), values, **more)
    mask.unlink()
    return Trial("jpeg-in-tiff-mask", [SIMULATE], truth=truth)


def jpeg_label(root: Path, draw: Draw) -> Trial:
    folder = pairs_in(root)
    for file in (folder / "label").iterdir():
        Image.open(file).save(file.with_suffix(".jpg"), quality=draw(60, 95))
        file.unlink()
    return Trial("jpeg-label", [["check", "p"]], says=r"change ratio 0\.220")


class ModelCheckpoint:
    """Stands for a class that nobody here has."""


def ldm_lightning_callbacks(root: Path, draw: Draw) -> Trial:
    weights = {f"model.diffusion_model.{name}": torch.zeros(2, 2) for name in ("time_embed.0.weight", "out.2.weight")}
    content = {"state_dict": weights, "callbacks": {ModelCheckpoint: {"best": 1}}, "epoch": 3}
    torch.save(content, root / "a.ckpt")
    return Trial(
        "ldm-lightning-callbacks", [["import", "ldm", "a.ckpt", "--legend=mini", "--num-heads=2", "--out=out"]], True
    )


def nir_tagged_alpha(root: Path, draw: Draw) -> Trial:
    file = root / "src" / "images" / "tile_0.png"
    image = np.array(Image.open(file))
    nir = np.full((64, 64, 1), 90, np.uint8)
    nir[10:30, 10:30] = 0
    kinds = draw([["red", "green", "blue", "alpha"], ["red", "green", "blue", "undefined"]])
    transform = Affine(0.6, 0, 400_000, 0, -0.6, 5_000_000)
    write_tif(file.with_suffix(".tif"), np.concatenate([image, nir], -1), transform, "EPSG:32616", kinds=kinds)
    file.unlink()
    picked = draw([["--bands=[4,1,2]"], []])
    truth = masks_of(root) if picked or kinds[3] != "alpha" else {}
    return Trial("nir-tagged-alpha", [[*PASTE, *picked]], truth=truth)


def non_latin_names(root: Path, draw: Draw) -> Trial:
    for old, new in zip(
        ("tile_0", "tile_1"), draw([("図", "表"), ("tile 1", "tile_9"), ("é", "e\u0301x")]), strict=True
    ):
        for name in ("images", "masks"):
            (root / "src" / name / f"{old}.png").rename(root / "src" / name / f"{new}.png")
    return Trial("non-latin-names", [["check", "src"]], says="single-date tiles|tiles")


def openearthmap_without_xbd(root: Path, draw: Draw) -> Trial:
    folder = root / "oem"
    for city in ("aachen", "adelaide"):
        for name in ("images", "labels"):
            (folder / city / name).mkdir(parents=True)
        write_tif(folder / city / "labels" / f"{city}_1.tif", np.full((64, 64), 3, np.uint8))
    write_tif(folder / "aachen" / "images" / "aachen_1.tif", np.full((64, 64, 3), 9, np.uint8))
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("aachen_1.tif\nadelaide_1.tif\n" if split == "train" else "")
    return Trial("openearthmap-without-xbd", [["check", "oem"]])


def palette_geotiff_mask(root: Path, draw: Draw) -> Trial:
    """A palette in the legend's colours, in another order: read by colour, or refused."""
    truth, palette = masks_of(root), palette_of(root)
    order = np.roll(np.arange(len(palette)), draw(1, len(palette) - 1))
    for file in sorted((root / "src" / "masks").glob("[!.]*.png")):
        indices = np.argsort(order)[truth[file.stem]].astype(np.uint8)
        write_tif(file.with_suffix(".tif"), indices, colours=palette[order])
        file.unlink()
    return Trial("palette-geotiff-mask", [SIMULATE], truth=truth)


def palette_pairs(root: Path, draw: Draw) -> Trial:
    folder = pairs_in(root)
    colours = draw([[255, 255, 255, 0, 0, 0], [0, 0, 0, 0, 0, 255]])
    for file in (folder / "label").iterdir():
        changed = np.array(Image.open(file)) > 0
        image = Image.fromarray((changed != (colours[0] == 255)).astype(np.uint8), mode="P")
        image.putpalette(colours)
        image.save(file)
    return Trial("palette-pairs", [["check", "p"]], says=r"change ratio 0\.220")


def rotated_geotiff(root: Path, draw: Draw) -> Trial:
    pixel = draw(
        [Affine(0, 0.5, 4e5, 0.5, 0, 5e6), Affine.rotation(30) * Affine.scale(0.5), Affine(0.5, 0, 0, 0, -1, 0)]
    )
    crs = draw(["EPSG:32633", "EPSG:3857", "EPSG:2263", "EPSG:4326"])
    for name in ("images", "masks"):
        for file in sorted((root / "src" / name).glob("*.png")):
            write_tif(file.with_suffix(".tif"), np.array(Image.open(file)), pixel, crs)
    truth = masks_of(root)
    for file in (root / "src").rglob("*.png"):
        file.unlink()
    return Trial("rotated-geotiff", [[*SIMULATE, *draw([[], ["--events.min-area-m2=5"]])]], truth=truth)


def arm_escapes(root: Path, draw: Draw) -> Trial:
    arm = draw(["x/../../../../ESCAPED", "../ESCAPED", "/tmp/ESCAPED", "..", "a\nb"])
    stages = [f"--{s}.{o}" for s in ("pretrain", "finetune") for o in ("crop-size=64", "batch-size=2", "num-steps=1")]
    stages += [f"--{s}.warmup-steps=0" for s in ("pretrain", "finetune")]
    command = ["benchmark", "--out=out", "--pairs=set", "--pretraining", json.dumps({arm: "set"}), *stages]
    command += ["--run.num-workers=0", "--seeds=[0]", "--shares=[0]", "--num-panels=0", "--detectors=[fc_ef]"]
    return Trial("benchmark-arm-escapes-out", [command], True)


def card_injection(root: Path, draw: Draw) -> Trial:
    credit = draw(["x\n# heading\n<script>alert(1)</script>", "<script>alert(1)</script>", "|a|\x1b[2J", "=cmd()"])
    (root / "src" / "provenance.csv").write_text(f'patch,scene,licence,attribution\ntile_0,a,MIT,"{credit}"\n')
    return Trial("card-html-injection", [PASTE], truth=masks_of(root))


def damaged_marker(root: Path, draw: Draw) -> Trial:
    content = draw(["[]", "{}", "null", '{"files": []}', '{"files": {}, "records": [1]}', '{"files": null}', "1"])
    next((root / "set" / "shards").iterdir()).write_text(content)
    return Trial("damaged-marker", [["check", "set"]], True, ("set",))


def other_labels(root: Path, draw: Draw) -> Trial:
    command = ["train", "detector", "--out=out", "--detector.name=fc_ef", "--detector.pairs=set", "--run.save-every=1"]
    command += ["--detector.train-split=null", "--detector.val-split=null", "--detector.crop-size=64"]
    command += ["--detector.batch-size=2", "--detector.warmup-steps=0", "--run.num-workers=0", "--run.log-every=1"]

    def edit(root: Path) -> None:
        for file in (root / "set" / "label").iterdir():
            Image.fromarray(255 - np.asarray(Image.open(file))).save(file)

    first, again = [*command, "--detector.num-steps=1"], [*command, "--detector.num-steps=2"]
    return Trial("detector-resumes-on-other-labels", [first, edit, again], True)


def ldm_tracebacks(root: Path, draw: Draw) -> Trial:
    content = draw([
        {"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, {"state_dict": {}}, {"state_dict": []}, [], {},
        {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}}, torch.zeros(3), "x",
        {"state_dict": {1: torch.zeros(1)}}, {"state_dict": {"first_stage_model.encoder.x": torch.zeros(2)}},
    ])  # fmt: skip
    torch.save(content, root / "a.ckpt")
    return Trial(
        "import-ldm",
        [["import", "ldm", "a.ckpt", "--legend=mini", "--num-heads=2", "--use-ema=false", "--out=out"]],
        True,
    )


def links_in_out(root: Path, draw: Draw) -> Trial:
    """Whatever name a lock, a lease or a temporary file may have leads to somebody else's file."""
    (root / "out").mkdir()
    place = draw([".lock", "leases", "plan", "A", "shards", "leases/plan.json", "plan/job.json", "list"])
    (root / "out" / place).parent.mkdir(exist_ok=True)
    (root / "out" / place).symlink_to(root / "victim" / ("file" if "." in place else "folder"))
    return Trial("link-truncates-foreign-file", [draw([PASTE, SIMULATE, GENERATE])])


def missing_weights(root: Path, draw: Draw) -> Trial:
    file = root / "model" / draw(["denoiser", "first_stage", "mask_encoder"]) / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = draw(sorted(state))
    value = state.pop(name)
    damage = draw(["missing", "nan", "shape", "more"])
    if damage != "missing":
        state[name] = value * torch.nan if damage == "nan" else value[None] if damage == "shape" else value
    if damage == "more":
        state["more"] = torch.zeros(1)
    file.unlink()
    save_file(state, file)
    return Trial(f"{damage}-weights", [draw([GENERATE, ["check", "model"]])], True)


def too_many_pairs(root: Path, draw: Draw) -> Trial:
    flag = draw(["--num-pairs=1000000000", "--num-pairs=100000000000000000000", "--seed=100000000000000000000000"])
    return Trial("num-pairs-1e9", [[*draw([SIMULATE, PASTE]), flag]], "seed" not in flag)


def pairs_reader(root: Path, draw: Draw) -> Trial:
    folder = pairs_in(root)
    damage = draw(["bomb", "list", "empty", "folder"])
    if damage == "bomb":
        (folder / "A" / "x.png").write_bytes(png_of_size(60_000, 60_000))
    elif damage == "list":
        (folder / "list").mkdir()
        for split in ("train", "val", "test"):
            (folder / "list" / f"{split}.txt").write_bytes(b"\xff\xfe\n\xff")
    elif damage == "empty":
        (folder / "B" / "y.png").write_bytes(b"")
    else:
        (folder / "label" / "y.png").unlink()
        (folder / "label" / "y.png").mkdir()
    command = ["train", "detector", "--out=out", "--detector.name=fc_ef", "--detector.pairs=p", "--run.num-workers=0"]
    command += [
        "--detector.num-steps=1",
        "--detector.crop-size=64",
        "--detector.warmup-steps=0",
        "--detector.val-split=null",
    ]
    return Trial(f"pairs-reader-{damage}", [draw([["check", "p"], command])], True)


def provenance(root: Path, draw: Draw) -> Trial:
    text = draw(["scene,patch\nx\n", "a,b\n1,2,3\n", "", "patch\n", 'patch,scene\n"tile_0\n', "\0\n",
                 "patch,gsd_m\ntile_0,nan\n", "patch,gsd_m\ntile_0,x\n", "patch,split\ntile_0,moon\n",
                 "patch,patch\ntile_0,tile_0\n", "patch,gsd_m\ntile_0,1e400\n",
                 "patch,scene\ntile_0," + "x" * 200_000 + "\n"])  # fmt: skip
    (root / "src" / "provenance.csv").write_text(text)
    return Trial("provenance-csv", [draw([SIMULATE, PASTE, ["check", "src"]])], truth=masks_of(root))


def other_threads(root: Path, draw: Draw) -> Trial:
    """A run that goes on elsewhere ends, or says why not."""
    command = [
        "train",
        "segmenter",
        "--out=out",
        "--data.source=src",
        "--data.tile-size=64",
        "--segmenter.backbone=unet",
    ]
    command += ["--segmenter.crop-size=32", "--segmenter.batch-size=2", "--segmenter.warmup-steps=0"]
    command += ["--run.num-workers=0", "--run.save-every=1"]
    return Trial("resume", [[*command, "--segmenter.num-steps=1"], [*command, "--segmenter.num-steps=2"]])


def truncated_records(root: Path, draw: Draw) -> Trial:
    name = draw(["metadata.jsonl", "plan/pairs.jsonl", "plan/shards/00000.json", "plan/plan.json", "list/train.txt"])
    file = root / "set" / name
    content = file.read_bytes() if file.is_file() else b""
    if content:
        lines = content.splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-1]) if len(lines) > 1 else content[: len(content) // 2])
    again = [each.replace("--out=out", "--out=set") for each in PASTE]
    (root / "set" / "report.html").unlink()
    steps = draw([[["check", "set"]], [again, ["check", "set"]] if name == "metadata.jsonl" else [["check", "set"]]])
    healed = len(steps) == 2
    return Trial("truncated-plan-and-metadata", steps, bool(content) and not healed, ("set",))


def vrt_in_disguise(root: Path, draw: Draw) -> Trial:
    """What can point elsewhere: another file, another machine."""
    secret = root / "victim" / "secret.png"
    address = f"http://127.0.0.1:{os.environ.get('FUZZ_PORT', '9')}/beacon"
    source = draw([str(secret), f"/vsicurl/{address}", address, "/etc/hostname"])
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i}"><SimpleSource><SourceFilename relativeToVRT="0">{source}'
        f"</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i in (1, 2, 3)
    )
    text = draw([
        f'<VRTDataset rasterXSize="64" rasterYSize="64">{bands}</VRTDataset>',
        f"<GDAL_WMS><Service name='TMS'><ServerUrl>{address}</ServerUrl></Service></GDAL_WMS>",
        f"<WMTS_Capabilities>{address}</WMTS_Capabilities>",
        f"<WCS_GDAL><ServiceURL>{address}?</ServiceURL></WCS_GDAL>",
    ])  # fmt: skip
    (root / "src" / "images" / "tile_0.png").unlink()
    (root / "src" / "images" / f"tile_0{draw(['.tif', '.png', '.jpg'])}").write_text(text)
    return Trial("vrt-in-disguise", [draw([["check", "src"], SIMULATE])], True)


SEEDS: dict[str, Callable[[Path, Draw], Trial]] = {
    each.__name__: each
    for each in (
        *(bom, cmyk_jpeg, hidden_folders, jpeg_in_tiff_mask, jpeg_label, ldm_lightning_callbacks, nir_tagged_alpha),
        *(non_latin_names, openearthmap_without_xbd, palette_geotiff_mask, palette_pairs, rotated_geotiff),
        *(arm_escapes, card_injection, damaged_marker, other_labels, ldm_tracebacks, links_in_out, missing_weights),
        *(too_many_pairs, pairs_reader, provenance, other_threads, truncated_records, vrt_in_disguise),
    )
}
