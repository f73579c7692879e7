"""Draws the screen of a phone: cards, how they were placed, and what the user did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerec_gym.drawing.canvas import WHITE, Canvas, mixed
from edgerec_gym.drawing.screen import INSERTED, PROMOTED, REQUESTED, Card, Screen

WIDTH, HEIGHT = 390, 760
CANVAS, BODY, PAPER, SHADE = "#e8ebf0", "#14171d", "#f3f5f8", "#dfe3ea"
INK, MUTED, FAINT = "#1b2230", "#737d8f", "#c3cad5"
BLUE, ORANGE, GREEN, RED, VIOLET = "#3f5fd6", "#e2620e", "#1f9254", "#cc3340", "#8040b8"

LEFT, RIGHT = 26, WIDTH - 26  # edges of the cards
FEED_TOP, FEED_BOTTOM = 100, 626
CARD, GAP, DIVIDER = 64, 8, 20
STRIP_LEFT = 74


def frame(screen: Screen, colours: Sequence[str]) -> np.ndarray:
    """Draw a screen.

    Args:
        screen: what is on it.
        colours: colours of the categories (:func:`~edgerec_gym.drawing.colours.category_colours`).

    Returns:
        (760, 390, 3) uint8; equal screens give equal frames.
    """
    canvas = Canvas(WIDTH, HEIGHT, CANVAS)
    canvas.box(8, 8, WIDTH - 16, HEIGHT - 16, BODY, radius=44)
    canvas.box(13, 13, WIDTH - 26, HEIGHT - 26, PAPER, radius=39)
    _feed(canvas, screen, colours)
    _header(canvas, screen)
    _summary(canvas, screen, colours)
    return canvas.frame()


# --- the feed ----------------------------------------------------------------------------------------------


def _feed(canvas: Canvas, screen: Screen, colours: Sequence[str]) -> None:
    """Draw cards and dividers, with the newest at the bottom once the screen is full."""
    parts = _parts(screen)
    total = sum(_height(part) + GAP for part in parts) - GAP
    y = float(FEED_TOP + 4)
    room = FEED_BOTTOM - 8 - y
    waiting = sum(isinstance(part, Card) and part.answer is None for part in parts)
    if total > room:
        y += room - total
        # Otherwise, with a long lookahead, the newest cards would push the one just answered off the screen.
        y += max(0, (waiting + 2) * (CARD + GAP) - room) if waiting < len(parts) else 0
    if not parts:
        canvas.text(
            WIDTH / 2, (FEED_TOP + FEED_BOTTOM) / 2 - 10, "A session starts", 15, INK, anchor="m", bold=True
        )
        canvas.text(WIDTH / 2, (FEED_TOP + FEED_BOTTOM) / 2 + 12, "nothing shown yet", 12, MUTED, anchor="m")
    for part in parts:
        if FEED_TOP - CARD < y < FEED_BOTTOM:
            if isinstance(part, Card):
                _card(canvas, part, y, screen, colours[part.category])
            else:
                _divider(canvas, y, *part)
        y += _height(part) + GAP


def _parts(screen: Screen) -> list[Card | tuple[str, str]]:
    """Return the cards and what happened between them: a request, a page, the end."""
    parts: list[Card | tuple[str, str]] = []
    page = 0
    for card in screen.cards:
        if card.page > page:
            page = card.page
            asked = card.page_from == REQUESTED
            parts.append((f"page {page + 1}, {card.page_from}", BLUE if asked else MUTED))
        if card.request == REQUESTED:
            parts.append(("asks the cloud for a fresh page", BLUE))
        parts.append(card)
        if card.answer is not None and card.answer.left:
            parts.append(("the user leaves", RED))
    if screen.end == "cut off":
        parts.append((f"cut off at {screen.max_slots} slots", RED))
    elif screen.page > page:
        asked = screen.page_from == REQUESTED
        parts.append((f"page {screen.page + 1}, {screen.page_from}", BLUE if asked else MUTED))
    return parts


def _height(part: Card | tuple[str, str]) -> int:
    return CARD if isinstance(part, Card) else DIVIDER


def _divider(canvas: Canvas, y: float, text: str, colour: str) -> None:
    middle, half = y + DIVIDER / 2, canvas.width_of(text, 11) / 2 + 10
    for start, stop in ((LEFT + 8, WIDTH / 2 - half), (WIDTH / 2 + half, RIGHT - 8)):
        canvas.line(start, middle, stop, middle, colour=mixed(colour, PAPER, 0.55), width=1)
    canvas.text(WIDTH / 2, middle, text, 11, colour, anchor="m", bold=True)


def _card(canvas: Canvas, card: Card, y: float, screen: Screen, colour: str) -> None:
    answer, latest = card.answer, False
    if answer is not None:
        following = card.slot + 1
        latest = following >= len(screen.cards) or screen.cards[following].answer is None
    edge = None
    if answer is not None and answer.click:
        edge = GREEN if answer.bought else ORANGE
    canvas.box(LEFT, y + 1.5, RIGHT - LEFT, CARD, SHADE, radius=14)
    paper = WHITE if answer is not None else mixed(WHITE, PAPER, 0.6)
    canvas.box(LEFT, y, RIGHT - LEFT, CARD, paper, radius=14, outline=edge, line=1.5)
    if latest:
        canvas.box(LEFT - 8, y + 16, 4, CARD - 32, INK, radius=2)
    thumb = colour if answer is not None else mixed(colour, WHITE, 0.45)
    canvas.box(LEFT + 9, y + 9, 46, 46, thumb, radius=11)
    canvas.icon(card.kind, LEFT + 32, y + 32, WHITE)
    x = LEFT + 66
    canvas.text(
        x,
        y + 15,
        card.kind.capitalize(),
        13.5,
        INK if answer is not None else MUTED,
        bold=True,
        most=150,
    )
    at = x + min(150, canvas.width_of(card.kind.capitalize(), 13.5)) + 8
    canvas.text(at, y + 15, f"category {card.category}", 11.5, MUTED, most=110)
    canvas.text(RIGHT - 13, y + 15, f"{card.slot + 1}", 11.5, MUTED, anchor="r")
    _decision(canvas, card, x, y + 32.5)
    _reaction(canvas, card, x, y + 49.5, screen)


def _decision(canvas: Canvas, card: Card, x: float, y: float) -> None:
    """Draw how the card was placed."""
    if card.invalid:
        canvas.text(x, y, "illegal action: the next of the page", 11.5, RED)
    elif card.placed == INSERTED:
        canvas.line(x, y, x + 9, y, colour=VIOLET, width=2)
        canvas.line(x + 4.5, y - 4.5, x + 4.5, y + 4.5, colour=VIOLET, width=2)
        canvas.text(x + 15, y, "inserted", 11.5, VIOLET, bold=True)
    elif card.placed == PROMOTED:
        canvas.line(x + 4.5, y + 5, x + 4.5, y - 4, colour=BLUE, width=1.75)
        canvas.line(x + 1, y - 0.5, x + 4.5, y - 4.5, x + 8, y - 0.5, colour=BLUE, width=1.75)
        width = canvas.text(x + 15, y, f"row {card.row + 1}", 11.5, BLUE, bold=True)
        others = "1 candidate" if card.passed == 1 else f"{card.passed} candidates"
        canvas.text(x + 21 + width, y, f"put before {others}", 11.5, MUTED)
    else:
        canvas.text(x, y, f"row {card.row + 1}, the next of the page", 11.5, MUTED)


def _reaction(canvas: Canvas, card: Card, x: float, y: float, screen: Screen) -> None:
    """Draw what the user did: dwell as a bar, then labels."""
    answer = card.answer
    if answer is None:
        canvas.text(x, y, "never looked at" if screen.end else "on screen, not answered yet", 11, MUTED)
        return
    canvas.box(x, y - 2.5, 64, 5, "#e6e9ef", radius=2.5)
    canvas.box(x, y - 2.5, max(5, 64 * answer.dwell), 5, ORANGE if answer.click else "#8d97a8", radius=2.5)
    canvas.text(x + 71, y, answer.dwell_seconds, 11, MUTED)
    right = float(RIGHT - 10)
    if answer.bought:
        right = canvas.pill(right, y, "bought", GREEN) - 4
    if answer.click:
        right = canvas.pill(right, y, "opened" if answer.bought else f"opened {answer.view_seconds}", ORANGE)
    elif answer.deleted is not None:
        right = canvas.pill(right, y, f"deleted: {answer.deleted}", RED, filled=False)
    if answer.responses:
        canvas.pill(right - 4, y, ", ".join(answer.responses).replace("_", " "), ORANGE, filled=False)


# --- above and below ---------------------------------------------------------------------------------------


def _header(canvas: Canvas, screen: Screen) -> None:
    """Draw the clock, a page in transit, and the counters."""
    canvas.box(13, 13, WIDTH - 26, FEED_TOP - 13, WHITE, radius=39, corners=(True, True, False, False))
    canvas.line(13, FEED_TOP, WIDTH - 13, FEED_TOP, colour=SHADE, width=1)
    canvas.box(WIDTH / 2 - 34, 21, 68, 17, BODY, radius=8.5)
    canvas.text(46, 30, f"{screen.hour:02d}:00", 13, INK, bold=True)
    if screen.on_the_wire is not None:
        canvas.pill(
            RIGHT - 12, 30, f"page in {screen.arrives_in}", BLUE if screen.on_the_wire == REQUESTED else MUTED
        )
    cells = (
        ("SLOT", str(screen.slot), f"/{screen.max_slots}"),
        ("PAGE", str(screen.page + 1), f"card {screen.page_age} of {screen.page_size}"),
        ("POOL LEFT", str(screen.pool_left), f"/{screen.pool_size}"),
        ("REWARD", f"{screen.reward:+.1f}", ""),
    )
    for (label, value, rest), x in zip(cells, (30, 103, 217, 296), strict=True):
        canvas.text(x, 58, label, 9.5, MUTED)
        colour = INK
        if label == "REWARD" and screen.last_reward:
            colour = GREEN if screen.last_reward > 0 else RED
        width = canvas.text(x, 78, value, 19, colour, bold=True)
        canvas.text(x + width + 3, 81, rest, 11, MUTED)


def _summary(canvas: Canvas, screen: Screen, colours: Sequence[str]) -> None:
    """Draw counts, and the session as strips of categories: the cards shown and the user's intent."""
    top = FEED_BOTTOM
    canvas.box(13, top, WIDTH - 26, HEIGHT - 13 - top, WHITE, radius=39, corners=(False, False, True, True))
    canvas.line(13, top, WIDTH - 13, top, colour=SHADE, width=1)
    counts = (
        (screen.clicks, "click", "clicks", ORANGE),
        (screen.purchases, "purchase", "purchases", GREEN),
        (sum(card.placed == INSERTED for card in screen.cards), "card", "cards", VIOLET),
        (screen.requests, "request", "requests", BLUE),
    )
    x = 30.0
    for count, one, many, colour in counts:
        canvas.dot(x + 3.5, top + 19, 3.5, colour)
        x += 12 + canvas.text(x + 12, top + 19, f"{count} {one if count == 1 else many}", 12, INK) + 15
    width = (RIGHT - 4 - STRIP_LEFT) / screen.max_slots
    shown = [card.category for card in screen.cards]
    y = top + 53
    canvas.text(30, y + 7, "shown", 11, MUTED)
    _strip(canvas, y, shown, width, screen.max_slots, colours)
    for card in screen.cards:
        middle = STRIP_LEFT + (card.slot + 0.5) * width
        if card.answer is not None and card.answer.click:
            canvas.dot(middle, y - 7, 3, GREEN if card.answer.bought else ORANGE)
        if card.placed == INSERTED:
            canvas.box(middle - width / 2, y + 15.5, max(1, width - 0.5), 2, VIOLET)
        if card.request == REQUESTED:
            canvas.polygon(middle - 3.5, y - 12, middle + 3.5, y - 12, middle, y - 4.5, colour=BLUE)
    canvas.box(WIDTH / 2 - 55, HEIGHT - 23, 110, 4, BODY, radius=2)
    if screen.intent is not None:
        y += 24
        canvas.text(30, y + 7, "intent", 11, MUTED)
        _strip(canvas, y, screen.intent, width, screen.max_slots, colours)


def _strip(
    canvas: Canvas, y: float, categories: Sequence[int], width: float, slots: int, colours: Sequence[str]
) -> None:
    canvas.box(STRIP_LEFT, y, width * slots, 14, "#eceff4", radius=4)
    for slot, category in enumerate(categories[:slots]):
        canvas.box(STRIP_LEFT + slot * width, y, width, 14, colours[category])
