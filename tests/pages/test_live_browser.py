"""The live page in headless Chromium: it moves, its buttons, keys and touch work, and it fits a phone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from live_demo import WITHOUT_TORCH, Demo

pytest.importorskip("fastapi")

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def demo(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo in which baselines play, which starts sooner."""
    folder = str(tmp_path_factory.mktemp("live"))
    started = Demo(["-c", WITHOUT_TORCH.format(folder=folder)])
    yield started
    started.end(signal.SIGTERM)


@pytest.fixture
def visit(browser, demo: Demo) -> Iterator[Any]:
    """Open the page in a window; errors and requests to elsewhere fail the test at its end."""
    for path, body in (
        ("network", {"action": "restore"}),
        ("network", {"action": "lag", "ms": 0}),
        ("pause", {"paused": False}),
    ):
        demo.press(path, body)
    troubles: list[str] = []
    contexts = []

    def opened(viewport: dict[str, int], scheme: str = "light") -> Any:
        small = viewport is PHONE
        context = browser.new_context(
            viewport=viewport, color_scheme=scheme, has_touch=small, is_mobile=small
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.extend([request.url] * (demo.url not in request.url)))
        page.goto(demo.url)
        page.wait_for_selector("#phone .card")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def has(page: Any, selector: str, words: str) -> None:
    """Wait until an element holds some words."""
    page.locator(selector, has_text=words).first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_moves_and_fits(visit, viewport, scheme):
    page = visit(viewport, scheme)
    before = page.locator("#now .lead").inner_text()
    page.wait_for_function(
        "(before) => document.querySelector('#now .lead').innerText !== before", arg=before
    )
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.locator("#wire .messages li.up").count() and page.locator("#acknowledged").inner_text()
    bar = page.locator("#controls").bounding_box()
    assert bar["y"] + bar["height"] <= viewport["height"] + 1
    for button in page.locator("#controls button").all():
        box = button.bounding_box()
        assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


def test_buttons_show_what_they_did(visit):
    page = visit(DESKTOP)
    page.get_by_role("button", name="Cut the network").click()
    has(page, "#cloud .lead", "Cut off. The phone plays on")
    has(page, "#said", "Cut off")
    has(page, "#way-says", "cut")
    page.get_by_role("button", name="Restore the network").click()
    has(page, "#cloud .lead", "The cloud knows")
    page.get_by_role("button", name="Lag: none").click()
    has(page, "#way-says", "lag 200 ms")
    has(page, "#said", "Lag 200 ms.")
    model = page.locator("#plays").inner_text()
    page.locator("#model").click()
    page.wait_for_function("(before) => document.querySelector('#plays').innerText !== before", arg=model)
    page.locator("#lag").click()
    page.locator("#lag").click()
    has(page, "#way-says", "no lag")


def test_keys_and_focus(visit):
    page = visit(DESKTOP)
    page.keyboard.press("c")
    has(page, "#cut", "Restore the network")
    page.keyboard.press("c")
    has(page, "#cut", "Cut the network")
    page.keyboard.press("Space")
    has(page, "#pause", "Go on")
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["cut", "lag", "model", "pause", "speed"]
    page.locator("#pause").focus()
    page.keyboard.press("Space")  # the button's own key, once
    has(page, "#pause", "Pause")
    page.keyboard.press("Control+c")
    assert page.locator("#cut").inner_text().startswith("Cut")


def test_touch(visit):
    page = visit(PHONE, "dark")
    page.locator("#cut").tap()
    has(page, "#cut", "Restore the network")
    page.locator("#cut").tap()
    has(page, "#cut", "Cut the network")
    page.emulate_media(reduced_motion="reduce")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#phone .card.newest')).animationName")
        == "none"
    )


def test_two_pages_show_the_same(visit):
    first, second = visit(DESKTOP), visit(PHONE)
    second.locator("#pause").tap()
    has(first, "#pause", "Go on")
    has(second, "#pause", "Go on")
    assert first.locator("#now .lead").inner_text() == second.locator("#now .lead").inner_text()
    second.locator("#pause").tap()
    has(first, "#pause", "Pause")
