"""`edgerec collect`: log sessions of a policy, by default one that randomises with known propensities.

Part k holds the `log` split's sessions from k * SESSIONS_PER_PART on, so a killed run continues with the
next part and ends with the same files as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import (
    CLICK,
    DWELL_SECONDS,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    PAGE_VIEW_SECONDS,
    RESPONSE_SIZE,
    UserModel,
)
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.files import one_writer
from edgerec_gym.logs.logging_policy import DECISIONS, RandomisedPolicy
from edgerec_gym.logs.schema import list_column, log_schema
from edgerec_gym.logs.store import LogWriter
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario
from edgerec_gym.users import make_users
from edgerec_gym.users.synthetic import SyntheticUsers

SESSIONS_PER_PART = 500
SPLITS = ("log", "eval")


@one_writer("out")
def collect(
    out: str | Path,
    *,
    preset_name: str | None = None,
    scenario: str | None = None,
    users: str = "synthetic",
    sessions: int = 5000,
    seed: int = 0,
    randomise: Sequence[str] = DECISIONS,
    moments: int | None = None,
    policy: Policy | None = None,
    synthetic: dict[str, Any] | None = None,
    split: str = "log",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Log sessions into a folder; continues a folder left by an earlier, killed run.

    Args:
        out: log folder.
        preset_name: "default" or "lite": synthetic users of a preset, without a scenario.
        scenario: a scenario whose users answer instead.
        users: "synthetic" or "learned", with `scenario`.
        sessions: number of sessions, at least 1.
        seed: session seeds start at seed * 2^20 in the `log` split.
        randomise: decisions that the logging policy draws.
        moments: maximum number of random request decisions per session; None = one at every slot
            (:class:`~edgerec_gym.logs.logging_policy.RandomisedPolicy`).
        policy: log this policy of EdgeFeed-v0 instead; its propensities are unknown (null).
        synthetic: with `preset_name`, SyntheticUserConfig fields that differ from the preset's, for another
            ground truth such as {"pseudo_click": 0.0}.
        split: "log", or "eval" for users and days that no log shows: to judge, never to learn from.
        progress: called with (sessions done, total).

    Returns:
        A dict with the keys "sessions", "slots", "parts" and "resumed_from".
    """
    if sessions < 1:
        raise InputError(f"sessions must be at least 1, got {sessions}")
    if (preset_name is None) == (scenario is None):
        raise InputError("give either a preset or a scenario to collect from")
    if synthetic and preset_name is None:
        raise InputError("synthetic changes the ground truth of a preset; a scenario's users are fixed")
    logging_policy = RandomisedPolicy(randomise, moments) if policy is None else None
    config, catalog, provenance, unidentified, make = _source(preset_name, scenario, users, synthetic or {})
    provenance |= {
        "sessions": sessions,
        "seed": seed,
        "policy": policy.name if policy else "randomised",
        "randomise": list(randomise) if policy is None else [],
        "sessions_per_part": SESSIONS_PER_PART,
    }
    if split != "log":
        if split not in SPLITS:
            raise InputError(f"split = {split!r}; allowed: {', '.join(SPLITS)}")
        provenance["split"] = split
    if moments is not None:  # keeps the provenance of other logs unchanged
        provenance["moments"] = moments
    writer = LogWriter(out, config, catalog, provenance, unidentified)
    first_part = writer.parts
    parts = -(-sessions // SESSIONS_PER_PART)
    size = min(sessions, SESSIONS_PER_PART)  # also for the last batch: a policy's batch size is fixed
    if progress:
        progress(min(first_part * SESSIONS_PER_PART, sessions), sessions)
    for part in range(first_part, parts):
        first = part * SESSIONS_PER_PART
        wanted = min(SESSIONS_PER_PART, sessions - first)
        batch = FeedBatch(size, "joint", config, catalog, make(), split=split)
        writer.write(
            log_batch(
                batch,
                seed * CLI_SEED_STRIDE + first,
                first,
                wanted,
                logging_policy,
                policy,
                # The pages of a real log ship values of their own.
                shipped_columns=bool(config.item_columns) and catalog.supply is not None,
            )
        )
        if progress:
            progress(first + wanted, sessions)
    writer.finish()
    return {"sessions": writer.sessions, "slots": writer.slots, "parts": parts, "resumed_from": first_part}


def _source(
    preset_name: str | None, scenario: str | None, users: str, changes: dict[str, Any]
) -> tuple[FeedConfig, Catalog, dict[str, Any], tuple[str, ...], Callable[[], UserModel]]:
    """Return config, catalogue, provenance, what is not identified, and a function that makes users."""
    if preset_name is not None:
        config, synthetic = preset(preset_name)
        synthetic = synthetic.replace(**changes)
        model = SyntheticUsers(synthetic, config)
        provenance = {"source": "synthetic", "preset": preset_name, "synthetic": synthetic.to_dict()}
        return config, model.world.catalog, provenance, (), lambda: SyntheticUsers(synthetic, config)
    loaded = Scenario.load(str(scenario))
    make_users(users, loaded, loaded.config)  # report bad users before creating a folder
    provenance = {"source": users, "scenario": loaded.name}
    if loaded.synthetic is not None:
        provenance["synthetic"] = loaded.synthetic.to_dict()
    unidentified = loaded.unidentified if users == "learned" else ()
    return (
        loaded.config,
        loaded.catalog,
        provenance,
        unidentified,
        lambda: make_users(users, loaded, loaded.config),
    )


def log_batch(
    batch: FeedBatch,
    seed: int,
    first_session: int,
    wanted: int,
    randomised: RandomisedPolicy | None,
    policy: Policy | None,
    *,
    shipped_columns: bool = False,
) -> pa.Table:
    """Play the first episode of the first `wanted` rows; return its log, sorted by session and slot.

    Args:
        batch: batch of the joint track, with any users.
        seed: seed of row 0; row k has seed + k.
        first_session: id of row 0's session.
        wanted: number of rows that play.
        randomised: policy that draws the actions; None if `policy` decides.
        policy: policy that decides instead, with unknown propensities.
        shipped_columns: log the item columns too, since they are not those of the catalogue.
    """
    a, size, lag = batch.arrays, batch.num_envs, batch.config.lookahead
    batch.reset(np.arange(size), seed + np.arange(size))
    users = batch.users.arrays if isinstance(batch.users, SyntheticUsers) else None
    start = a.observation[:, a.user_at : a.user_at + a.n_user].copy()
    if policy:
        policy.reset(np.ones(size, np.bool_))
    ids = first_session + np.arange(size)
    habits = randomised.habits(ids) if randomised else None
    done = np.arange(size) >= wanted
    steps: list[dict[str, Any]] = []
    slot = 0
    while not done.all():
        live = ~done
        step: dict[str, Any] = {"live": live, "candidates": [None] * size, "cards": [None] * size}
        for row in np.flatnonzero(live & (a.page_age == 0)):
            step["candidates"][row] = a.pool_items[row][a.pool_items[row] >= 0].tolist()
            step["cards"][row] = a.card_items[row][a.card_items[row] >= 0].tolist()
        step["page"], step["page_age"] = a.page.copy(), a.page_age.copy()
        step["page_requested"] = a.page_requested > 0
        if randomised and habits:
            step["action"], step["propensity"], step["p_request"], step["randomised"] = randomised.draw(
                batch, slot, habits
            )
        else:
            step["action"] = policy.act(batch.observation())  # type: ignore[union-attr]
        batch.step(step["action"], done)
        step["item"] = a.placed_item.copy()
        d = batch.config.embedding_size
        step["scalars"] = a.window_cards[:, a.newest, d : d + 4].copy()
        if shipped_columns:
            step["item_columns"] = a.window_cards[:, a.newest, d + 4 : a.n_features].copy()
            step["embedding_known"] = a.window_cards[:, a.newest, :d].any(axis=1)
        step["card_type"] = a.window_cards[:, a.newest, a.n_features :].argmax(axis=1)
        step["request"] = a.sent == 1
        step["answered"] = np.zeros(size, np.bool_)
        step["response"] = np.zeros_like(a.response)
        steps.append(step)
        if slot >= lag:  # this step answered the card placed `lag` steps ago
            steps[slot - lag]["answered"] = live & a.focus_active
            steps[slot - lag]["response"] = a.response.copy()
        done = done | a.terminated | a.truncated
        slot += 1
    return _table(steps, first_session, start, a.hour, users, randomised is not None, batch.config)


def _table(
    steps: list[dict[str, Any]],
    first_session: int,
    start: np.ndarray,
    hour: np.ndarray,
    users: Any,
    randomised: bool,
    config: FeedConfig,
) -> pa.Table:
    size, slots = len(start), len(steps)
    live = np.stack([step["live"] for step in steps], axis=1)  # (B, slots)
    rows, slot = np.nonzero(live)

    def column(name: str) -> np.ndarray:
        return np.stack([step[name] for step in steps], axis=1)[rows, slot]

    answered, response = column("answered"), column("response")
    click = answered & (response[:, CLICK] > 0)
    looked = config.dwell_scale * DWELL_SECONDS[np.rint(response[:, 0] * 7).astype(int)]
    seconds = np.where(answered, looked, 0.0)
    seconds += np.where(click, PAGE_VIEW_SECONDS[np.rint(response[:, PAGE_VIEW] * 7).astype(int)], 0.0)
    spent = np.zeros((size, slots))
    spent[rows, slot] = seconds
    features: list[Any] = [None] * len(rows)
    for j in np.flatnonzero(slot == 0):
        features[j] = start[rows[j]]
    scalars = column("scalars")
    missing = np.ones(len(rows), np.bool_)
    columns = {
        "session": first_session + rows,
        "user": users.user[rows] if users else first_session + rows,
        "day": users.day[rows] if users else np.zeros(len(rows), np.int32),
        "hour": hour[rows],
        "slot": slot,
        "time": (np.cumsum(spent, axis=1) - spent)[rows, slot],
        "item": column("item"),
        "card_type": column("card_type"),
        "page": column("page"),
        "page_age": column("page_age"),
        "page_requested": column("page_requested"),
        "candidates": [steps[s]["candidates"][r] for r, s in zip(rows, slot, strict=True)],
        "cards": [steps[s]["cards"][r] for r, s in zip(rows, slot, strict=True)],
        "user_features": features,
        **{
            name: scalars[:, k] for k, name in enumerate(("price_level", "base_ctr", "base_cvr", "freshness"))
        },
        "action": column("action"),
        "propensity": pa.array(column("propensity"))
        if randomised
        else pa.array(np.zeros(len(rows)), mask=missing),
        "randomised": column("randomised") if randomised else np.zeros(len(rows), np.bool_),
        "request": column("request"),
        "request_propensity": pa.array(column("p_request"))
        if randomised
        else pa.array(np.zeros(len(rows)), mask=missing),
        "answered": answered,
        "exposure_actions": list_column(response[:, :N_EXPOSURE_ACTIONS], answered),
        "click": pa.array(click, mask=~answered),
        "page_view_actions": list_column(response[:, PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS], click),
        "leave": pa.array(response[:, LEAVE] > 0, mask=~answered),
    }
    if "item_columns" in steps[0]:
        columns["embedding_known"] = column("embedding_known")
        columns["item_columns"] = list_column(column("item_columns"), missing)
    if config.responses:
        columns["responses"] = list_column(response[:, RESPONSE_SIZE:], answered)
    schema = log_schema(columns)
    arrays = [
        pa.array(values, type=schema.field(name).type)
        if not isinstance(values, pa.Array)
        else values.cast(schema.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
