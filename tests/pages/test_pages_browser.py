"""The pages in headless Chromium: no errors, nothing loaded, keys, buttons, touch, and room on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import RESULTS

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.bench.track import all_tracks
from edgerec_gym.pages.replay import write_replay
from edgerec_gym.pages.report import write_report_page
from edgerec_gym.pages.session import record_session

TRACKS = all_tracks()
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A report, and replays of a session with and without explanations."""
    folder = tmp_path_factory.mktemp("pages")
    made = {"report": write_report_page(RESULTS, folder / "report.html", tracks=TRACKS)[0]}
    for name, policy, env_id in (("oracle", "oracle", "EdgeFeedMix-v0"), ("keep", "keep", "EdgeFeed-v0")):
        found = find_policy(policy, env_id, "lite", "synthetic")
        told = record_session(found, env_id=env_id, scenario="lite", users="synthetic", session=3)
        made[name] = write_replay(told, folder / f"{name}.html")
    return made


@pytest.fixture
def visit(browser, pages) -> Iterator[Any]:
    """Open a page in a window; errors and anything loaded beside the page fail the test at its end."""
    troubles: list[str] = []
    contexts = []

    def opened(name: str, viewport: dict[str, int], scheme: str = "light", hash_: str = "") -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=viewport is PHONE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.extend([request.url] * (request.url[:5] != "file:")))
        page.goto(pages[name].as_uri() + hash_)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def wide(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


CLIPPED = """() => [...document.querySelectorAll("svg.chart")].flatMap((chart) => {
  const box = chart.getBoundingClientRect();
  return [...chart.querySelectorAll("text")].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.width && (own.left < box.left - 3 || own.right > box.right + 3);
  }).map((text) => text.textContent);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_report_fits_and_its_labels_are_whole(visit, viewport, scheme):
    page = visit("report", viewport, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert wide(page) == viewport["width"]  # tables scroll inside their boxes
    assert page.evaluate(CLIPPED) == []
    assert page.locator("svg.chart").count() > 20
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


def test_a_legend_shows_one_series_alone(visit):
    page = visit("report", PHONE)
    figure = page.locator("figure", has=page.locator(".legend button")).first
    figure.locator(".legend button").nth(1).click()
    assert figure.locator(".series.chosen").count() > 0
    assert figure.locator(".series.chosen:not([data-series='1'])").count() == 0
    figure.locator(".legend button").nth(1).click()
    assert figure.locator(".chosen").count() == 0


def place(page: Any) -> tuple[int, int]:
    _, slot, _, of = page.locator("#place").inner_text().split()
    return int(slot), int(of)


def test_keys_buttons_and_slider_step_through_a_replay(visit):
    page = visit("oracle", DESKTOP)
    first, last = place(page)
    assert first == 1 and last > 5
    keys = ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", last), ("ArrowRight", last)
    for key, slot in (*keys, ("Home", 1), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert place(page)[0] == slot
        assert page.locator("#phone .card.newest .slot").inner_text() == str(slot)
    for button, slot in (("next", 2), ("last", last), ("previous", last - 1), ("first", 1)):
        page.locator(f"#{button}").click()
        assert place(page)[0] == slot
    page.locator("#slider").fill("4")
    assert place(page)[0] == 4 and page.url.endswith("#4")
    page.keyboard.press("Space")
    page.get_by_text("slot 5 of").wait_for()
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-label") == "play"
    page.locator("#timeline svg").click(position={"x": 2, "y": 5})
    assert place(page)[0] == 1


SWIPE = """([from, to]) => {
  const at = (x) => [new Touch({identifier: 1, target: document.body, clientX: x, clientY: 300})];
  document.body.dispatchEvent(new TouchEvent("touchstart", {touches: at(from), bubbles: true}));
  document.body.dispatchEvent(new TouchEvent("touchend", {changedTouches: at(to), bubbles: true}));
}"""


def test_a_swipe_steps_and_no_slot_is_wider_than_a_phone(visit):
    page = visit("oracle", PHONE, "dark")
    for (start, end), slot in (((300, 100), 2), ((300, 100), 3), ((100, 300), 2), ((200, 190), 2)):
        page.evaluate(SWIPE, [start, end])
        assert place(page)[0] == slot
    for _ in range(place(page)[1]):
        assert wide(page) == PHONE["width"]
        page.keyboard.press("ArrowRight")


def test_panels_are_shown_where_there_is_something_to_show(visit):
    page = visit("oracle", DESKTOP, hash_="#3")
    assert place(page)[0] == 3
    assert page.locator("#matrix .heat").count() > 0 and page.locator("#request").is_hidden()
    page = visit("keep", DESKTOP)
    for name in ("phone", "decision", "pool", "reward", "intent"):
        assert page.locator(f"#{name}").is_visible() and page.locator(f"#{name} .content").inner_text()
    assert page.locator("#matrix").is_hidden() and page.locator("#request").is_hidden()
