"""Shapes, text and icons on a Pillow image in logical pixels, drawn at twice the size for smooth edges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
WHITE = "#ffffff"


@lru_cache(maxsize=32)
def _font(size: float) -> Any:
    return ImageFont.load_default(size * SCALE)  # ships with Pillow: the same letters on every machine


def mixed(colour: str, other: str, share: float) -> str:
    """Mix a `share` (0..1) of `other` into `colour`; all colours are "#rrggbb"."""
    a, b = (np.array([int(c[k : k + 2], 16) for k in (1, 3, 5)]) for c in (colour, other))
    return "#" + "".join(f"{round(v):02x}" for v in a + share * (b - a))


class Canvas:
    """Draws on an image of `width` x `height` logical pixels.

    Args:
        width: width of the image.
        height: height of the image.
        background: colour, "#rrggbb" like all colours here.
    """

    def __init__(self, width: int, height: int, background: str) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self._draw = ImageDraw.Draw(self.image)
        self._draw.fontmode = "L"

    def frame(self) -> np.ndarray:
        """Return the image, (height, width, 3) uint8."""
        return np.asarray(self.image.reduce(SCALE)).copy()

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str | None,
        *,
        radius: float = 0,
        outline: str | None = None,
        line: float = 1,
        corners: tuple[bool, bool, bool, bool] | None = None,
    ) -> None:
        """Draw a rectangle with rounded corners; draws nothing if it has no area."""
        if width <= 0 or height <= 0:
            return
        left, top = round(x * SCALE), round(y * SCALE)
        right, bottom = round((x + width) * SCALE) - 1, round((y + height) * SCALE) - 1
        if right < left or bottom < top:
            return
        self._draw.rounded_rectangle(
            (left, top, right, bottom),
            min(radius * SCALE, (right - left + 1) / 2, (bottom - top + 1) / 2),
            fill,
            outline,
            round(line * SCALE) if outline else 0,
            corners=corners,
        )

    def line(self, *points: float, colour: str, width: float = 1.5) -> None:
        """Draw a line through x, y, x, y, ..."""
        self._draw.line([v * SCALE for v in points], colour, round(width * SCALE), joint="curve")

    def polygon(self, *points: float, colour: str) -> None:
        """Fill the polygon x, y, x, y, ..."""
        self._draw.polygon([v * SCALE for v in points], colour)

    def dot(self, x: float, y: float, radius: float, colour: str | None, outline: str | None = None) -> None:
        """Draw a circle around x, y; an outline is 1.5 pixels wide."""
        edges = [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(edges, colour, outline, round(1.5 * SCALE) if outline else 0)

    def arc(self, x: float, y: float, radius: float, start: int, stop: int, colour: str) -> None:
        """Draw an arc around x, y from `start` to `stop` degrees, clockwise from three o'clock."""
        edges = [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.arc(edges, start, stop, colour, round(1.5 * SCALE))

    def width_of(self, text: str, size: float) -> float:
        """Return the width of a text."""
        return _font(size).getlength(text) / SCALE

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str,
        *,
        anchor: str = "l",
        bold: bool = False,
        most: float | None = None,
    ) -> float:
        """Write text vertically centred on y; returns its width.

        Args:
            x: left edge, middle or right edge of the text, according to `anchor` ("l", "m", "r").
            y: vertical middle of the letters.
            text: one line.
            size: size of the font.
            colour: colour of the letters.
            anchor: what `x` means.
            bold: thicken the text with a thin stroke, since the built-in font has no bold face.
            most: width beyond which the text is cut off.
        """
        if most is not None and self.width_of(text, size) > most:
            while text and self.width_of(text + "…", size) > most:
                text = text[:-1]
            text = text.rstrip() + "…"
        at = (x * SCALE, y * SCALE + size * SCALE * 0.36)  # the height of capitals is 0.72 of the size
        face, stroke = _font(size), 0.5 if bold else 0
        self._draw.text(at, text, colour, face, anchor=f"{anchor}s", stroke_width=stroke)
        return self.width_of(text, size)

    def pill(self, x: float, y: float, text: str, colour: str, *, filled: bool = True) -> float:
        """Write a label whose right edge is at x and middle at y; returns its left edge."""
        width = self.width_of(text, 10.5) + 14
        fill = colour if filled else mixed(colour, WHITE, 0.86)
        self.box(x - width, y - 8.5, width, 17, fill, radius=8.5)
        self.text(x - width / 2, y, text, 10.5, WHITE if filled else colour, anchor="m", bold=True)
        return x - width

    def icon(self, kind: str, x: float, y: float, colour: str) -> None:
        """Draw the icon of a kind of card, 24 pixels around x, y; unknown kinds get a plain sheet."""
        if kind == "goods":
            self.box(x - 9, y - 5, 18, 15, None, radius=3, outline=colour, line=2)
            self.arc(x, y - 5, 5, 180, 360, colour)
        elif kind == "video":
            self.dot(x, y, 11, None, colour)
            self.polygon(x - 3.5, y - 5.5, x - 3.5, y + 5.5, x + 6, y, colour=colour)
        elif kind == "live":
            self.dot(x, y, 3.2, colour)
            for radius in (7.5, 12):
                self.arc(x, y, radius, -48, 48, colour)
                self.arc(x, y, radius, 132, 228, colour)
        elif kind == "ad":
            self.polygon(
                x - 10,
                y - 3,
                x - 4,
                y - 3,
                x + 6,
                y - 10,
                x + 6,
                y + 8,
                x - 4,
                y + 3,
                x - 10,
                y + 3,
                colour=colour,
            )
            self.line(x - 6, y + 3, x - 4, y + 9, colour=colour, width=3)
            self.arc(x + 6, y - 1, 5, -60, 60, colour)
        else:
            self.box(x - 9, y - 11, 18, 22, None, radius=3, outline=colour, line=2)
            for k, length in enumerate((10, 10, 6)):
                self.line(x - 5, y - 5 + 5 * k, x - 5 + length, y - 5 + 5 * k, colour=colour)
