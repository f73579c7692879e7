"""A window that shows frames, for `render_mode="human"`."""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402, the line above must come first


class Window:
    """A pygame window that opens with the first frame and takes its size.

    Args:
        title: title of the window.
        fps: frames per second; `show` waits until the frame is due.
    """

    def __init__(self, title: str, fps: int) -> None:
        self.title, self.fps = title, fps
        self._surface: pygame.Surface | None = None
        self._clock = pygame.time.Clock()

    def show(self, frame: np.ndarray) -> None:
        """Show a frame, (H, W, 3) uint8."""
        height, width, _ = frame.shape
        if self._surface is None:
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self._surface = pygame.display.set_mode((width, height))
        self._surface.blit(pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB"), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.fps)

    def close(self) -> None:
        """Close the window."""
        if self._surface is not None:
            self._surface = None
            pygame.display.quit()
