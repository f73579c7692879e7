"""Named responses (like, hate, ...) from the log over learned users to the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_responses import Responding

from edgerec_gym.agents.baselines import DeviceGreedy, Keep
from edgerec_gym.agents.list_policy import ScoredList, SlateBySlate
from edgerec_gym.answers import (
    CLICK,
    DELETE_REASON,
    DISLIKED,
    N_EXPOSURE_ACTIONS,
)
from edgerec_gym.config import FeedConfig, RewardConfig
from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate, play
from edgerec_gym.evaluation.report import tables
from edgerec_gym.fidelity.expected import replay
from edgerec_gym.fidelity.report import fidelity_report, fidelity_tables
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.schema import list_column, log_schema
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.dataset import padded
from edgerec_gym.simulator.export import export
from edgerec_gym.simulator.fit import fit
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.simulator.pack import pack
from edgerec_gym.slate_env import EdgeFeedSlateEnv
from edgerec_gym.spaces import N_EXPOSURE_COLUMNS, exposure_columns
from edgerec_gym.users.learned_layout import N_ANSWER, N_LOGITS
from edgerec_gym.vector_env import EdgeFeedVectorEnv

NAMES = ("like", "hate", "rating")
WEIGHTS = {"like": 0.5, "hate": -2.0}


def with_responses(source: Path, out: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Add to a log: likes of opened cards, hates of cards that were hardly looked at, ratings by dwell."""
    reader, rng = LogReader(source), np.random.default_rng(0)
    config = reader.config.replace(responses=names, reward=RewardConfig(responses=WEIGHTS))
    writer = LogWriter(out, config, reader.catalog, reader.provenance, reader.unidentified)
    for table in reader.batches():
        sessions = LoggedSessions.from_table(table, reader.config, reader.catalog)
        click, dwell = sessions.actions[:, CLICK], sessions.actions[:, 0]
        u = rng.random((len(click), 2))
        given = np.column_stack([u[:, 0] < 0.02 + 0.5 * click, (u[:, 1] < 0.3) & (dwell < 0.2), dwell])
        column = list_column(given.astype(np.float32), table["answered"].to_numpy())
        writer.write(table.append_column("responses", column))
    writer.finish()
    return out


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("responses")
    collect(folder / "plain", preset_name="lite", sessions=300)
    return with_responses(folder / "plain", folder / "logs")


@pytest.fixture(scope="module")
def fitted(logs: Path) -> Scenario:
    fit(logs, logs.parent / "scenario", ensemble=2, epochs=4, hidden=8)
    return Scenario.load(logs.parent / "scenario")


def test_without_responses_a_config_says_nothing_of_them() -> None:
    told = FeedConfig().to_dict()
    assert "responses" not in told and "responses" not in told["reward"]
    config = FeedConfig(responses=NAMES, reward=RewardConfig(responses=WEIGHTS))
    assert config.to_dict()["responses"] == NAMES and config.to_dict()["reward"]["responses"] == WEIGHTS
    assert FeedConfig.from_dict(config.to_dict()) == config == config.replace()
    assert config.reward_terms[-3:] == NAMES and config.reward_weights[-3:] == (0.5, -2.0, 0.0)
    assert hash(config) == hash(FeedConfig.from_dict(config.to_dict()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": ("Like",)}, "'Like' must be a lower-case name"),
        ({"responses": ("long view",)}, "must be a lower-case name"),
        ({"responses": ("like", "like")}, "up to 16 different names"),
        ({"responses": tuple(f"r{k}" for k in range(17))}, "up to 16 different names"),
        ({"responses": ("click",)}, "'click' is a term of the reward already"),
        ({"responses": "like"}, "must be a list"),
        (
            {"responses": ("like",), "reward": {"responses": {"loke": 1}}},
            "weights 'loke'; the feed's .* like",
        ),
        ({"reward": {"responses": {"like": 1}}}, "the feed's responses are none"),
        ({"responses": ("like",), "reward": {"responses": {"like": "x"}}}, "must be a number"),
        ({"responses": ("like",), "reward": {"responses": {"like": float("nan")}}}, "out of range"),
        ({"responses": ("like",), "reward": {"responses": [1.0]}}, "must map names to numbers"),
    ],
)
def test_wrong_names_and_weights_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeedConfig.from_dict(changes)


