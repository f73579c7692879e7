"""The Chromium that opens the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")  # while it runs, nothing else may run an event loop
def browser() -> Iterator[Any]:
    """The Chromium that is installed; CHROMIUM names another one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found: install one (apt install chromium), or name it in CHROMIUM")
    with playwright.sync_playwright() as started:
        # Without a sandbox it also runs as root, as in containers; the pages are our own.
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
