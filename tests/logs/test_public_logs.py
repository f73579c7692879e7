"""Formats of public logs, with `--guess` alone: understood, or refused with what is missing."""

from __future__ import annotations

import json
from typing import Any

import public_logs
import pytest
import small_table as small
from command_line import fails_with, run_well

CLICKS = int(small.table()["clicked"].sum())
RATED = int((small.table()["clicked"] * 2 + small.table()["rank"] % 3 + 1 >= 4).sum())
CART = {"column": "column 4", "values": ["buy", "cart", "fav"]}
UNDERSTOOD: dict[str, tuple[int, dict[str, Any]]] = {
    "mind": (CLICKS, {"user": "column 2", "time": "column 3", "history": "column 4"}),
    "movielens": (
        RATED,
        {"user": "column 1", "item": "column 2", "click": "column 3 >= 4", "time": "column 4"},
    ),
    "kuairand": (
        CLICKS,
        {"user": "user_id", "item": "video_id", "time": "time_ms", "time_unit": "ms", "click": "is_click"}
        | {
            "responses": {
                "like": "is_like",
                "follow": "is_follow",
                "long_view": "long_view",
                "hate": "is_hate",
            }
        }
        | {"page_view_seconds": {"column": "play_time_ms", "unit": "ms"}, "numbers": ["duration_ms", "tab"]},
    ),
    "user_behavior": (
        CLICKS,
        {"user": "column 1", "item": "column 2", "time": "column 5", "click": CART, "join_clicks": True},
    ),
    "retailrocket": (
        CLICKS,
        {"user": "visitorid", "item": "itemid", "time": "timestamp", "time_unit": "ms", "join_clicks": True}
        | {"click": {"column": "event", "values": ["addtocart", "transaction"]}}
        | {"purchase": {"column": "event", "values": ["transaction"]}},
    ),
    "alimama": (CLICKS, {"user": "user", "item": "adgroup_id", "time": "time_stamp", "click": "clk"}),
    "zhihurec": (
        CLICKS,
        {"user": "column 1", "item": "column 2", "time": "column 3", "click": "column 4 > 0"},
    ),
    "amazon_2023": (
        RATED,
        {"user": "user_id", "item": "asin", "time": "timestamp", "time_unit": "ms", "click": "rating >= 4"},
    ),
    "amazon_2018": (
        RATED,
        {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "click": "overall >= 4"},
    ),
    "xing": (
        CLICKS,
        {"user": "user_id", "item": "item_id", "click": {"column": "interaction_type", "values": ["1"]}},
    ),
    "recbole": (CLICKS, {"user": "user_id", "item": "item_id", "time": "timestamp", "click": "label"}),
}
NEVER = ("transactionid", "helpful_vote", "text", "title", "reviewText", "play_time_ms", "comment_stay_time")
REFUSED = {
    "avazu": "no column looks like the id of an item",
    "criteo": "no column looks like a time",
    "tenrec": "no column looks like a time",
    "yambda": "no column looks like a time",
    "adressa": "no column looks like a click; columns of 0 and 1 are sessionStart, sessionStop",
    "yoochoose": "no column looks like a click",
    "lastfm": "no column looks like a click",
    "diginetica": "no column looks like a click",
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_proposal_is_imported_unedited(tmp_path, name):
    clicks, expected = UNDERSTOOD[name]
    path = getattr(public_logs, name)(tmp_path)
    found = json.loads(run_well("import", path, "--guess", "--out", tmp_path / "logs", "--json"))
    assert found["mapping"] == found["mapping"] | expected
    assert found["counts"]["clicks"] == clicks
    assert found["counts"]["slots"] == small.table().height
    assert not set(NEVER) & {*found["mapping"].get("numbers", []), *found["mapping"].get("text", [])}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_log_does_not_tell_is_asked_for(tmp_path, name):
    fails_with(REFUSED[name], "import", getattr(public_logs, name)(tmp_path), "--guess")


def test_each_format_is_tried():
    made = {
        name for name, one in vars(public_logs).items() if getattr(one, "__module__", "") == "public_logs"
    }
    assert made == {*UNDERSTOOD, *REFUSED, "base", "text"}
