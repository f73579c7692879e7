"""The page of `edgerec demo --live`: the phone, its decisions, the wire, and what the cloud knows."""

from __future__ import annotations

from typing import Any

from edgerec_gym.pages.html import POLICY, data, escape, page

TITLE = "Phone and cloud, live"
PANELS = {"now": "On the phone", "cloud": "In the cloud", "wire": "On the wire"}
BUTTONS = (  # name, words, key
    ("cut", "Cut the network", "C"),
    ("lag", "Lag: none", "L"),
    ("model", "Model", "M"),
    ("pause", "Pause", "Space"),
    ("speed", "Speed", "S"),
)
# 24 x 24 icons, since many systems' fonts lack these signs.
PHONE = (
    '<path d="M7 1h10a2 2 0 0 1 2 2v18a2 2 0 0 1-2 2H7a2 2 0 0 1-2-2V3a2 2 0 0 1 2-2z'
    'm0 3v14h10V4zm3.5 15.5v1.6h3v-1.6z"/>'
)
CLOUD = '<path d="M7 19a5 5 0 0 1-.6-9.96A6 6 0 0 1 17.9 9.1 5 5 0 0 1 17.5 19z"/>'


def live_page(told: dict[str, Any]) -> str:
    """Return the page.

    Args:
        told: `token` of its buttons, and what is known of a session before it begins: `about`, `colours`,
            `pool_size`, and empty `items`, `frames`, `slots` and `answers`.
    """
    return page(
        TITLE,
        _body(told),
        ["base.css", "replay.css", "live.css"],
        ["dom.js", "panels.js", "live_panels.js", "live.js"],
        policy=f"{POLICY}; connect-src 'self'",
    )


def _body(told: dict[str, Any]) -> str:
    panels = "\n".join(_section(name, words) for name, words in PANELS.items())
    buttons = "".join(
        f'<button type="button" id="{name}" aria-keyshortcuts="{key}" disabled>'
        f"<span>{escape(words)}</span> <kbd>{key.lower()}</kbd></button>"
        for name, words, key in BUTTONS
    )
    return f"""<header>
<h1>{escape(TITLE)}</h1>
<p class="note">A simulated user scrolls. The phone decides every card by itself and tells the cloud what the
user does. Cut the network: the phone plays on, and the cloud catches up later.</p>
<div id="route" role="img" aria-label="waiting for the phone">
<div class="end">{_icon(PHONE)}<span><b>phone</b><span id="phone-says"></span></span></div>
<div class="way"><div class="lane"></div><span id="way-says"></span></div>
<div class="end"><span><b>cloud</b><span id="cloud-says"></span></span>{_icon(CLOUD)}</div>
</div>
</header>
<main>
{_section("phone", "Screen")}
<div class="panels">
{panels}
</div>
</main>
<div id="controls" role="region" aria-label="controls"><div>{buttons}</div></div>
<div id="lost" role="alert" hidden></div>
<div id="said" aria-live="polite"></div>
<noscript><p class="note">This page needs JavaScript.</p></noscript>
{data("session", told)}"""


def _section(name: str, words: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(words)}</h2>'
        '<div class="content"></div></section>'
    )


def _icon(path: str) -> str:
    return f'<svg viewBox="0 0 24 24" aria-hidden="true">{path}</svg>'
