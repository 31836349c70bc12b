"""Folders as people have them: names, marks, links, system files, conventions of masks, numbers of classes."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, InputError, LegendError, SourceError
from changeanywhere.folders import files_below, read_text, safe_keys
from changeanywhere.legend import Legend, load_legend, load_legend_map, read_legend
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source
from conftest import write_source

SMALL = SourceOptions(tile_size=64)
Change = Callable[[Path], None]


def write_pair_folders(folder: Path, names: tuple[str, ...] = ("0.png", "1.png", "2.png")) -> Path:
    """``A/ B/ label/`` of 64 px, changed in a corner."""
    label = np.zeros((64, 64), np.uint8)
    label[:20, :30] = 255
    for part in ("A", "B", "label"):
        (folder / part).mkdir(parents=True)
        for name in names:
            content = label if part == "label" else np.full((64, 64, 3), 90, np.uint8)
            Image.fromarray(content).save(folder / part / name, format="PNG")
    return folder


# Byte-order marks and line ends


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_text_is_read_as_other_systems_write_it(tmp_path: Path, encoding: str, ends: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}patch,scene{ends}tüle,1{ends}".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "patch,scene\ntüle,1\n"


def _provenance(folder: Path) -> None:
    (folder / "provenance.csv").write_bytes("\ufeffpatch,scene\r\ntile_0,here\r\n".encode())


def _legend(folder: Path) -> None:
    (folder / "legend.json").write_bytes(b"\xef\xbb\xbf" + (folder / "legend.json").read_bytes())


def _utf16_legend(folder: Path) -> None:
    (folder / "legend.json").write_bytes((folder / "legend.json").read_text().encode("utf-16"))


def _old_mac_provenance(folder: Path) -> None:
    (folder / "provenance.csv").write_bytes(b"patch,scene\rtile_0,here\r")


@pytest.mark.parametrize("change", [_provenance, _legend, _utf16_legend, _old_mac_provenance])
def test_marks_and_line_ends_of_a_source(source_folder: Path, change: Change) -> None:
    change(source_folder)
    source = open_source(source_folder, SMALL)
    assert source.legend.name == "mini" and len(source) == 6
    if (source_folder / "provenance.csv").is_file():
        assert source.items[0].scene == "here"


def test_marks_in_lists_and_maps(tmp_path: Path) -> None:
    write_pair_folders(tmp_path / "pairs")
    (tmp_path / "pairs" / "list").mkdir()
    (tmp_path / "pairs" / "list" / "train.txt").write_bytes("\ufeff0.png\r\n2.png\r\n".encode())
    assert load_pairs(tmp_path / "pairs", "train").names == ("0.png", "2.png")
    (tmp_path / "map.yaml").write_bytes("\ufeffwater: water\r\n".encode())
    water = Legend.from_dict(["water"], "x")
    assert load_legend_map(water, load_legend("mini"), tmp_path / "map.yaml").to_dict() == {"water": "water"}


# Hidden files, system files, links


def _checkpoints(folder: Path) -> None:
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(min(folder.glob("*.png")), folder / ".ipynb_checkpoints" / "a-checkpoint.png")


def _apple_double(folder: Path) -> None:
    (folder / f"._{min(folder.glob('*.png')).name}").write_bytes(b"\0\5\26\7" + bytes(60))


def _synology(folder: Path) -> None:
    (folder / "@eaDir" / "0.png").mkdir(parents=True)
    (folder / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.png").write_bytes(b"no image")


def _windows(folder: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", "ehthumbs.db"):
        (folder / name).write_bytes(b"\xd0\xcf")


def _archive(folder: Path) -> None:
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "0.png").write_bytes(b"no image")


def _trash(folder: Path) -> None:
    (folder / ".Trash-1000").mkdir()
    shutil.copy(min(folder.glob("*.png")), folder / ".Trash-1000" / "old.png")


SYSTEM = [_checkpoints, _apple_double, _synology, _windows, _archive, _trash]


@pytest.mark.parametrize("litter", SYSTEM)
@pytest.mark.parametrize("where", ["images", "masks", "both"])
def test_system_files_are_passed_over_in_sources(source_folder: Path, litter: Change, where: str) -> None:
    before = open_source(source_folder, SMALL).fingerprint()
    for name in ("images", "masks") if where == "both" else (where,):
        litter(source_folder / name)
    source = open_source(source_folder, SMALL)
    assert source.fingerprint() == before
    assert [line.partition(" ")[2] for line in source.passed] == ["hidden or system files"]


@pytest.mark.parametrize("litter", SYSTEM)
def test_system_files_are_passed_over_in_pairs(
    tmp_path: Path, litter: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair_folders(tmp_path)
    for name in ("A", "B", "label"):
        litter(tmp_path / name)
    assert load_pairs(tmp_path).names == ("0.png", "1.png", "2.png")
    assert run(["check", str(tmp_path)]) == 0
    assert "passed over" in capsys.readouterr().out


def test_links_are_followed_without_loops(source_folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "masks").mkdir(parents=True)
    (linked / "images").symlink_to(source_folder / "images")
    for file in (source_folder / "masks").iterdir():
        (linked / "masks" / file.name).symlink_to(file)
    (linked / "masks" / "around").symlink_to(linked)  # to a folder above
    (linked / "masks" / "self").symlink_to(linked / "masks")
    shutil.copy(source_folder / "legend.json", linked / "legend.json")
    assert len(open_source(linked, SMALL)) == 6
    for name, other in (("a", "b"), ("b", "a")):  # to each other
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
        (tmp_path / name / "there").symlink_to(tmp_path / other)
    assert len(files_below(tmp_path / "a")) == 2
    out = ["--out", str(tmp_path / "out"), "--tile-size", "64", "--num-pairs", "1", "--events.min-area", "16"]
    assert run(["simulate", "--source", str(linked), *out]) == 0


# Names


@pytest.mark.parametrize(
    "names",
    [
        ("北京", "上海"),
        ("tile 1", "tile_1"),
        ("tile+1", "tile 1", "tile_1"),
        ("हिन्दी", "हन्द"),
        ("😀", "😁"),
        ("الرياض", "جدة"),
        ("a/b", "a__b"),
        ("Straße", "Strasse"),
        ("ж" * 100, "ж" * 99 + "з"),
    ],
)
def test_every_name_keeps_a_key_of_its_own(source_folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for folder in ("images", "masks"):
            target = source_folder / folder / f"{name}.png"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source_folder / folder / "tile_0.png", target)
    keys = {item.key for item in open_source(source_folder, SMALL).items}
    assert len(keys) == len({*names, *(f"tile_{i}" for i in range(6))}) and all(
        key == Path(key).name and len(key.encode()) < 200 for key in keys
    )


def test_keys_keep_letters_and_stay_what_they_were() -> None:
    assert safe_keys(["北京", "हिन्दी", "tile (1)", "x/y", "a.b-c"]) == {
        "北京": "北京", "हिन्दी": "हिन्दी", "tile (1)": "tile_1_", "x/y": "x__y", "a.b-c": "a.b-c",
    }  # fmt: skip
    assert safe_keys(["tile_1", "tile 1"])["tile_1"] == "tile_1"


def test_accents_are_composed_or_not(source_folder: Path) -> None:
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        name = unicodedata.normalize("NFC" if form == "NFC" else "NFD", "Orléans")
        (source_folder / folder / "tile_0.png").rename(source_folder / folder / f"{name}.png")
    assert "Orléans" in {item.key for item in open_source(source_folder, SMALL).items}
    for folder in ("images", "masks"):  # and both at once are two
        for kind in ("é", "e\u0301"):
            shutil.copy(source_folder / folder / "tile_1.png", source_folder / folder / f"{kind}.png")
    assert len(open_source(source_folder, SMALL)) == 8


@pytest.mark.parametrize("suffixes", [(".PNG", ".Png"), (".TIFF", ".tif"), (".jpeg", ".png"), (".JPG", ".TIF")])
def test_suffixes_in_any_case(tmp_path: Path, suffixes: tuple[str, str]) -> None:
    kinds = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
    write_source(tmp_path, num_tiles=1)
    for folder, suffix in zip(("images", "masks"), suffixes, strict=True):
        file = tmp_path / folder / "tile_0.png"
        with Image.open(file) as image:
            image.save(file.with_suffix(suffix), format=kinds[suffix.lower()])
        if suffix != ".png":
            file.unlink()
    assert len(open_source(tmp_path, SMALL)) == 1
    write_pair_folders(tmp_path / "pairs", ("0.PNG", "1.Png"))
    (tmp_path / "pairs" / "B" / "0.PNG").rename(tmp_path / "pairs" / "B" / "0.png")
    assert load_pairs(tmp_path / "pairs")[0].change_mask.sum() == 600


# Conventions


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ("images/{}.png", "labels/{}.png", "images/ with labels/, equal names"),
        ("images/{}.png", "gt/{}.tif", "images/ with gt/, equal names"),
        ("Images/{}.JPG", "Annotations/{}.png", "Images/ with Annotations/, equal names"),
        ("imgs/{}.jpeg", "ground_truth/{}.png", "imgs/ with ground_truth/, equal names"),
        ("images/{}.png", "masks/{}_mask.png", "images/ with masks/, NAME with NAME_mask"),
        ("images/{}.png", "labels/{}_label.tif", "NAME with NAME_label"),
        ("image/{}_image.png", "mask/{}_mask.png", "NAME_image with NAME_mask"),
        ("images/img_{}.png", "masks/mask_{}.png", "img_NAME with mask_NAME"),
        ("{}.jpg", "{}_mask.png", "one folder, NAME with NAME_mask"),
        ("{}_sat.jpg", "{}_mask.png", "one folder, NAME_sat with NAME_mask"),
        ("{}.tif", "{}_gt.tif", "one folder, NAME with NAME_gt"),
        ("{}.jpg", "{}.png", "one folder, NAME.jpg with NAME.png"),
        ("train/images/{}.png", "train/gt/{}.png", "train with images|gt/ in each, equal names"),
        ("north/images/{}.png", "north/annotations/{}.png", "1 folders with images|annotations/ in each"),
        ("images/val/{}.png", "masks/val/{}.png", "images/ with masks/, equal names"),
    ],
)
def test_conventions_are_found_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str, mask: str, said: str
) -> None:
    plain, root = write_source(tmp_path / "plain", num_tiles=3), tmp_path / "root"
    for number in range(3):
        for pattern, folder in ((image, "images"), (mask, "masks")):
            target = root / pattern.format(f"t{number}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(plain / folder / f"tile_{number}.png") as picture:
                picture.save(target)
    shutil.copy(plain / "legend.json", root / "legend.json")
    source, expected = open_source(root, SMALL), open_source(plain, SMALL)
    assert [source.read_mask(i).tolist() for i in range(3)] == [expected.read_mask(i).tolist() for i in range(3)]
    assert run(["check", str(root)]) == 0
    assert said in capsys.readouterr().out
    if "val" in image or "train" in image:
        assert {item.split for item in source.items} == {"val" if "val" in image else "train"}


@pytest.mark.parametrize("stray", ["c", "c_sat", "overview"])
@pytest.mark.parametrize("skip", [False, True])
def test_an_image_named_otherwise_than_the_others_is_not_dropped_silently(
    stray: str, skip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``a_img``, ``b_img`` with ``a_mask``, ``b_mask``: then ``c`` has no mask, and that is said."""
    write_source(tmp_path, num_tiles=3)
    for folder, ending in (("images", "_img"), ("masks", "_mask")):
        for number in range(2):
            (tmp_path / folder / f"tile_{number}.png").rename(tmp_path / folder / f"tile_{number}{ending}.png")
    (tmp_path / "images" / "tile_2.png").rename(tmp_path / "images" / f"{stray}.png")
    (tmp_path / "masks" / "tile_2.png").unlink()
    more = ["--on-error", "skip"] if skip else []
    assert run(["check", str(tmp_path), *more]) == (0 if skip else 2)
    said = capsys.readouterr()
    assert f"{stray}.png: has no mask; images and masks here are named NAME_img and NAME_mask" in said.out + said.err


