"""Decisions of a log are what happened, estimators train, resume, load and play; bad logs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from edgerec_gym.agents.data.decisions import DecisionStream, split_decisions
from edgerec_gym.agents.perception.intent_change import SIGNALS, intent_signals, interest
from edgerec_gym.agents.registry import load_policy, train_agent
from edgerec_gym.agents.requests.train import load_model, train, uplift
from edgerec_gym.agents.requests.uplift_models import ESTIMATORS
from edgerec_gym.answers import BUY, CLICK
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

QUICK: dict[str, Any] = {"epochs": 2, "behaviour": 4, "hidden": 4, "batch_size": 256}
HORIZON = 10


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("request") / "logs"
    collect(folder, preset_name="lite", sessions=400, seed=2, randomise=["request"])
    return folder


def whole_log(logs: Path, **changes: Any) -> DecisionStream:
    options = {"horizon": HORIZON, "controls": 1.0, "surrogate": False, "seed": 0} | changes
    return DecisionStream(LogReader(logs), None, lambda session: session >= 0, **options)


def test_decisions_are_what_happened(logs: Path) -> None:
    (chunk,) = whole_log(logs).chunks()
    table = pa.concat_tables(LogReader(logs).batches())
    ids, slots = (table[name].to_pylist() for name in ("session", "slot"))
    rows = {key: k for k, key in enumerate(zip(ids, slots, strict=True))}
    sessions = chunk.log.sessions
    treated = 0
    for k in range(0, len(chunk), 7):
        session, slot = int(sessions.session[chunk.session[k]]), int(chunk.slot[k])
        row = rows[session, slot]
        assert table["request"][row].as_py() == bool(chunk.treated[k])
        assert 0 < table["request_propensity"][row].as_py() < 1
        clicks = bought = 0.0
        for ahead in range(HORIZON):
            at = rows.get((session, slot + ahead))
            if at is not None and table["click"][at].as_py():
                clicks += 1
                bought += table["page_view_actions"][at].as_py()[BUY - CLICK - 1] > 0
        assert chunk.outcome[k].tolist() == [clicks, bought]
        treated += bool(chunk.treated[k])
    assert treated > 10
    assert chunk.treated.sum() == table["request"].to_numpy().sum()


def test_propensity_counts_the_draw_of_controls(logs: Path) -> None:
    """A share of 1 / (1 + controls) of the decisions is treated, as the propensities say."""
    for controls in (1.0, 4.0):
        (chunk,) = whole_log(logs, controls=controls).chunks()
        np.testing.assert_allclose(chunk.propensity, 1 / (1 + controls), rtol=1e-5)
        spread = np.sqrt(len(chunk) * chunk.propensity[0] * (1 - chunk.propensity[0]))
        assert abs(chunk.treated.sum() - chunk.propensity.sum()) < 4 * spread


def test_surrogate_purchases_have_the_mean_of_purchases(logs: Path) -> None:
    stream = whole_log(logs, surrogate=True, controls=1e6)
    (smooth,) = stream.chunks()
    (drawn,) = whole_log(logs, controls=1e6).chunks()
    assert len(smooth) == len(drawn)
    np.testing.assert_array_equal(smooth.outcome[:, 0], drawn.outcome[:, 0])
    assert smooth.outcome[:, 1].mean() == pytest.approx(drawn.outcome[:, 1].mean(), rel=0.2)
    assert smooth.outcome[:, 1].var() < drawn.outcome[:, 1].var()


def test_interest_is_the_feeds_own(lite: Scenario) -> None:
    """Now, and when the page was requested: what the device and the cloud keep themselves."""
    env = make_feeds("EdgeFeedRequest-v0", 16, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=3)
    for _ in range(16):
        observation, *_ = env.step(observation["action_mask"].argmax(axis=1))
    feed, config = env.batch.arrays, env.config
    at_work = feed.slot == 16  # no session has ended
    assert at_work.sum() > 8
    slot, age = 16.0, feed.page_age.astype(np.float32)
    now = interest(observation, config, np.full(16, slot - config.lookahead))
    then = interest(observation, config, slot - age - config.request_latency - config.lookahead)
    np.testing.assert_allclose(now[at_work], feed.interest[at_work], atol=1e-4)
    # The page that arrived last was built from the interest on the wire; nothing else was sent since.
    sent = at_work & (feed.wire == 0) & (feed.page > 0)
    assert sent.any()
    np.testing.assert_allclose(then[sent], feed.wire_interest[sent], atol=1e-4)
    signals = intent_signals(observation, config)
    assert signals.shape == (16, len(SIGNALS)) and np.isfinite(signals).all()


def test_a_fresh_session_has_no_change_of_intent(lite: Scenario) -> None:
    observation, _ = make_feeds("EdgeFeedRequest-v0", 4, scenario=lite, users="synthetic").reset(seed=0)
    signals = intent_signals(observation, lite.config)
    for name in ("evidence", "page_evidence", "change", "agreement", "dwell"):
        assert (signals[:, SIGNALS.index(name)] == 0).all()


@pytest.mark.parametrize("agent", ESTIMATORS)
def test_trains_loads_and_plays(logs: Path, tmp_path: Path, lite: Scenario, agent: str) -> None:
    record = train(tmp_path / "a", logs, agent=agent, **QUICK)
    assert record["steps"] == 2 and len(record["residual_loss"]) == 2 and record["track"] == "request"
    quantiles = np.array(record["quantiles"])
    assert np.isfinite(quantiles).all() and (np.diff(quantiles) >= 0).all()
    env = make_feeds("EdgeFeedRequest-v0", 8, scenario=lite, users="synthetic")
    policy = load_policy(tmp_path / "a", env)
    assert isinstance(policy, Policy)
    assert policy.price == -lite.config.reward.request  # type: ignore[attr-defined]
    found = play(policy, env_id="EdgeFeed-v0", scenario=lite, users="synthetic", sessions=16, seed=0)
    assert found["violations"].sum() == 0
    observation, _ = env.reset(seed=0)
    observation["user"][3, 1] = np.nan
    with pytest.raises(InputError, match=r"observation 'user' is nan at \[3, 1\]"):
        uplift(load_model(tmp_path / "a", lite.config), observation)
    rerank = make_feeds("EdgeFeedRerank-v0", 1, scenario=lite, users="synthetic")
    with pytest.raises(InputError, match="plays the tracks joint, request, not 'rerank'"):
        load_policy(tmp_path / "a", rerank)


def test_the_same_seed_and_an_interrupted_run_give_the_same_estimates(
    logs: Path, tmp_path: Path, lite: Scenario
) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"agent": "uplift-dragon", "seed": 1, **QUICK}
    train(tmp_path / "whole", logs, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", logs, progress=stop, **options)
    train(tmp_path / "cut", logs, resume=True, **options)
    observation, _ = make_feeds("EdgeFeedRequest-v0", 8, scenario=lite).reset(seed=0)
    seen = {key: value for key, value in observation.items() if key not in ("cards", "action_mask")}
    whole, cut = (uplift(load_model(tmp_path / name, lite.config), seen) for name in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(whole.tau, whole.mu1 - whole.mu0)


def test_splits_do_not_share_sessions(logs: Path) -> None:
    parts = split_decisions(LogReader(logs), horizon=5, controls=1.0, surrogate=False, seed=0)
    ids = [set(chunk.log.sessions.session) for part in parts for chunk in part.chunks()]
    assert sum(map(len, ids)) == len(set().union(*ids)) == 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "uplift-s"}, "unknown agent 'uplift-s'"),
        ({"horizon": 0}, "UpliftConfig.horizon = 0"),
        ({"click": 0, "purchase": 0}, "leave no outcome"),
        ({"seed": -1}, "seed = -1"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_bad_arguments(logs: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, logs, **changes)


def test_logs_without_chance_are_refused(logs: Path, tmp_path: Path) -> None:
    collect(tmp_path / "order", preset_name="lite", sessions=20, randomise=["order"])
    with pytest.raises(InputError, match="0 slots with a request drawn by chance.*--randomise request"):
        train(tmp_path / "a", tmp_path / "order", **QUICK)
    source = pq.read_table(logs / "part-00000.parquet")
    for name, value, message in (
        ("unknown", pa.nulls(len(source), pa.float64()), "request_propensity has missing values"),
        ("sure", pa.array(np.ones(len(source))), "request_propensity must be below 1"),
        ("nan", pa.array(np.full(len(source), np.nan)), "row 0: request_propensity nan is out of range"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("logs.json", "catalog.parquet"):
            (folder / file).write_bytes((logs / file).read_bytes())
        at = source.schema.get_field_index("request_propensity")
        pq.write_table(source.set_column(at, source.schema.field(at), value), folder / "part-00000.parquet")
        with pytest.raises(InputError, match=message):
            train(tmp_path / f"run-{name}", folder, **QUICK)


def test_dqn_trains_loads_and_plays(tmp_path: Path, lite: Scenario) -> None:
    pytest.importorskip("stable_baselines3")
    common: dict[str, Any] = {"logs": None, "seed": 0, "resume": True, "threads": 1}
    place = {"scenario": lite, "users": "synthetic", "steps": 1200}
    hyper = {"learning_starts": 200, "hidden": 8}
    records = [train_agent("request-dqn", tmp_path / n, hyper=hyper, **common, **place) for n in "ab"]
    assert records[0] == records[1]
    files = [(tmp_path / name / "policy.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    env = make_feeds("EdgeFeedRequest-v0", 4, scenario=lite, users="synthetic")
    found = play(
        load_policy(tmp_path / "a", env),
        env_id="EdgeFeedRequest-v0",
        scenario=lite,
        users="synthetic",
        sessions=10,
        seed=0,
    )
    assert found["violations"].sum() == 0
    with pytest.raises(InputError, match="with other settings"):
        train_agent("request-dqn", tmp_path / "a", hyper={}, **common, **place)
    with pytest.raises(InputError, match="reads no logs"):
        train_agent("request-dqn", tmp_path / "c", hyper={}, **(common | {"logs": tmp_path}), **place)
