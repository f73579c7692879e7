"""What `env.render()` returns: text, a frame, or None when there is a window."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.drawing.colours import category_colours
from edgerec_gym.drawing.screen import INSERTED, PROMOTED, REQUESTED, Card, Screen, ScreenRecorder
from edgerec_gym.errors import MissingExtraError
from edgerec_gym.feed.batch import FeedBatch

if TYPE_CHECKING:
    from edgerec_gym.drawing.window import Window

RENDER_MODES = ("ansi", "human", "rgb_array")
FPS = 4  # slots per second
SHOWN = 8  # answered cards in a text screen
SIDE_BY_SIDE = 3  # feeds of a batch in one window


class Renderer:
    """Shows the feeds of a batch.

    Args:
        mode: one of :data:`RENDER_MODES`. "human" shows the first feeds in a window after every slot, even
            within the plans of EdgeFeedSlate-v0.
        batch: the feeds, before their first reset.
        catalog: what the cloud retrieves from.
        title: title of the window.

    Raises:
        MissingExtraError: Pillow or pygame is not installed.
    """

    def __init__(self, mode: str, batch: FeedBatch, catalog: Catalog, title: str) -> None:
        self.mode, self.batch = mode, batch
        self.recorder = ScreenRecorder(batch, catalog)
        self._window: Window | None = None
        if mode == "ansi":
            return
        for needed in ("PIL", "pygame") if mode == "human" else ("PIL",):
            if find_spec(needed) is None:
                raise MissingExtraError(f"render_mode={mode!r}", "render")
        from edgerec_gym.drawing.phone import frame

        self._draw, self._colours = frame, category_colours(catalog)
        if mode == "human":
            from edgerec_gym.drawing.window import Window

            self._window = Window(title, FPS)
            batch.watcher = self._show

    def render(self) -> tuple[str, ...] | tuple[np.ndarray, ...] | None:
        """Return each row's text or frame (760, 390, 3) uint8; None with a window, which updates itself."""
        rows = range(self.batch.num_envs)
        if self.mode == "ansi":
            return tuple(screen_text(self.recorder.screen(row)) for row in rows)
        return None if self.mode == "human" else tuple(self._frame(row) for row in rows)

    def _frame(self, row: int) -> np.ndarray:
        return self._draw(self.recorder.screen(row), self._colours)

    def _show(self, modes: np.ndarray) -> None:
        self.recorder(modes)
        if self._window is not None:
            frames = [self._frame(row) for row in range(min(SIDE_BY_SIDE, self.batch.num_envs))]
            self._window.show(np.concatenate(frames, axis=1))

    def close(self) -> None:
        """Close the window, if there is one; the next slot opens it again."""
        if self._window is not None:
            self._window.close()


def screen_text(screen: Screen) -> str:
    """Return a screen as text: counters, the last cards, and what happened between them, newest last."""
    on_the_wire = f"  [page in {screen.arrives_in}, {screen.on_the_wire}]" if screen.on_the_wire else ""
    lines = [
        f"slot {screen.slot} of {screen.max_slots}  page {screen.page + 1} (card {screen.page_age} of "
        f"{screen.page_size})  pool {screen.pool_left} of {screen.pool_size}  reward {screen.reward:+.2f}  "
        f"clicks {screen.clicks}  purchases {screen.purchases}  requests {screen.requests}{on_the_wire}"
    ]
    waiting = sum(card.answer is None for card in screen.cards)
    first = max(0, len(screen.cards) - waiting - SHOWN)
    page = screen.cards[first - 1].page if first else 0
    for card in screen.cards[first:]:
        if card.page > page:
            page = card.page
            lines.append(f"       page {page + 1}, {card.page_from}")
        if card.request == REQUESTED:
            lines.append("       asks the cloud for a fresh page")
        lines.append(_card_text(card))
    if screen.end is not None:
        lines.append("       the user leaves" if screen.end == "left" else "       cut off")
    if screen.intent is not None:
        lines.append(f"intent: category {screen.intent[-1]}")
    return "\n".join(lines)


def _card_text(card: Card) -> str:
    """Return one card as text: slot, kind, category, how it was placed, what the user did."""
    how = f"row {card.row + 1}"
    if card.placed == INSERTED:
        how = "inserted"
    elif card.placed == PROMOTED:
        how += f", before {card.passed}"
    if card.invalid:
        how += ", illegal action"
    text = f"{card.slot + 1:5d}  {card.kind:8s} category {card.category:<4d} {how:16s}  "
    answer = card.answer
    if answer is None:
        return text + "on screen"
    did = [f"opened {answer.view_seconds}"] if answer.click else []
    did += [*answer.actions, *answer.responses, *([f"deleted: {answer.deleted}"] if answer.deleted else [])]
    return (text + f"{'#' * round(7 * answer.dwell):7s} {answer.dwell_seconds:11s} {', '.join(did)}").rstrip()