def test_a_mask_that_is_missing_is_named_as_it_should_be(tmp_path: Path) -> None:
    write_source(tmp_path, num_tiles=3)
    for file in (tmp_path / "masks").iterdir():
        file.rename(file.with_name(f"{file.stem}_mask.png"))
    (tmp_path / "masks" / "tile_1_mask.png").unlink()
    with pytest.raises(SourceError, match=r"tile_1\.png: has no mask; expected .*masks/tile_1_mask\.png or \.tif"):
        open_source(tmp_path, SMALL)
    assert len(open_source(tmp_path, SourceOptions(tile_size=64, on_error="skip"))) == 2


# Numbers of classes


def renumber(folder: Path, numbers: dict[int, int]) -> Path:
    """Rewrite masks; a legend of five names that begin with a class of number 0 fits ``{1: 0, 2: 1 …, 0: 255}``."""
    for file in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.vectorize(numbers.get)(mask).astype(np.uint8)).save(file)
    return folder


FROM_ZERO = {0: 255, 1: 0, 2: 1, 3: 2, 4: 3}
NAMES = ("bareland", "road", "water", "building")


def of_zero(folder: Path) -> Path:
    """Masks of 0…3 and 255, without a legend."""
    renumber(write_source(folder), FROM_ZERO)
    (folder / "legend.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("legend", "options"),
    [
        (None, {"class_names": NAMES, "first_class": 0, "ignore_value": 255}),
        ({"first_class": 0, "ignore_index": 255, "classes": list(NAMES)}, {}),
        ({"ignore_index": [255], "classes": list(NAMES)}, {"first_class": 0}),
        ({"names": dict(enumerate(NAMES))}, {"first_class": 0, "ignore_value": 255}),
        ({"classes": [{"index": i, "name": name, "value": i - 1} for i, name in enumerate(NAMES, 1)]},
         {"ignore_value": 255}),
        ({"classes": [{"index": i, "name": name} for i, name in enumerate(NAMES)]
          + [{"index": 255, "name": "ignore"}]}, {"first_class": 0}),
    ],
)  # fmt: skip
def test_masks_that_count_from_zero(tmp_path: Path, legend: object, options: dict[str, object]) -> None:
    expected = open_source(write_source(tmp_path / "plain"), SMALL)
    root = of_zero(tmp_path / "zero")
    if isinstance(legend, dict):
        (root / "legend.json").write_text(json.dumps(legend))
    source = open_source(root, SourceOptions(tile_size=64, **options))  # type: ignore[arg-type]
    assert source.legend.names == NAMES and len({c.color for c in source.legend.classes}) == 4
    for i in range(len(source)):
        assert np.array_equal(source.read_mask(i), expected.read_mask(i))
    if not legend:
        changed = SourceOptions(tile_size=64, class_names=(*NAMES[:3], "hut"), first_class=0, ignore_value=255)
        assert open_source(root, changed).fingerprint() != source.fingerprint()


