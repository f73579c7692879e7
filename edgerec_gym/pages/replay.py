"""`edgerec replay`: one HTML file that steps through a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.evaluation.report import USERS_TITLES
from edgerec_gym.pages.html import data, escape, page, write_page

SECTIONS = {
    "phone": "Screen",
    "decision": "Decision",
    "pool": "Pool",
    "matrix": "Cards and slots",
    "request": "Uplift of a request against its price",
    "reward": "Reward",
    "intent": "The user's intent",
}
KEY = {
    "promoted": ("--c0", "promoted"),
    "inserted": ("--c4", "card inserted"),
    "asked": ("--c3", "page requested"),
    "clicked": ("--good", "click"),
    "bought": ("--bad", "purchase"),
}
# 24 x 24 icons, since many systems' fonts lack these signs.
BUTTONS = (
    ("first", "first slot", '<path d="M5 5h3v14H5zM20 5v14L9 12z"/>'),
    ("previous", "previous slot", '<path d="M15.5 4.5l2 2L12 12l5.5 5.5-2 2L8 12z"/>'),
    (
        "play",
        "play",
        '<path class="go" d="M7 4v16l13-8z"/><path class="stop" d="M6 5h4v14H6zM14 5h4v14h-4z"/>',
    ),
    ("next", "next slot", '<path d="M8.5 4.5l-2 2L12 12l-5.5 5.5 2 2L16 12z"/>'),
    ("last", "last slot", '<path d="M16 5h3v14h-3zM4 5v14l11-7z"/>'),
)
PHONE = "phone"  # stands beside the other panels if there is room


def write_replay(session: dict[str, Any], out: str | Path) -> Path:
    """Write the page of a session.

    Args:
        session: result of :func:`~edgerec_gym.pages.session.record_session`.
        out: the HTML file.

    Raises:
        InputError: the file cannot be written.
    """
    about = session["about"]
    title = f"Session {about['session']}: {about['policy']}"
    return write_page(out, page(title, _body(session, title), ["base.css", "replay.css"],
                                ["dom.js", "panels.js", "panels_why.js", "replay.js"]))  # fmt: skip


def _body(session: dict[str, Any], title: str) -> str:
    about = session["about"]
    facts = [
        about["id"],
        f"scenario {about['scenario']}",
        USERS_TITLES.get(about["users"], about["users"]),
        _count(len(session["slots"]), "slot"),
        f"reward {about['reward']:.2f}",
        _count(about["clicks"], "click"),
        _count(about["purchases"], "purchase"),
        _count(about["requests"], "request"),
        "the user left" if about["end"] == "left" else "cut off",
    ]
    key = "".join(
        f'<li><i style="background: var({colour})"></i>{escape(words)}</li>' for colour, words in KEY.values()
    )
    sections = {
        name: f'<section id="{name}"><h2>{escape(words)}</h2><div class="content"></div></section>'
        for name, words in SECTIONS.items()
    }
    screen = sections.pop(PHONE)
    panels = "\n".join(sections.values())
    buttons = "".join(
        f'<button type="button" id="{name}" aria-label="{words}" title="{words}">'
        f'<svg viewBox="0 0 24 24" aria-hidden="true">{icon}</svg></button>'
        for name, words, icon in BUTTONS
    )
    return f"""<header>
<h1>{escape(title)}</h1>
<p class="note">{escape(" · ".join(facts))}.
<span class="hint keys">Keys: arrows, page up and down, home, end; space plays.</span>
<span class="hint touch">Swipe to step.</span></p>
<div id="timeline"></div>
<ul class="key-line">{key}<li>dotted line: a page arrived</li></ul>
</header>
<main>
{screen}
<div class="panels">
{panels}
</div>
</main>
<div id="controls" role="group" aria-label="controls"><div>{buttons}
<input type="range" id="slider" min="1" max="1" value="1" aria-label="slot">
<span id="place"></span></div></div>
<div id="said" aria-live="polite"></div>
{data("session", session)}"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
