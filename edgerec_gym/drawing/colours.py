"""Colours of categories, shared by frames and session replays."""

from __future__ import annotations

import numpy as np

from edgerec_gym.cloud.catalog import Catalog

_TO_RGB = np.array(  # from cone responses to linear sRGB
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def category_colours(catalog: Catalog) -> list[str]:
    """Return a colour "#rrggbb" for each category; similar categories get similar colours.

    Categories are ordered by the angle of their mean embedding in the plane of the two largest principal
    components and get equally spaced hues.
    """
    n = int(catalog.category.max()) + 1
    means = np.zeros((n, catalog.embeddings.shape[1]))
    np.add.at(means, catalog.category, catalog.embeddings)
    means /= np.maximum(np.bincount(catalog.category, minlength=n), 1)[:, None]
    centred = means - means.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    plane = centred @ axes.T
    angle = np.arctan2(plane[:, -1], plane[:, 0])
    hues = np.empty(n)
    hues[np.argsort(angle, kind="stable")] = np.arange(n) / n
    return [_colour(hue, k) for k, hue in enumerate(hues.tolist())]


def _colour(hue: float, k: int) -> str:
    """Return a muted colour of a hue in 0..1 with fixed chroma (OKLCH); neighbours differ in lightness."""
    light, chroma, angle = (0.73, 0.66, 0.59)[k % 3], 0.115, 2 * np.pi * hue
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    # Björn Ottosson's OKLab: cone responses are cubes of these, then linear sRGB.
    cones = (
        np.array(
            [
                light + 0.3963377774 * a + 0.2158037573 * b,
                light - 0.1055613458 * a - 0.0638541728 * b,
                light - 0.0894841775 * a - 1.2914855480 * b,
            ]
        )
        ** 3
    )
    linear = np.clip(_TO_RGB @ cones, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb.tolist())