def test_numbers_are_part_of_fingerprint_and_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = of_zero(tmp_path / "zero"), tmp_path / "out"
    command = ["simulate", "--source", str(root), "--out", str(out), "--tile-size", "64", "--num-pairs", "2"]
    command += ["--events.min-area", "16", "--class-names", "bareland,road,water,building", "--first-class", "0"]
    assert run([*command, "--ignore-value", "255"]) == 0, capsys.readouterr().err
    job = json.loads((out / "plan" / "job.json").read_text())["source"]["options"]
    assert (job["class_names"], job["first_class"], job["ignore_value"]) == ([*NAMES], 0, 255)
    assert run(command) == 2
    assert "ignore_value = 255, asked now: None" in capsys.readouterr().err
    masks = [np.asarray(Image.open(file)) for file in (out / "label1").glob("*.png")]
    assert all((mask[-3:] == 0).all() and mask[0, 8] == 2 for mask in masks)


def test_every_command_takes_the_same_source_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = of_zero(tmp_path / "zero")
    flags = ["--class-names=bareland,road,water,building", "--first-class", "0", "--ignore-value", "255"]
    assert run(["check", str(root), *flags]) == 0
    assert "4 classes from 0, 255 ignored" in capsys.readouterr().out
    for command in (["evaluate", "--model", "mini"], ["train", "segmenter"], ["generate"]):
        given = [f.replace("--", "--data.") for f in flags] if command[0] == "train" else flags
        source = "--data.source" if command[0] == "train" else "--source"
        run([*command, source, str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *given])
        assert "nowhere" in capsys.readouterr().err, "the options are known; the folder is what is wrong"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"class_names": ("a",), "legend": "mini"}, "class_names is 'a'; allowed: nothing beside legend"),
        ({"class_names": ("a", "a")}, "class_names is 'a,a'; allowed: 1 to 254 names, each once"),
        ({"class_names": ("unknown", "a")}, "class_names is 'unknown'"),
        ({"class_names": ()}, "1 to 254 names"),
        ({"first_class": 2}, "first_class is 2; allowed: 0 or 1"),
        (
            {"class_names": ("a", "b"), "ignore_value": 2},
            "ignore_value is 2; allowed: a number from 0 to 65535 that is no",
        ),
        ({"first_class": 0, "ignore_value": 0}, "ignore_value is 0"),
        ({"ignore_value": -1}, "ignore_value is -1"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SourceOptions(**options)  # type: ignore[arg-type]


def test_a_class_cannot_be_ignored(source_folder: Path) -> None:
    with pytest.raises(ConfigError, match="ignore_value is 4, which is building"):
        open_source(source_folder, SourceOptions(tile_size=64, ignore_value=4))


# Legends


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("legend.yaml", "name: mine\nclasses:\n- {index: 1, name: a, color: [1, 2, 3]}\n- {index: 2, name: b}\n"),
        ("legend.yml", "classes: [a, b]\n"),
        ("classes.yaml", "names: {1: a, 2: b}\n"),
        ("classes.txt", "a\r\nb\r\n"),
        ("legend.txt", "unknown\na\nb\n"),
        ("classes.json", '["a", "b"]'),
        ("legend.json", '{"classes": [{"index": 0, "name": "Un-labelled"}, {"index": 1, "name": "a"}, '
         '{"index": 2, "name": "b", "color": "#0080ff"}]}'),
    ],
)  # fmt: skip
def test_legends_in_all_their_ways_of_writing(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    legend, numbers = read_legend(tmp_path / name)
    assert legend.names == ("a", "b") and numbers.is_plain and not numbers.own_colours
    assert legend == read_legend(tmp_path / name)[0], "the same colours at every call"
    colours = np.array([(0, 0, 0), *(c.color for c in legend.classes)])
    assert np.abs(colours[:, None] - colours[None]).sum(2)[np.triu_indices(3, 1)].min() > 4


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"classes": [{"index": 0, "name": "forest"}, {"index": 1, "name": "b"}]},
         "index 0 is 'forest', but 0 is ground without a label.*--first-class 0.*else name it unknown"),
        ({"names": {0: "background", 1: "b"}}, "index 0 is 'background'"),
        ({"classes": ["a", "b"], "ignore_index": 2}, "ignore_index is 2, which is a class too"),
        ({"classes": ["a", "b"], "ignore_index": "none"}, "ignore_index is 'none'; allowed: a number"),
        ({"classes": ["a", "b"], "first_class": 3}, "first_class is 3; allowed: 0 or 1"),
        ({"classes": ["a", 2]}, "class 'a' is not an object|class 2 is not"),
        ({"classes": [{"index": 1, "name": "a", "color": "#12"}]}, r"a color \[r, g, b\]"),
    ],
)  # fmt: skip
def test_legends_that_would_lose_something_are_refused(tmp_path: Path, content: object, text: str) -> None:
    (tmp_path / "legend.json").write_text(json.dumps(content))
    with pytest.raises(LegendError, match=text) as caught:
        read_legend(tmp_path / "legend.json")
    assert "\n" not in str(caught.value)