@pytest.mark.parametrize("make", [EdgeFeedEnv, EdgeFeedSlateEnv])
def test_the_environment_tells_responses_by_name(make: Any) -> None:
    options = {"responses": NAMES, "reward": {"responses": WEIGHTS}}
    env = make(scenario="lite", users=Responding(), **options)
    config = env.config
    observation, info = env.reset(seed=0)
    assert info["responses"].shape[-1] == len(NAMES) and not info["responses"].any()
    total = dict.fromkeys(NAMES, 0.0)
    for _ in range(9):
        action = int(observation["action_mask"].argmax())
        if make is EdgeFeedSlateEnv:
            plan = {"order": np.zeros(config.pool_size), "insert": np.zeros(config.slate_size, int)}
            action = plan | {"request": 0}
        observation, reward, ended, _, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert reward == pytest.approx(sum(info["reward_terms"].values()))
        for k, name in enumerate(NAMES):
            given = info["responses"][..., k].sum()
            assert info["reward_terms"][name] == pytest.approx(given * WEIGHTS.get(name, 0.0))
            total[name] += given
        if ended:
            break
    assert len(set(total.values())) == 1 and total["like"] > 0
    rows = observation["exposures"]
    at = config.n_item_features + config.n_types
    assert rows.shape[1] == at + N_EXPOSURE_COLUMNS + 3 == at + exposure_columns(config)
    slot = np.rint(rows[:, -1] * config.max_slots).astype(int)
    shown = rows[:, :at].any(axis=1)
    given = rows[:, at + N_EXPOSURE_ACTIONS : -1]
    np.testing.assert_array_equal(given[shown], np.repeat(slot[shown, None] % 3 == 0, 3, axis=1))
    deleted = rows[:, at + DELETE_REASON]  # a hate counts as a deletion
    np.testing.assert_array_equal(deleted[shown], DISLIKED * (slot[shown] % 3 == 0))


def test_responses_add_columns_and_change_nothing_else() -> None:
    """Synthetic users never give any, so their sessions stay as they are."""
    plain = EdgeFeedVectorEnv(4, scenario="lite", users="synthetic")
    env = EdgeFeedVectorEnv(4, scenario="lite", users="synthetic", responses=NAMES)
    (before, told), (after, _) = plain.reset(seed=0), env.reset(seed=0)
    assert "responses" not in told
    for _ in range(70):
        for key, values in before.items():
            found = np.delete(after[key], [-4, -3, -2], axis=2) if key == "exposures" else after[key]
            np.testing.assert_array_equal(found, values)
        actions = before["action_mask"].argmax(axis=1)
        (before, reward, *_), (after, same, *_, infos) = plain.step(actions), env.step(actions)
        np.testing.assert_array_equal(reward, same)
        assert infos["responses"].shape == (4, 3) and not infos["responses"].any()


def test_users_without_responses_are_packed_as_before() -> None:
    """Names, shapes and layouts that no file of earlier versions has appear with responses only."""
    torch.manual_seed(0)
    plain, wide = (UserNetwork(FeedConfig(responses=names), (), 8) for names in ((), NAMES))
    new = {"responses_by_answer", "leave_by_responses"}
    assert dict(wide.named_parameters()).keys() - dict(plain.named_parameters()).keys() == new
    weights = pack(plain)
    assert pack(wide).keys() - weights.keys() == {"responses_by_answer"}
    assert weights["strength"].shape[1] == N_ANSWER and weights["heads"].shape[1] == N_LOGITS


