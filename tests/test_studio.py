"""The studio without a browser: edits, paintings, keeping, review, uploads, sessions. No Gradio here."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, InputError, OutputError, PairsError
from changeanywhere.exporting.options import LAYOUT_NAMES
from changeanywhere.legend import Legend, LegendClass, Mask
from changeanywhere.pairs.pictures import data_uri
from changeanywhere.progress import Progress
from changeanywhere.sample import ChangePair, change_mask_of, rgb8
from changeanywhere.studio import acts, charts, keeping, looks, pictures
from changeanywhere.studio.acts import Settings
from changeanywhere.studio.edits import AS_BEFORE, request_of, snapped
from changeanywhere.studio.jobs import Jobs, Wanted
from changeanywhere.studio.options import StudioOptions
from changeanywhere.studio.painting import Asked, Painted, PaintingStoppedError
from changeanywhere.studio.review import Filter, open_review, sets_in
from changeanywhere.studio.session import MAX_SESSIONS, Session, Sessions
from changeanywhere.studio.studio import Studio
from conftest import write_source
from raster_files import write_tif

SETTINGS = Settings(num_steps=3, guidance_scale=1.0, free_fraction=0.1, own_strength=False, strength=0.6, seed=4)
HOSTILE = "<img src=x onerror=alert(1)>\"&'"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Any:
    folder = tmp_path_factory.mktemp("studio")
    source = write_source(folder / "source")
    opened = Studio(StudioOptions(source=source, model=str(tiny_model_folder), out=folder / "sets"))
    yield opened
    opened.close()
    assert not opened.sessions.root.exists()


@pytest.fixture
def session(studio: Studio, request: pytest.FixtureRequest) -> Session:
    page = studio.sessions.of(request.node.name)
    page.choose("tile_0")
    return page


def paint(studio: Studio, session: Session, settings: Settings = SETTINGS, count: int = 1) -> list[str]:
    acts.place_box(session, [20, 40, 12, 10], "building", studio.legend)
    return [shown.progress for shown in acts.painting(studio, session, settings, count)]


def test_boxes_strokes_and_events_are_edits_that_can_be_undone(studio: Studio, session: Session) -> None:
    legend = studio.legend
    acts.place_box(session, [20, 40, 12, 10], "building", legend)
    first = session.edited()
    assert first.change_mask.sum() == 120 and (first.mask_t2[40:50, 20:32] == legend.index_of("building")).all()
    layer = np.zeros((128, 128, 4), np.uint8)  # the editor may show a tile larger than it is
    layer[4:12, 70:80] = (*legend.classes[2].color, 255)
    layer[20:24, 70:80] = (*legend.classes[2].color, 90)  # the soft rim of a stroke
    acts.apply_strokes(session, {"layers": [layer]}, legend)
    changed = session.edited().mask_t2 != first.mask_t2
    assert changed.sum() == 4 * 5 and (session.edited().mask_t2[changed] == 3).all()
    before = session.edited()
    acts.propose(session, ["disappearance", "any", "any", 0, 0], 3, legend)
    assert len(session.edited().steps[-1].events) == 1
    assert ((session.edited().mask_t2 == before.mask_t2) | ~before.change_mask).all(), "no event on what was edited"
    acts.place_box(session, [0, 0, 64, 60], AS_BEFORE, legend)
    assert not session.edited().change_mask.any() and not session.edited().steps[-1].events
    for _ in range(9):
        session.edit = session.edited().undone()
    assert not session.edited().change_mask.any() and len(session.edited().steps) == 1


def test_what_is_known_to_be_wrong_is_one_line(studio: Studio, session: Session) -> None:
    legend, edit = studio.legend, session.edited()
    with pytest.raises(InputError, match=r"box is 60, 0, 10 x 4 px; allowed: inside the 64 x 64 px"):
        edit.with_box((60, 0, 10, 4), 3)
    with pytest.raises(ConfigError, match="box is"):
        acts.place_box(session, [1, 2.5, 3, 4], "building", legend)
    with pytest.raises(InputError, match="changes nothing"):
        edit.with_box((0, 61, 64, 3), 3)  # unknown ground stays unknown
    with pytest.raises(InputError, match="nothing was drawn"):
        acts.apply_strokes(session, {"layers": []}, legend)
    with pytest.raises(InputError, match="nothing changes yet"):
        edit.plan(0)
    with pytest.raises(ConfigError, match="class pair"):
        request_of("any", "building", "any", (0, 0), legend)
    with pytest.raises(InputError, match="no such event fits"):
        acts.propose(session, ["growth", "water", "road", 80, 90], 0, legend)
    with pytest.raises(ConfigError, match="steps is 0"):
        Settings(0, 1.0, 0.1, True, 0.5, 0).sampling(studio.networks.defaults)
    with pytest.raises(InputError, match="no tile is called"):
        session.choose("../../etc/passwd")


def test_a_number_field_that_was_emptied_is_named(studio: Studio, session: Session) -> None:
    for box, name in (([None, 1, 3, 4], "left px"), ([1, 1, 3, None], "height px")):
        with pytest.raises(ConfigError, match=f"^{name} is empty; allowed: a number$"):
            acts.place_box(session, box, "building", studio.legend)
    for low, high, seed, name in ((None, 0, 0, "least %"), (0, None, 0, "most %"), (0, 0, None, "seed")):
        with pytest.raises(ConfigError, match=f"^{name} is empty; allowed: a number$"):
            acts.propose(session, ["any", "any", "any", low, high], seed, studio.legend)
    painted = [3, 1.0, 0.1, 0.6, False, 4]
    assert Settings.of(painted) == SETTINGS
    for place, name in ((0, "steps"), (1, "guidance"), (2, "free tail"), (3, "strength"), (5, "seed")):
        with pytest.raises(ConfigError, match=f"^{name} is empty"):
            Settings.of([None if i == place else value for i, value in enumerate(painted)])
    made = [" made ", 6, 1, "any", "any", "any", 50, True]
    assert Wanted.of(made) == Wanted("made", 6, 1)
    for place, name in ((1, "number of pairs"), (2, "seed"), (6, "share")):
        with pytest.raises(ConfigError, match=f"^{name} is empty"):
            Wanted.of([None if i == place else value for i, value in enumerate(made)])
    assert Filter.of(["any", "any", None, None, None, "any"]) == Filter(), "an emptied bound is none"


def test_colours_are_snapped_to_the_nearest_class() -> None:
    legend = Legend("two", (LegendClass(1, "a", (200, 0, 0)), LegendClass(2, "b", (0, 0, 200))))
    given = np.array([[190, 10, 5], [3, 3, 180], [250, 0, 250]])
    assert snapped(given, legend, (255, 0, 255)).tolist() == [1, 2, 0]


def words_of(code: str) -> list[str]:
    """The command of a snippet, without the program's name."""
    found = re.search(r"<code>(changeanywhere .*?)</code>", code, re.DOTALL)
    assert found, code
    return shlex.split(html.unescape(found.group(1)))[1:]


