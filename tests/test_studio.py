"""The studio without a browser: edits, paintings, keeping, review, uploads, sessions. No Gradio here."""

from __future__ import annotations

import json
import threading
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
from changeanywhere.legend import Legend, LegendClass
from changeanywhere.pairs.pictures import data_uri
from changeanywhere.sample import rgb8
from changeanywhere.studio import acts, charts, looks, pictures
from changeanywhere.studio.acts import Settings
from changeanywhere.studio.edits import AS_BEFORE, request_of, snapped
from changeanywhere.studio.jobs import Jobs, Wanted
from changeanywhere.studio.options import StudioOptions
from changeanywhere.studio.painting import PaintingStoppedError
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
        acts.place_box(session, [1, None, 3, 4], "building", legend)
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


def test_colours_are_snapped_to_the_nearest_class() -> None:
    legend = Legend("two", (LegendClass(1, "a", (200, 0, 0)), LegendClass(2, "b", (0, 0, 200))))
    given = np.array([[190, 10, 5], [3, 3, 180], [250, 0, 250]])
    assert snapped(given, legend, (255, 0, 255)).tolist() == [1, 2, 0]


def test_a_painting_is_what_the_command_paints(
    studio: Studio, session: Session, tmp_path: Path, unquantised: None
) -> None:
    """The command that the page shows, run as it stands but for its folders."""
    assert all("<progress" in text for text in paint(studio, session)[:-1])
    assert session.painted is not None and session.painted.read.shape == (64, 64)
    masks = tmp_path / "masks_t2"
    masks.mkdir()
    Image.fromarray(session.painted.asked.plan.mask_t2).save(masks / "tile_0.png")
    code = acts.snippets(studio, session)
    assert "ca.generate(" in code and "--tile-size 64" in code and code.count("<pre") == 2
    words = ["generate", "--source", str(studio.options.source), "--masks-t2", str(masks), "--batch-size", "1"]
    words += ["--seed", "4", "--model", studio.options.model, "--num-steps", "3", "--exemplar-strength", "0.6"]
    words += ["--guidance-scale", "1.0", "--tile-size", "64", "--num-threads", str(torch.get_num_threads())]
    assert run([*words, "--out", str(tmp_path / "pairs")]) == 0
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


def test_kept_pairs_are_a_set_that_check_knows_and_exports(
    studio: Studio, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = []
    for number in range(3):
        session.choose(f"tile_{number}")
        paint(studio, session)
        keys.append(acts.keep_painted(studio, session, "kept"))
    with pytest.raises(InputError, match="in the set kept already"):
        acts.keep_painted(studio, session, "kept")
    folder = studio.options.out / "kept"
    (folder / "A" / "half_000.png").write_bytes(b"of a keep that was cut short")
    session.take(0)
    keys.append(acts.keep_painted(studio, session, "kept"))
    assert not (folder / "A" / "half_000.png").exists()
    assert run(["check", str(folder)]) == 0
    assert "4 pairs" in capsys.readouterr().out
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
    assert (edit.mask_t2 == 1).all() and not image.exists() and not mask.exists()
    inside = [file for file in session.folder.rglob("*") if file.is_file()]
    assert {file.name for file in inside} == {"upload.png", "legend.json"}
    dropped()
    assert acts.upload(studio, session, str(image), None).sample.mask.shape == (64, 64)  # as read
    held = session.source
    dropped(value=99)
    with pytest.raises(InputError) as caught:
        acts.upload(studio, session, str(image), str(mask))
    assert "99" in str(caught.value) and str(session.folder) not in str(caught.value)
    assert session.source is held and held.read(0).mask.shape == (64, 64), "the tile before is still there"
    for content, suffix, says in (
        (b"no image", ".png", "wrong.png: not a readable image"),
        (b"MZ", ".exe", "not an image by its name"),
    ):
        wrong = tmp_path / f"wrong{suffix}"
        wrong.write_bytes(content)
        with pytest.raises(InputError, match=says) as caught:
            acts.upload(studio, session, str(wrong), None)
        assert str(session.folder) not in str(caught.value) and "\n" not in str(caught.value) and not wrong.exists()
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