def test_a_log_keeps_responses(logs: Path, tmp_path: Path) -> None:
    reader = LogReader(logs)
    assert reader.config.responses == NAMES
    table = pa.concat_tables(reader.batches(["answered", "responses"]))
    assert table["responses"].is_null().to_numpy().tolist() == (~table["answered"].to_numpy()).tolist()
    whole = next(reader.batches())
    assert whole.schema.names == log_schema(["responses"]).names
    sessions = LoggedSessions.from_table(whole, reader.config, reader.catalog)
    assert sessions.responses.shape == (len(sessions.item), 3) and 0 < sessions.responses.mean() < 1
    both = LoggedSessions.concatenate([sessions.select(np.array([1])), sessions.select(np.array([0]))])
    np.testing.assert_array_equal(both.responses, sessions.select(np.array([1, 0])).responses)
    shown = sessions.exposure_actions(reader.config)
    np.testing.assert_array_equal(shown[:, N_EXPOSURE_ACTIONS:], sessions.responses)
    assert (shown[sessions.responses[:, 1] > 0, DELETE_REASON] >= DISLIKED).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda column: column[:1] * len(column), "needs 3"),
        (lambda column: [None for _ in column], "answered, but responses is empty"),
        (lambda column: [v and [0.5, 2.0, 0.5] for v in column], "responses 2.0 is out of range"),
        (lambda column: [v and [0.5, None, 0.5] for v in column], "responses nan is out of range"),
    ],
)
def test_a_wrong_column_is_refused(logs: Path, tmp_path: Path, change: Any, message: str) -> None:
    reader = LogReader(logs)
    table = next(reader.batches())
    values = change([[1.0], *table["responses"].to_pylist()][1:])
    if "needs" in message:
        values = [v and v[:1] for v in table["responses"].to_pylist()]
    column = pa.array(values, pa.list_(pa.float32()))
    at = table.column_names.index("responses")
    writer = LogWriter(tmp_path / "out", reader.config, reader.catalog, {})
    with pytest.raises(InputError, match=message):
        writer.write(table.set_column(at, "responses", column))
    with pytest.raises(InputError, match="missing column 'responses'"):
        writer.write(table.drop_columns(["responses"]))


def test_steps_at_run_time_agree_with_the_network(fitted: Scenario, logs: Path) -> None:
    """The kernels, fed with logged behaviour, compute what the network computes on whole sessions."""
    torch.manual_seed(0)
    config, folder = fitted.config, logs.parent / "exported"
    network = UserNetwork(config, (), 8).eval()
    with torch.no_grad():
        for name in ("responses_by_answer", "leave_by_responses"):
            getattr(network, name).normal_()
    assert pack(network)["responses_by_answer"].shape[0] == 3
    folder.mkdir()
    starts = np.zeros((1, config.n_user_features), np.float32), np.zeros(1, np.int32)
    export([network], *starts, folder=folder)
    scenario = Scenario("exported", config, fitted.catalog)
    scenario.save(folder)
    reader = LogReader(logs)
    sessions = LoggedSessions.from_table(next(reader.batches()), config, reader.catalog)
    few = sessions.select(np.flatnonzero(sessions.answered > 3)[:5])
    with torch.no_grad():
        logits, _ = network.forward_sequence(padded(few, np.arange(5), np.ones(5)))
    found = replay(Scenario.load(folder), few)
    for r, name in enumerate(NAMES):
        wanted = torch.sigmoid(logits["responses"][:, r]).numpy()
        np.testing.assert_allclose(found[f"response_{name}"], wanted, atol=1e-5)
    wanted = torch.sigmoid(logits["leave"][:, 0]).numpy()
    np.testing.assert_allclose(found["leave"], wanted, atol=1e-5)


