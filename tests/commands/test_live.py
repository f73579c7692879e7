"""`edgerec demo --live` without a browser: its events, its buttons, and whom it refuses."""

from __future__ import annotations

import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import fails_with
from live_demo import Demo, state_of, wait_for

pytest.importorskip("fastapi")
pytest.importorskip("onnx")

LINE = "interrupted: phone and cloud have ended"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The command as a user starts it, with the shipped agent; ended by Ctrl-C."""
    out = str(tmp_path_factory.mktemp("demo"))
    started = Demo(["-m", "edgerec_gym.cli", "demo", "--live", "--no-browser", "--speed", "20", "--out", out])
    children = started.children()
    assert children
    yield started
    code, stderr = started.end(signal.SIGINT)
    assert (code, stderr.splitlines()[-1]) == (130, LINE)
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 30
    while left := [number for number in children if Path(f"/proc/{number}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_events_tell_every_slot(demo: Demo) -> None:
    """A document a slot: screen, decision, messages and how far the cloud is."""
    slots: list[dict[str, Any]] = []
    sums: dict[str, int] = {"up": 0, "down": 0}
    for document in demo.events():
        state = state_of(document)
        if document["kind"] != "all":
            for message in state.get("wire", {}).get("messages", []):
                sums[message["way"]] += message["bytes"]
        if document["kind"] == "slot":
            slots.append(document)
        if len(slots) == 8:
            break
    for before, after in zip(slots, slots[1:], strict=False):
        assert after["slot"] in (before["slot"] + 1, 0)
    for slot in slots:
        state, decision = slot["state"], slot["decision"]
        assert slot["card"]["slot"] == slot["slot"] and slot["card"]["placed"] in (
            "kept", "promoted", "inserted",
        )  # fmt: skip
        assert decision["ms"] > 0 and decision["budget"] == 20 and decision["late"] in (True, False)
        assert 0 <= state["acknowledged"] <= state["answers"] <= slot["slot"] + 1
        assert state["page"] == slot["after"]["page"] and len(state["model"]["digest"]) == 64
    assert any(slot["answered"] for slot in slots)
    wire = slots[-1]["state"]["wire"]
    assert wire["up"] >= sums["up"] > 0 and wire["down"] >= sums["down"] > 0
    assert wire["snapshots"] >= wire["told"] >= 0


def waits(state: dict[str, Any]) -> int:
    """Number of answers that the cloud lacks."""
    return state["answers"] - state["acknowledged"] + state["earlier_answers"]


def test_a_cut_network_is_caught_up(demo: Demo) -> None:
    """The phone plays on without a network; afterwards the cloud has everything."""
    events = demo.events()
    wait_for(events, lambda state: state["connected"] and state["acknowledged"] > 0)
    assert demo.press("network", {"action": "cut"}) == (200, {"done": True})
    wait_for(events, lambda state: state["network"]["cut"] and not state["connected"])
    seen = wait_for(events, lambda state: waits(state) >= 3)
    seen += [document for _, document in zip(range(20), events, strict=False)]
    assert sum(document["kind"] == "slot" for document in seen) >= 3
    assert not any(state_of(document).get("connected") for document in seen)
    assert demo.press("network", {"action": "restore"})[0] == 200
    seen = wait_for(events, lambda state: state["connected"] and not waits(state) and not state["earlier"])
    last = state_of(seen[-1])
    assert not last["network"]["cut"] and not last["refused"]


def test_buttons_change_lag_model_pause_and_speed(demo: Demo) -> None:
    events = demo.events()
    first = state_of(next(events))
    assert demo.press("network", {"action": "lag", "ms": 40})[0] == 200
    wait_for(events, lambda state: state["network"]["lag_ms"] == 40)
    assert demo.press("network", {"action": "lag", "ms": 0})[0] == 200
    assert demo.press("model", {})[0] == 200
    swapped = state_of(
        wait_for(
            events,
            lambda state: state["model"]["digest"] != first["model"]["digest"] and not state["model"]["next"],
        )[-1]
    )
    assert {first["model"]["form"], swapped["model"]["form"]} == {"float32", "8 bits"}
    assert not swapped["model"]["said"]
    assert demo.press("pause", {"paused": True})[0] == 200
    wait_for(events, lambda state: state["paused"])
    assert demo.press("pause", {"paused": False})[0] == 200
    assert demo.press("speed", {"speed": 19.5})[0] == 200
    wait_for(events, lambda state: not state["paused"] and state["speed"] == 19.5)


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("network", {"action": "burn"}, "malformed"),
        ("network", {"action": "lag", "ms": 10**6}, "malformed"),
        ("network", b"{" * 5000, "longer than"),
        ("model", {"name": "../../etc"}, "malformed"),
        ("pause", {"paused": "yes"}, "malformed"),
        ("speed", {"speed": 1e9}, "allowed: 0.1 to 20"),
        ("speed", b"\xff", "malformed"),
    ],
)
def test_wrong_requests_are_refused(demo: Demo, path: str, body: Any, why: str) -> None:
    status, answer = demo.press(path, body)
    assert status == 400 and not answer["done"] and why in answer["why"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X_Edgerec_Token": "guessed"}, 403),
        ({"X_Edgerec_Token": ""}, 403),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "example.org"}, 421),
        ({"Host": "example.org", "Origin": "http://example.org"}, 421),
    ],
)
def test_other_sites_reach_no_button(demo: Demo, headers: dict[str, str], status: int) -> None:
    refused, answer = demo.press("network", {"action": "cut"}, **headers)
    assert refused == status and not answer["done"]
    assert not state_of(next(demo.events()))["network"]["cut"]


def test_other_names_of_this_machine_get_no_page(demo: Demo) -> None:
    """A site whose name leads here must not read the page, which holds the token."""
    for path in ("", "events"):
        request = urllib.request.Request(demo.url + path, headers={"Host": "rebound.example.org"})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=30)
        assert error.value.code == 421
        error.value.close()
    with urllib.request.urlopen(demo.url, timeout=30) as answer:
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert "https://" not in demo.page  # nothing is loaded from elsewhere


def test_wrong_options_and_a_taken_port_get_one_line(tmp_path: Path) -> None:
    fails_with("--speed, --port and --no-browser need --live", "demo", "--port", 8080)
    fails_with("--live takes no --quick", "demo", "--live", "--quick")
    fails_with("speed = 99 is out of range", "demo", "--live", "--speed", 99, "--out", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails_with(
            f"cannot listen on 127.0.0.1:{port}",
            "demo", "--live", "--no-browser", "--port", port, "--out", tmp_path,
        )  # fmt: skip