def saved(code: str, folder: Path) -> None:
    """Save the masks of a snippet as the page says."""
    links = re.findall(r'href="data:image/png;base64,([^"]*)">Save the mask of date \d</a> as ([^ ,;]+)', code)
    assert links
    for content, name in links:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(content))


def assert_masks(first: Mask, second: Mask) -> None:
    """Of the pair that the snippet made."""
    pair = ca.load_pairs("my_pairs")[0]
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    assert np.array_equal(pair.mask_t1, first) and np.array_equal(pair.mask_t2, second)


def test_a_painting_is_what_the_command_paints(
    studio: Studio, session: Session, tmp_path: Path, unquantised: None
) -> None:
    """The command that the page shows, run as it stands but for its folders."""
    assert all("<progress" in text for text in paint(studio, session)[:-1])
    assert session.painted is not None and session.painted.read.shape == (64, 64)
    masks = tmp_path / "masks_t2"
    masks.mkdir()
    Image.fromarray(session.painted.asked.plan.mask_t2).save(masks / "tile_0.png")
    assert acts.snippets(studio, session).count("<pre") == 2
    words = words_of(acts.snippets(studio, session))
    for flag, value in (("seed", "4"), ("num-steps", "3"), ("exemplar-strength", "0.6"), ("tile-size", "64")):
        assert words[words.index(f"--{flag}") + 1] == value
    words[words.index("--masks-t2") + 1], words[words.index("--out") + 1] = str(masks), str(tmp_path / "pairs")
    assert run([*words, "--num-threads", str(torch.get_num_threads())]) == 0
    pair = ca.load_pairs(tmp_path / "pairs")[0]
    off = np.abs(pair.image_t2.astype(int) - session.painted.image_t2)
    # Another seed leaves 4 %. Alone in a process the bytes are equal; among other tests kernels may be laid out by then
    # that add up in another order, and a network of random weights carries last bits far (once seen: 99.82 %).
    assert (off <= 2).mean() > 0.99
    assert not np.array_equal(pair.image_t2, pair.image_t1)