def test_learned_users_answer_as_in_the_log(fitted: Scenario, logs: Path) -> None:
    figures = fitted.fidelity["responses"]
    assert list(figures) == list(NAMES)
    assert figures["like"]["auc"] > 0.6 and figures["hate"]["auc"] > 0.7
    for found in figures.values():
        assert found["log_loss"] < found["log_loss_constant"]
        assert found["rate_predicted"] == pytest.approx(found["rate"], rel=0.3)
    report = fidelity_report(fitted, logs, whole_log=True, repeats=2)
    for name in NAMES:
        assert report["events"][f"response_{name}"]["auc"] > 0.55
        ours, theirs = (
            report["distributions"][f"response_{name}"][kind]["mean"] for kind in ("log", "simulated")
        )
        assert theirs == pytest.approx(ours, rel=0.35)
    told = " ".join(row[0] for _, rows in fidelity_tables(report).values() for row in rows)
    assert all(f"response_{name}" in told for name in NAMES)


def test_learned_users_draw_the_same_whatever_the_batch(fitted: Scenario) -> None:
    def played(n: int) -> list[np.ndarray]:
        env = EdgeFeedVectorEnv(n, scenario=fitted, users="learned")
        observation, _ = env.reset(seed=5)
        found = []
        for _ in range(30):
            observation, *_, infos = env.step(observation["action_mask"].argmax(axis=1))
            found.append(np.concatenate([infos["responses"][0], observation["exposures"][0, :, -4:].ravel()]))
        return found

    alone, together = played(1), played(7)
    np.testing.assert_array_equal(alone, together)
    drawn = np.stack(alone)[:, :3]
    assert set(np.unique(drawn)) == {0.0, 1.0}


def test_collected_logs_hold_the_responses(fitted: Scenario, tmp_path: Path) -> None:
    collect(tmp_path / "again", scenario=str(fitted.path), users="learned", sessions=30)
    reader = LogReader(tmp_path / "again")
    sessions = LoggedSessions.from_table(next(reader.batches()), reader.config, reader.catalog)
    assert set(np.unique(sessions.responses)) == {0.0, 1.0}
    hated = sessions.responses[:, 1] > 0
    assert (sessions.actions[hated, DELETE_REASON] >= DISLIKED).all()


def test_evaluation_lists_responses_by_name(fitted: Scenario) -> None:
    env_id = "EdgeFeed-v0"
    policies = [Keep(), DeviceGreedy()]
    rows = evaluate(policies, env_id=env_id, scenario=fitted, users=("learned",), sessions=40)
    assert all(rows[0][f"response_{name}"]["mean"] > 0 for name in NAMES)
    shown = tables(rows)["learned users, named responses per session"]
    assert shown[0] == ["policy", *NAMES] and len(shown[1]) == 2


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_responses_count_in_the_value_as_drawn(fitted: Scenario, env_id: str) -> None:
    policy: Any = Keep() if env_id == "EdgeFeed-v0" else SlateBySlate(ScoredList(DeviceGreedy(), 10))
    weights = dict.fromkeys(NAMES, 0.0) | WEIGHTS
    found, without = (
        play(
            policy,
            env_id=env_id,
            scenario=fitted,
            users="learned",
            sessions=30,
            seed=0,
            config={"reward": {"responses": responses}},
        )
        for responses in (WEIGHTS, {})
    )
    given = sum(weights[name] * found[f"response_{name}"] for name in NAMES)
    assert np.abs(given).max() > 0
    np.testing.assert_allclose(found["value"], without["value"] + given, atol=1e-5)
    np.testing.assert_allclose(found["reward"], without["reward"] + given, atol=1e-5)


def test_users_of_other_responses_are_refused(fitted: Scenario) -> None:
    with pytest.raises(InputError, match="responses cannot be changed"):
        EdgeFeedVectorEnv(1, scenario=fitted, users="learned", responses=("like",), reward=RewardConfig())
    with pytest.raises(InputError, match="responses cannot be changed"):
        EdgeFeedVectorEnv(1, scenario="lite", users="learned", responses=("like",))