def test_colours_that_were_made_up_are_never_read_from_a_mask(tmp_path: Path) -> None:
    write_source(tmp_path, num_tiles=1)
    (tmp_path / "legend.json").write_text(json.dumps([*load_legend("mini").names]))
    made = Legend.load(tmp_path / "legend.json")
    mask = np.asarray(Image.open(tmp_path / "masks" / "tile_0.png"))
    palette = Image.fromarray(mask)
    palette.putpalette(made.palette()[::-1][-8:].tobytes())  # its colours, in another order
    palette.save(tmp_path / "masks" / "tile_0.png")
    assert np.array_equal(open_source(tmp_path, SMALL).read_mask(0), mask), "by index"
    Image.fromarray(made.colorize(mask)).save(tmp_path / "masks" / "tile_0.png")
    with pytest.raises(LegendError, match="mask holds colours, and the legend has none"):
        open_source(tmp_path, SMALL).read_mask(0)


# provenance.csv


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"scene,patch\nx\n", "row 2 names no patch"),
        (b"a,b\n1,2,3\n", "no column 'patch'; found a, b"),
        (b"patch,scene\ntile_0,a,b\n", "row 2 has 3 cells, the first row has 2"),
        (b"patch;scene\ntile_0;a\n", "columns are divided by commas"),
        (b"patch\tscene\ntile_0\ta\n", "columns are divided by commas"),
        (b"patch,patch\na,b\n", "two columns are called 'patch'"),
        (b'patch,scene\n"tile_0,a\n', "not readable as UTF-8 CSV"),
        (b"patch,scene\ntile_0,M\xfcnchen\n", "not readable as UTF-8 CSV"),
        (b"\n\n \n", ""),
        (b"", ""),
        ("\ufeff patch , scene \r\n tile_0.PNG , a \r\n\r\n".encode(), ""),
        (b"patch,scene\nsub\\tile_0,a\ntile_0,b\n", ""),
    ],
)
def test_oddities_of_provenance_are_one_line(source_folder: Path, content: bytes, text: str) -> None:
    (source_folder / "provenance.csv").write_bytes(content)
    if not text:
        assert len(open_source(source_folder, SMALL)) == 6
        return
    with pytest.raises(InputError, match=text) as caught:
        open_source(source_folder, SMALL)
    assert "\n" not in str(caught.value) and str(source_folder / "provenance.csv") in str(caught.value)