def test_a_painting_stops_between_two_calls_and_leaves_nothing(studio: Studio, session: Session) -> None:
    acts.place_box(session, [20, 40, 12, 10], "building", studio.legend)
    slow = Settings(200, 2.0, 0.1, False, 1.0, 0)
    seen = []
    with pytest.raises(PaintingStoppedError):
        for shown in acts.painting(studio, session, slow):
            seen.append(shown.progress)
            session.stop.set()
    assert session.painted is None and not session.painting
    assert not any("of 200: 199" in text for text in seen)
    with pytest.raises(InputError, match="nothing is painted yet"):
        acts.keep_painted(studio, session, "never")
    assert list(acts.painting(studio, session, SETTINGS))[-1].painted, "and the next one is painted"


def test_networks_are_loaded_once_for_all_pages(studio: Studio, session: Session) -> None:
    paint(studio, session)
    other = studio.sessions.of("another page")
    other.choose("tile_1")
    paint(studio, other)
    assert studio.networks.num_loads == 1
    assert other.painted is not None and session.painted is not None
    assert other.painted.asked.sample.item.key == "tile_1" != session.painted.asked.sample.item.key
    assert other.folder != session.folder


def test_variations_are_by_seed_and_one_is_taken(studio: Studio, session: Session) -> None:
    paint(studio, session, count=2)
    assert session.seeds == [4, 5] and len(session.variations) == 2
    images = [each.image_t2 for each in session.variations]
    assert not np.array_equal(images[0], images[1])
    assert acts.variation_sheet(session).count("data-ask") == 2
    session.take(1)
    assert session.painted is session.variations[1] and "--seed 5" in acts.snippets(studio, session)
    with pytest.raises(InputError):
        session.take(2)


