"""The studio's page in a real browser (Debian's Chromium, by Playwright): ``make test-studio``.

STUDIO_PICTURES names a folder for a screenshot of each step; docs/studio/ holds those of the page as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run
from studio_served import Served, serving

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PICTURES = os.environ.get("STUDIO_PICTURES")
WAIT = 60_000
TILE = "mumbai_tile_1-20_0"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served") / "sets") as studio:
        yield studio


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium, or CHROMIUM=PATH")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(served: Served, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each a user of its own; fails where one asked another server for anything, or broke its policy."""
    foreign: list[str] = []
    wrong: list[str] = []
    contexts = []

    def opened(size: dict[str, int] = LAPTOP) -> Any:
        context = browser.new_context(viewport=size)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        own = (served.url, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else foreign.append(asked.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.goto(served.url)
        page.wait_for_selector("#facts p")
        page.wait_for_timeout(500)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not foreign and not wrong


def shot(page: Any, name: str, **more: Any) -> None:
    """A screenshot of a step, small enough for a page of documentation."""
    if PICTURES:
        file = Path(PICTURES) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(400)
        page.screenshot(path=file, **more)
        image = Image.open(file).convert("RGB")
        image.save(file.with_suffix(".jpg"), quality=72, optimize=True)
        file.unlink()


def said(page: Any, where: str, what: str, wait: int = WAIT) -> None:
    """Wait until an element says something."""
    page.locator(where).filter(has_text=what).first.wait_for(timeout=wait)


def choose(page: Any, where: str, value: str) -> None:
    """One of a list, as people do."""
    field = page.locator(f"{where} input")
    field.click()
    field.fill(value)
    page.locator("[role=option]", has_text=re.compile(f"^\\W*{re.escape(value)}\\W*$")).first.click()


def paint(page: Any) -> float:
    """Seconds until date 2 is there."""
    before = page.locator("#swipe .ca-over").get_attribute("src") if page.locator("#swipe .ca-over").count() else ""
    started = time.perf_counter()
    page.click("#paint")
    page.wait_for_function(
        "before => { const i = document.querySelector('#swipe .ca-over'); return i && i.src !== before }", arg=before
    )
    return time.perf_counter() - started


def box(page: Any, left: int = 20, top: int = 32) -> None:
    """Place a building by its coordinates."""
    for name, value in (("left", left), ("top", top), ("width", 48), ("height", 40)):
        page.fill(f"#box-{name} input", str(value))
    page.click("#box-place")
    said(page, "#facts", "1 edit(s)")


def test_from_a_tile_to_an_exported_set(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click(f"#tiles [data-ask='{TILE}']")
    said(page, "#facts", TILE)
    shot(page, "1-tile")
    box(page)
    shot(page, "2-building")
    paint(page)
    said(page, "#panels", "is read as its new class")
    page.locator("#swipe").scroll_into_view_if_needed()
    bar = page.locator("#swipe input")
    bar.focus()
    at = page.eval_on_selector("#swipe .ca-swipe", "e => e.style.getPropertyValue('--at')")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    moved = page.eval_on_selector("#swipe .ca-swipe", "e => e.style.getPropertyValue('--at')")
    assert moved == "30%" != at
    shot(page, "3-painted")
    page.click("#vary")
    page.locator("#variations figure").nth(2).wait_for()
    page.locator("#variations button").nth(1).click()
    page.locator("#variations figure:nth-of-type(2)[aria-current]").wait_for()
    page.locator("#variations").scroll_into_view_if_needed()
    shot(page, "4-variations")
    page.fill("#set-name input, #set-name textarea", "town")
    page.click("#keep")
    said(page, "#kept", f"kept as {TILE}_000")
    page.locator("#copy button").first.click()
    said(page, "#code", "--masks-t2")
    page.locator("#code").scroll_into_view_if_needed()
    shot(page, "5-kept")
    assert run(["check", str(served.out / "town")]) == 0


def test_the_brush_is_snapped_to_classes(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click(f"#tiles [data-ask='{TILE}']")
    said(page, "#facts", TILE)
    page.wait_for_timeout(1500)
    page.locator("#editor canvas").first.scroll_into_view_if_needed()
    canvas = page.locator("#editor canvas").first.bounding_box()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 30, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.click("#apply")
    said(page, "#facts", "1 edit(s)")
    text = page.locator("#facts").inner_text()
    share = float(re.search(r"([\d.]+) %", text).group(1))  # type: ignore[union-attr]
    assert 0.1 < share < 10, text
    page.click("#undo")
    said(page, "#facts", "0 edit(s)")


def test_decisions_by_keys_outlast_a_reload_and_kept_pairs_are_exported(
    served: Served, open_page: Callable[..., Any]
) -> None:
    page = open_page()
    page.click(f"#tiles [data-ask='{TILE}']")
    said(page, "#facts", TILE)
    page.fill("#set-name input, #set-name textarea", "looked-at")
    for number in range(3):
        page.click("#again")
        said(page, "#facts", "0 edit(s)")
        box(page, 20 + 10 * number)
        paint(page)
        page.click("#keep")
        said(page, "#kept", f"_{number:03d} in the set looked-at")
    turn_to_review(page, "looked-at")
    said(page, "#review-panels", f"{TILE}_000")
    shot(page, "6-review")
    for key, says in (("k", "_000: keep"), ("d", "_001: drop"), ("k", "_002: keep")):
        page.keyboard.press(key)
        said(page, "#review-said", says)
    page.reload()
    page.wait_for_selector("#facts p")
    turn_to_review(page, "looked-at")
    said(page, "#sheet", "3 decided, 2 kept")
    page.locator("#charts [data-ask^='transition:']").first.click()
    said(page, "#sheet", "pairs pass the filter")
    page.locator("#sheet").scroll_into_view_if_needed()
    shot(page, "7-sheet")
    page.click("#export")
    said(page, "#exported", "2 kept pair(s) as levir")
    page.locator("#exported").scroll_into_view_if_needed()
    shot(page, "8-exported")
    out = served.out / "exports" / "looked-at-levir"
    assert run(["check", str(out)]) == 0 and len(ca.load_pairs(out)) == 2


def turn_to_review(page: Any, name: str) -> None:
    page.get_by_role("tab", name="Review").click()
    page.wait_for_timeout(800)
    choose(page, "#review-set", name)
    page.click("#review-open")
    page.locator("#review-swipe img").first.wait_for()
    page.locator("#review-panels").click()


def test_a_painting_is_cancelled_and_two_pages_do_not_mix(open_page: Callable[..., Any]) -> None:
    page, other = open_page(), open_page()
    page.click(f"#tiles [data-ask='{TILE}']")
    said(page, "#facts", TILE)
    assert TILE not in other.locator("#facts").inner_text()
    box(page)
    page.fill("#steps input[type=number]", "200")
    page.locator("#own-strength input").uncheck()
    page.fill("#strength input[type=number]", "1")
    page.keyboard.press("Tab")
    page.click("#paint")
    said(page, "#progress", "of 200")
    shot(page, "9-progress")
    assert not other.locator("#progress").inner_text().strip()
    page.click("#cancel")
    said(page, "#paint-message", "stopped; nothing of this painting is kept")
    assert not page.locator("#swipe img").count()
    page.click("#keep")
    said(page, "#paint-message", "nothing is painted yet")


def test_a_wrong_file_is_one_line(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Or an image of yours").click()
    wrong = tmp_path / "<b>wrong<b>.png"
    wrong.write_bytes(b"not a picture")
    page.set_input_files("#upload-image input[type=file]", wrong)
    page.locator("#upload-image").filter(has_text="png").wait_for()
    page.click("#upload")
    said(page, "#paint-message", "not a readable image")
    message = page.locator("#paint-message [role=alert]")
    assert "\n" not in message.inner_text().strip() and message.locator("b").count() == 0
    shot(page, "10-wrong-file")
    right = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)).save(right)
    page.locator("#upload-image button[aria-label*='Clear'], #upload-image button[aria-label*='Remove']").first.click()
    page.set_input_files("#upload-image input[type=file]", right)
    page.locator("#upload-image").filter(has_text="mine").wait_for()
    page.click("#upload")
    said(page, "#facts", "upload")


def test_a_small_set_is_made_stopped_and_gone_on_with(served: Served, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_role("tab", name="Generate").click()
    page.fill("#job-name input, #job-name textarea", "made")
    page.fill("#job-pairs input", "16")
    page.click("#job-start")
    said(page, "#job-command", "changeanywhere generate --source examples")
    said(page, "#job-log", "painting pairs: 4 of 16")
    shot(page, "11-generate")
    page.click("#job-stop")
    said(page, "#job-progress", "ended with exit code 1", 2 * WAIT)
    page.click("#job-start")
    said(page, "#job-progress", "made is finished: 16 pairs", 4 * WAIT)
    shot(page, "12-generated")
    with page.context.expect_page() as popped:
        page.get_by_role("link", name="open its report").click()
    assert "made" in popped.value.title()
    assert run(["check", str(served.out / "made")]) == 0


def test_the_page_fits_a_phone_and_keyboards_reach_all(open_page: Callable[..., Any]) -> None:
    page = open_page(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shot(page, "13-phone")
    page.keyboard.press("Tab")
    reached: set[str] = set()
    for _ in range(160):
        found = page.evaluate(
            "() => { const e = document.activeElement; const c = e && e.closest('[id]'); return c ? c.id : '' }"
        )
        reached.add(found)
        page.keyboard.press("Tab")
    wanted = {"box-place", "propose", "undo", "paint", "cancel", "keep", "vary", "again", "apply"}
    assert wanted <= reached, wanted - reached
    page.focus("#box-place")
    page.keyboard.press("Enter")
    said(page, "#facts", "1 edit(s)")
    page.focus("#paint")
    page.keyboard.press("Enter")
    page.locator("#swipe img").first.wait_for()
    page.locator("#swipe").scroll_into_view_if_needed()
    shot(page, "14-phone-painted")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


OF_THE_LIBRARY: dict[str, str] = {}
"""Findings of Gradio's own components, rule → which."""


def test_no_serious_finding_of_accessibility(open_page: Callable[..., Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    page = open_page()
    box(page)
    paint(page)
    found: dict[str, list[str]] = {}
    for tab in ("Paint", "Review", "Generate"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        page.evaluate(script)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for each in result["violations"]:
            if each["impact"] in ("serious", "critical"):
                found.setdefault(each["id"], []).extend(f"{tab}: {node['html'][:160]}" for node in each["nodes"])
    own = {rule: nodes for rule, nodes in found.items() if rule not in OF_THE_LIBRARY}
    assert not own, own


def test_the_first_page_comes_at_once_and_the_model_is_loaded_once(
    served: Served, open_page: Callable[..., Any]
) -> None:
    """Six seconds each on two idle cores; more where others use them."""
    limit = 6 * max(1.0, os.getloadavg()[0] / 2)
    assert served.seconds < limit, f"{served.seconds:.1f} s from the command to the first page"
    page = open_page()
    box(page)
    assert paint(page) < limit
