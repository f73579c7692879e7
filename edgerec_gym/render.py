"""The feed as text: the last cards of a session, newest last."""

from __future__ import annotations

from edgerec_gym.batch import FeedBatch

SHOWN = 8  # rows of history in a screen


def screen_text(batch: FeedBatch, row: int) -> str:
    """Return one feed's screen: answered cards with dwell and click marks, then those still waiting."""
    a, config = batch.arrays, batch.config
    names = ("goods", *config.card_types)
    observation = batch.observation(copy=False)
    features, types = config.n_item_features, config.n_types
    lines = [
        f"slot {a.slot[row]}  page {a.page[row]} (age {a.page_age[row]})  "
        f"clicks {a.page_views[row]}  requests {a.requests[row]}"
        + ("  [page on its way]" if a.wire[row] else "")
    ]
    count = min(int(a.exposures[row]), config.exposure_history)
    exposures = observation["exposures"][row, max(0, count - SHOWN) : count]
    opened = observation["page_views"][row]
    clicked = {round(float(v[-1]) * config.max_slots) for v in opened if v[: features + types].any()}
    for card in exposures:
        slot = round(float(card[-1]) * config.max_slots)
        dwell = "#" * round(7 * float(card[features + types]))
        name = names[int(card[features : features + types].argmax())]
        lines.append(
            f"{slot:5d}  {name:8s} ctr {card[features - 3]:.2f}  {dwell:7s}" + " click" * (slot in clicked)
        )
    if config.lookahead:
        for card in observation["screen"][row]:
            if card.any():
                lines.append(
                    f"    .  {names[card[features:].argmax()]:8s} ctr {card[features - 3]:.2f}  on screen"
                )
    return "\n".join(lines)
