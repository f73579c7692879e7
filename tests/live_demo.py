"""`edgerec demo --live` in a process of its own, and what its page sends and hears."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from places import ROOT

QUIET = 120  # seconds without an event after which the demo is taken for dead
WITHOUT_TORCH = """
from pathlib import Path
from edgerec_gym import interrupts
from edgerec_gym.commands.live import LiveSettings, run_live
interrupts.install()
run_live(LiveSettings(Path({folder!r}), speed=20.0, baselines=True), lambda url: print(url, flush=True))
"""


class Demo:
    """A running demo.

    Attributes:
        process: of the command.
        url: of the page.
        page: HTML of the page.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line + self.process.communicate(timeout=60)[1]
        self.url = found[0]
        with urllib.request.urlopen(self.url, timeout=QUIET) as answer:
            self.page = answer.read().decode()
        told = re.search(r'<script type="application/json" id="session">(.*?)</script>', self.page)
        assert told
        self.token = json.loads(told[1])["token"]

    def press(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send what a button sends; returns the status and the answer."""
        own = {
            "Content-Type": "application/json",
            "Origin": self.url.rstrip("/"),
            "X-Edgerec-Token": self.token,
        }
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, own | sent, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=QUIET) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the documents of the page's events."""
        with urllib.request.urlopen(self.url + "events", timeout=QUIET) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def children(self) -> list[int]:
        """Numbers of the processes that the command has started."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in listed.read_text().split()]

    def end(self, number: int) -> tuple[int, str]:
        """End it by a signal; returns its exit code and stderr."""
        self.process.send_signal(number)
        stderr = self.process.communicate(timeout=60)[1]
        return self.process.returncode, stderr


def state_of(document: dict[str, Any]) -> dict[str, Any]:
    return document if document["kind"] == "state" else document.get("state", {})


def wait_for(
    events: Iterator[dict[str, Any]], holds: Callable[[dict[str, Any]], Any], most: int = 3000
) -> list[dict[str, Any]]:
    """Read events until the state of one holds; returns those read."""
    seen = []
    for document in events:
        seen.append(document)
        state = state_of(document)
        if state and holds(state):
            return seen
        assert len(seen) < most, state
    raise AssertionError(f"the events have ended: {seen[-1:]}")