def cut_short(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_kept_pairs_are_a_set_that_check_knows_and_exports(
    studio: Studio, session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for number in range(3):
        session.choose(f"tile_{number}")
        paint(studio, session)
        keys.append(acts.keep_painted(studio, session, "kept"))
    with pytest.raises(InputError, match="in the set kept already"):
        acts.keep_painted(studio, session, "kept")
    folder = studio.options.out / "kept"
    (folder / "A" / "mine.png").write_bytes(b"of somebody else")
    session.take(0)
    with monkeypatch.context() as cut:
        cut.setattr(keeping, "finalise", cut_short)
        with pytest.raises(KeyboardInterrupt):
            acts.keep_painted(studio, session, "kept")
    assert (folder / "A" / "tile_2_001.png").exists()
    (folder / "B" / "tile_2_002.png").write_bytes(b"of somebody else")
    session.choose("tile_1")
    paint(studio, session)
    keys.append(acts.keep_painted(studio, session, "kept"))
    assert not list(folder.glob("*/tile_2_001.png")), "of a keep that was cut short"
    session.choose("tile_2")
    paint(studio, session)
    keys.append(acts.keep_painted(studio, session, "kept"))
    session.take(0)
    keys.append(acts.keep_painted(studio, session, "kept"))
    assert keys[3:] == ["tile_1_001", "tile_2_001", "tile_2_003"], "no file of somebody else is written over"
    for other in (folder / "A" / "mine.png", folder / "B" / "tile_2_002.png"):
        assert other.read_bytes() == b"of somebody else"
        other.unlink()
    assert run(["check", str(folder)]) == 0
    assert "6 pairs" in capsys.readouterr().out
    pairs = ca.load_pairs(folder)
    assert sorted(pairs.key_of(i) for i in range(len(pairs))) == sorted(keys)
    record = pairs.record_of(0)
    assert record["kind"] == "given" and record["exemplars"][0]["strength"] == 0.6
    assert sets_in(studio.options.out) == ["kept"]
    review = open_review(studio.options.out, "kept")
    with pytest.raises(InputError, match="no pair is kept yet"):
        review.export_kept("levir")
    review.decide(keys[0], "keep")
    review.decide(keys[1], "drop")
    review.decide(keys[2], "keep")
    for layout in ("levir", "coco", "levir"):
        out, report = review.export_kept(layout)
        assert sum(report.splits.values()) == 2
    assert run(["check", str(out)]) == 0
    exported = ca.load_pairs(out)
    assert sorted(exported.key_of(i) for i in range(len(exported))) == sorted([keys[0], keys[2]])
    assert set(LAYOUT_NAMES) >= {"levir", "coco"} and sets_in(studio.options.out) == ["kept"]


def test_decisions_outlast_the_page_and_others_decisions_stay(studio: Studio, session: Session) -> None:
    for number in range(3):
        session.choose(f"tile_{number}")
        paint(studio, session)
        acts.keep_painted(studio, session, "decided")
    looks.open_set(studio, session, "decided")
    assert looks.decide(session, "keep") == "tile_0_000: keep" and session.at == "tile_1_000"
    other = studio.sessions.of("a second user")
    looks.open_set(studio, other, "decided")
    looks.move(other, 2)
    looks.decide(other, "flag")
    looks.decide(session, "drop")
    again = open_review(studio.options.out, "decided")
    assert again.decisions == {"tile_0_000": "keep", "tile_1_000": "drop", "tile_2_000": "flag"}
    looks.filtered(session, Filter(decision="drop"))
    assert session.at == "tile_1_000"
    looks.ask(session, "pair:tile_2_000")
    assert session.at == "tile_2_000" and "aria-current" not in looks.sheet(session)
    (again.folder / "decisions.json").write_text('{"decisions": {"tile_0_000": "burn"}}')
    with pytest.raises(PairsError, match=r"decisions\.json: damaged"):
        looks.sheet(session)


def test_filters_and_charts_count_what_is_there(studio: Studio, session: Session) -> None:
    for number, name in ((0, "building"), (1, "water")):
        session.choose(f"tile_{number}")
        acts.place_box(session, [20, 40, 8 + 8 * number, 10], name, studio.legend)
        list(acts.painting(studio, session, SETTINGS))
        acts.keep_painted(studio, session, "charted")
    review = looks.open_set(studio, session, "charted")
    assert review.transitions() == {"bareland->building": 1, "bareland->water": 1}
    assert [n for *_, n in review.ratios()] and sum(n for *_, n in review.ratios()) == 2
    looks.ask(session, "transition:bareland->water")
    assert review.chosen(session.filter) == ["tile_1_000"] and session.at == "tile_1_000"
    looks.ask(session, "transition:any")
    looks.ask(session, "ratio:0:3")
    assert review.chosen(session.filter) == ["tile_0_000"]
    assert looks.overview(session).count("data-ask") == 2 + 1 + 10 + 1
    for bad in ("transition:a->b", "ratio:x:y", "ratio:9:1", "nonsense", "pair:nobody"):
        with pytest.raises(InputError):
            looks.ask(session, bad)
    swipe, panels = looks.pair(session)
    assert swipe.count("<img") == 2 and panels.count("<figure>") == 3


def test_dates_of_16_bits_are_shown_in_the_stretch_of_their_set(
    studio: Studio, session: Session, tmp_path: Path
) -> None:
    """One stretch for both dates: with one each, ground that is the same would look changed."""
    source = write_source(tmp_path / "source")
    for file in sorted((source / "images").glob("*.png")):
        write_tif(file.with_suffix(".tif"), np.asarray(Image.open(file)).astype(np.uint16) * 40)
        file.unlink()
    words = [
        "--source",
        str(source),
        "--method",
        "recolour",
        "--num-pairs",
        "2",
        "--tile-size",
        "64",
    ]
    words += ["--image-format", "geotiff", "--events.min-area", "16"]
    assert run(["generate", *words, "--out", str(studio.options.out / "deep")]) == 0
    review = looks.open_set(studio, session, "deep")
    assert review.pairs[0].image_t1.dtype == np.uint16
    assert looks.sheet(session).count("<img") == 4
    pair = review.pairs[0]
    first, second = rgb8(pair)
    swipe, _ = looks.pair(session)
    assert all(data_uri(image, "JPEG", pictures.SIDE) in swipe for image in (first, second))
    same = (pair.image_t1 == pair.image_t2).all(2)
    assert same.any() and (first[same] == second[same]).all()


def test_sets_of_others_are_not_touched(studio: Studio, session: Session, tmp_path: Path) -> None:
    paint(studio, session)
    foreign = studio.options.out / "foreign"
    foreign.mkdir(parents=True)
    (foreign / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        acts.keep_painted(studio, session, "foreign")
    levir = studio.options.out / "train"  # a dataset's own folders have the names of ours
    for name in ("A", "B", "label", "label1", "label2"):
        (levir / name).mkdir(parents=True)
        (levir / name / "train_1.png").write_bytes(b"theirs")
    (levir / "A" / "tile_0_000.png").write_bytes(b"theirs")
    before = sorted(levir.rglob("*"))
    for listed in (False, True):
        with pytest.raises(OutputError, match=r"train: holds other files \(A/tile_0_000\.png\); give another set"):
            acts.keep_painted(studio, session, "train")
        if not listed:
            assert sorted(levir.rglob("*")) == before
            (levir / "metadata.jsonl").write_text("")
    (levir / "metadata.jsonl").write_text('{"file_name": "A/train_1.png", "text": "a town"}\n')
    with pytest.raises(OutputError, match=r"metadata\.jsonl: damaged"):
        acts.keep_painted(studio, session, "train")
    assert sorted(levir.rglob("*")) == sorted([*before, levir / "metadata.jsonl"])
    assert {file.read_bytes() for file in levir.rglob("*.png")} == {b"theirs"}
    made = studio.options.out / "made"
    (made / "plan").mkdir(parents=True)
    (made / "plan" / "plan.json").write_text("{}")
    with pytest.raises(OutputError, match="made by generate"):
        acts.keep_painted(studio, session, "made")
    acts.keep_painted(studio, session, "counted")
    session.take(0)
    legend = studio.options.out / "counted" / "legend.json"
    legend.write_text(json.dumps(json.loads(legend.read_text()) | {"ignore_index": 255}))
    with pytest.raises(OutputError, match=r"legend\.json: has other classes than the model, or other numbers for them"):
        acts.keep_painted(studio, session, "counted")
    for name in ("../out", "a/b", "", ".hidden", "x" * 61, HOSTILE):
        with pytest.raises(ConfigError, match="set is"):
            acts.keep_painted(studio, session, name)
        with pytest.raises(InputError):
            open_review(studio.options.out, name)


def test_an_export_takes_the_place_of_an_earlier_one_alone(studio: Studio, session: Session) -> None:
    paint(studio, session)
    key = acts.keep_painted(studio, session, "swapped")
    review = open_review(studio.options.out, "swapped")
    review.decide(key, "keep")
    place = studio.options.out / "exports" / "swapped-levir"
    place.mkdir(parents=True)
    (place / "theirs.txt").write_text("theirs")
    with pytest.raises(OutputError, match=r"swapped-levir: holds 'theirs\.txt', which no export lists"):
        review.export_kept("levir")
    assert [file.name for file in place.iterdir()] == ["theirs.txt"]
    (place / "theirs.txt").unlink()
    out, _ = review.export_kept("levir")
    assert out == place and ca.load_pairs(out).key_of(0) == key
    (out / "weights.pt").write_text("theirs")
    (out / "A" / ".DS_Store").write_text("of a file manager")
    assert review.export_kept("levir")[0] == place and ca.load_pairs(out).key_of(0) == key
    assert (out / "weights.pt").read_text() == "theirs", "what no export wrote stays"
    assert not list(place.parent.glob(".new-*"))


def test_ignored_ground_is_exported_with_the_kept_pairs(
    studio: Studio, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = np.zeros((64, 64), bool)
    ignored[:16] = True

    def with_ignored(*given: Any, **more: Any) -> ChangePair:
        pair = ChangePair(*given, **more)
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        masks = [np.where(ignored, 0, mask).astype(np.uint8) for mask in (pair.mask_t1, pair.mask_t2)]
        return replace(pair, mask_t1=masks[0], mask_t2=masks[1], change_mask=change_mask_of(*masks), ignored=ignored)

    paint(studio, session)
    monkeypatch.setattr(keeping, "ChangePair", with_ignored)
    key = acts.keep_painted(studio, session, "second")
    review = open_review(studio.options.out, "second")
    review.decide(key, "keep")
    pair = ca.load_pairs(review.export_kept("levir")[0])[0]
    assert pair.ignored is not None and np.array_equal(pair.ignored, ignored)
    assert any("leave out" in lost for lost in review.export_kept("coco")[1].lost), "coco has no place for it"


def test_uploads_are_bounded_renamed_and_stay_in_the_sessions_folder(
    studio: Studio, session: Session, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    name = 'x"><script>.png'
    image, mask = tmp_path / name, tmp_path / "mask.png"

    def dropped(size: int = 64, value: int = 1) -> None:
        Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(image)
        Image.fromarray(np.full((size, size), value, np.uint8)).save(mask)

    dropped()
    edit = acts.upload(studio, session, str(image), str(mask))
    assert (edit.mask_t2 == 1).all()
    assert image.exists() and mask.exists(), "another page may have dropped a file that holds the same"
    inside = [file for file in session.folder.rglob("*") if file.is_file()]
    assert {file.name for file in inside} == {"upload.png", "legend.json"}
    dropped()
    assert acts.upload(studio, session, str(image), None).sample.mask.shape == (64, 64)  # as read
    held = session.edited().source
    dropped(value=99)
    with pytest.raises(InputError) as caught:
        acts.upload(studio, session, str(image), str(mask))
    assert "99" in str(caught.value) and str(session.folder) not in str(caught.value)
    assert session.edited().source is held and held.read(0).mask.shape == (64, 64), "the tile before is still there"
    Image.fromarray(np.full((64, 64), 1, np.uint8)).save(mask)
    assert acts.upload(studio, session, str(image), str(mask)).sample.mask.max() == 1, "the next try, with another mask"
    for content, suffix, says in (
        (b"no image", ".png", "wrong.png: not a readable image"),
        (b"MZ", ".exe", "not an image by its name"),
    ):
        wrong = tmp_path / f"wrong{suffix}"
        wrong.write_bytes(content)
        with pytest.raises(InputError, match=says) as caught:
            acts.upload(studio, session, str(wrong), None)
        assert str(session.folder) not in str(caught.value) and "\n" not in str(caught.value)
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * 17_000_000)
    with pytest.raises(InputError, match=r"large.png: 17.0 MB; allowed: 16 MB"):
        acts.upload(studio, session, str(large), None)
    with pytest.raises(InputError, match="no image was chosen"):
        acts.upload(studio, session, None, None)


def test_names_of_others_are_text_on_the_page(tmp_path: Path) -> None:
    legend = Legend("hostile", (LegendClass(1, HOSTILE, (1, 2, 3)), LegendClass(2, "b", (9, 9, 9))))
    image = np.zeros((8, 8, 3), np.uint8)
    shown = [
        pictures.classes(legend),
        pictures.figures([(HOSTILE, image)]),
        pictures.error(HOSTILE),
        pictures.said(HOSTILE),
        pictures.bar(HOSTILE, 1, 2),
        pictures.code(HOSTILE, HOSTILE),
        pictures.asking(HOSTILE, "", HOSTILE),
        charts.transition_matrix({f"{HOSTILE}->b": 1}, legend.names),
    ]
    for text in shown:
        assert "<img src=x" not in text and "onerror=alert(1)>" not in text, text
        assert "&lt;img" in text


def test_sessions_are_apart_and_the_oldest_goes(source_folder: Path) -> None:
    source = ca.load_source(source_folder, tile_size=64)
    sessions = Sessions(source, source_folder)
    first = sessions.of("0")
    assert sessions.of("0") is first
    (first.folder / "file").write_text("x")
    for number in range(1, MAX_SESSIONS + 1):
        sessions.of(str(number))
    assert not first.folder.exists() and first.stop.is_set() and sessions.of("0") is not first
    sessions.end("5")
    sessions.close()
    assert not sessions.root.exists()


def test_the_command_reads_masks_as_the_studio_was_told(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A legend of the tiles' own, its numbers those of the files, mapped into the model's."""
    source = write_source(tmp_path / "source")
    (source / "legend.json").unlink()
    for file in (source / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) * 10).astype(np.uint8)).save(file)
    names = Legend.load(tiny_model_folder / "legend.json").names
    classes = [{"index": i, "name": f"x {name}", "value": 10 * i} for i, name in enumerate(names[:-1], 1)]
    (tmp_path / "own.json").write_text(json.dumps({"name": "own", "classes": classes}))
    (tmp_path / "map.yaml").write_text("".join(f"x {name}: {name}\n" for name in names[:-1]))
    opened = Studio(
        StudioOptions(
            source=source, legend=str(tmp_path / "own.json"), legend_map=tmp_path / "map.yaml", device="cpu",
            model=str(tiny_model_folder), out=tmp_path / "sets",
        )
    )  # fmt: skip
    page = opened.sessions.of("page")
    page.choose("tile_0")
    paint(opened, page)
    assert page.painted is not None
    code = acts.snippets(opened, page)
    saved(code, tmp_path)
    assert np.asarray(Image.open(tmp_path / "masks_t2" / "tile_0.png")).max() > len(names)
    words = words_of(code)
    for flag, value in (("legend", "own.json"), ("legend-map", "map.yaml"), ("device", "cpu")):
        assert words[words.index(f"--{flag}") + 1].endswith(value)
    monkeypatch.chdir(tmp_path)
    assert run(words) == 0
    asked = page.painted.asked
    assert_masks(asked.sample.mask, asked.plan.mask_t2)
    shutil.rmtree("my_pairs")
    python = html.unescape(re.findall(r"<code>(import .*?)</code>", code, re.DOTALL)[0])
    exec(python, {})
    assert_masks(asked.sample.mask, asked.plan.mask_t2)
    page.choose("tile_0")
    acts.place_box(page, [20, 40, 12, 10], names[-1], opened.legend)
    list(acts.painting(opened, page, SETTINGS))
    assert f"no class that is {names[-1]}" in acts.snippets(opened, page) and "<pre" not in acts.snippets(opened, page)
    opened.close()


def test_a_painting_is_of_the_tile_that_it_was_asked_for(
    studio: Studio, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another source is open by the time that it is kept, taken or copied."""
    paint(studio, session, count=2)
    image, mask = tmp_path / "x.png", tmp_path / "m.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(image)
    Image.fromarray(np.full((64, 64), 1, np.uint8)).save(mask)
    acts.upload(studio, session, str(image), str(mask))
    session.take(1)
    assert f"--source {studio.options.source}" in acts.snippets(studio, session)
    key = acts.keep_painted(studio, session, "origins")
    paint(studio, session)  # of the upload
    with pytest.raises(InputError, match="no tile is called"):
        session.choose("nobody")
    list(acts.painting(studio, session, SETTINGS))
    session.choose("tile_1")
    code = acts.snippets(studio, session)
    assert acts.keep_painted(studio, session, "origins") == "upload_000"
    pairs = ca.load_pairs(studio.options.out / "origins")
    records = {pairs.key_of(i): pairs.record_of(i) for i in range(len(pairs))}
    assert records[key]["source"] == "source" and records["upload_000"]["source"] == "my_folder"
    saved(code, tmp_path)
    (tmp_path / "my_folder" / "images").mkdir()
    shutil.copy(image, tmp_path / "my_folder" / "images" / "upload.png")
    monkeypatch.chdir(tmp_path)
    assert run(words_of(code)) == 0
    assert session.painted is not None
    assert_masks(session.painted.asked.sample.mask, session.painted.asked.plan.mask_t2)


def test_a_painting_of_an_upload_goes_on_while_the_next_is_opened(
    studio: Studio, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, paints = threading.Event(), studio.networks.paint

    def once_opened(asked: Asked, progress: Progress, stop: threading.Event) -> Painted:
        progress("waiting", 0, 1)
        assert opened.wait(60)
        return paints(asked, progress, stop)

    monkeypatch.setattr(studio.networks, "paint", once_opened)
    image, mask = tmp_path / "x.png", tmp_path / "m.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 192, 3), np.uint8)).save(image)
    Image.fromarray(np.full((64, 192), 1, np.uint8)).save(mask)
    acts.upload(studio, session, str(image), str(mask))
    acts.place_box(session, [20, 40, 12, 10], "building", studio.legend)
    moments = acts.painting(studio, session, SETTINGS)
    next(moments)
    donors = session.edited().source
    acts.upload(studio, session, str(image), str(mask))
    assert donors.read(2).mask.shape == (64, 64), "its neighbours give pixels"
    opened.set()
    assert list(moments)[-1].painted
    acts.upload(studio, session, str(image), str(mask))
    assert len(list(session.folder.iterdir())) == 1, "what is of no use any more goes"


def test_options_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--port", "70000"], "port is 70000; allowed: 0 to 65535"),
        (["--max-upload-mb", "0"], "max_upload_mb is 0"),
        (["--legend", "mini"], "with source"),
        (["--source", str(tmp_path / "nothing")], "nothing"),
        (["--model", str(tmp_path / "nothing")], "no such model folder"),
        (["--segmenter", str(tmp_path / "nothing")], "no segmenter"),
    ):
        assert run(["studio", "--out", str(tmp_path / "sets"), *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_job_is_the_command_that_is_shown(studio: Studio, tmp_path: Path) -> None:
    jobs = Jobs(["--source", "a folder", "--model", "mini"], tmp_path, studio.legend, "mini-segmenter")
    wanted = Wanted("made", 6, 1, "appearance", "bareland", "building", 50.0)
    command = jobs.command(wanted)
    assert command[:6] == ["changeanywhere", "generate", "--source", "a folder", "--model", "mini"]
    assert '{"bareland->building": 0.5}' in command and "[appearance]" in command
    for bad in (
        Wanted("made", 0, 1), Wanted("made", 6, -1), Wanted("../made", 6, 1), Wanted("made", 6, 1, "explosion"),
        Wanted("made", 6, 1, "any", "bareland"), Wanted("made", 6, 1, "any", "bareland", "castle"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            jobs.command(bad)


@pytest.mark.slow
def test_a_job_stops_goes_on_and_ends_in_a_report(tiny_model_folder: Path, tmp_path: Path, studio: Studio) -> None:
    source = write_source(tmp_path / "source")
    base = ["--source", str(source), "--model", str(tiny_model_folder), "--tile-size", "64"]
    jobs = Jobs(base, tmp_path / "sets", studio.legend, "mini-segmenter")
    wanted = Wanted("made", 40, 1)
    job = jobs.start(wanted)
    assert jobs.start(wanted) is job, "whoever asks for the set that is being made sees that job"
    wait = threading.Event()
    while job.code is None and job.progress[0] == 0:
        wait.wait(0.05)
    job.stop()
    while job.code is None:
        wait.wait(0.05)
    stopped = job.progress[0]
    assert job.code == 1 and 0 < stopped < 40 and "interrupted" in job.log, job.log
    again = jobs.start(wanted)
    while again.code is None:
        wait.wait(0.05)
    assert again.code == 0 and again.progress == (40, 40) and (tmp_path / "sets" / "made" / "report.html").is_file()
    assert open_review(tmp_path / "sets", "made").chosen(Filter()) and sets_in(tmp_path / "sets") == ["made"]
    jobs.close()
