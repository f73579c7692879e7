"""Learned users at run time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    LEAVE,
    PAGE_VIEW,
    PURCHASE_PROBABILITY,
    SLOT,
    Focus,
)
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import collect
from edgerec_gym.scenario import Scenario, _sha256
from edgerec_gym.simulator.fit import fit
from edgerec_gym.users.learned import LearnedUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario with three quickly fitted members."""
    folder = tmp_path_factory.mktemp("learned")
    collect(folder / "logs", preset_name="lite", sessions=100)
    fit(folder / "logs", folder / "scenario", ensemble=3, epochs=2, hidden=8)
    return folder / "scenario"


def play(
    users: LearnedUsers, scenario: Scenario, num_envs: int, steps: int, first_seed: int = 0
) -> tuple[FeedBatch, list[dict[str, np.ndarray]]]:
    """Keep the cloud's order for some steps; rows that end start their next episode."""
    batch = FeedBatch(num_envs, "joint", scenario.config, scenario.catalog, users)
    batch.reset(np.arange(num_envs), first_seed + np.arange(num_envs))
    a, seen = batch.arrays, []
    for _ in range(steps):
        batch.step((a.pool_items >= 0).argmax(1))
        keys = ("focus_active", "response", "window_items", "focus_context")
        seen.append({key: getattr(a, key).copy() for key in keys})
        seen[-1]["uncertainty"] = a.uncertainty.copy()
        ended = np.flatnonzero(a.terminated | a.truncated)
        if len(ended):
            batch.reset(ended)
    return batch, seen


def test_users_of_a_collected_log_read_no_bins(fitted):
    networks = LearnedUsers(Scenario.load(fitted)).simulator.networks
    assert networks.bin_start.shape == (3, 0, 0) and networks.count_scale.shape == (3, 0)


def test_the_same_seeds_give_the_same_sessions(fitted):
    scenario = Scenario.load(fitted)
    first, second = (play(LearnedUsers(scenario), scenario, 8, 90)[1] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for key, values in a.items():
            np.testing.assert_array_equal(values, b[key])
    answers = np.concatenate([s["response"][s["focus_active"]] for s in first])
    assert len(answers) > 500 and np.isfinite(answers).all()
    assert answers.min() >= 0 and answers.max() <= 1
    assert answers[:, CLICK].any() and answers[:, LEAVE].any()
    assert (answers[:, PURCHASE_PROBABILITY] <= answers[:, CLICK_PROBABILITY]).all()
    assert not answers[answers[:, CLICK] == 0][:, PAGE_VIEW:LEAVE].any()


def test_a_row_of_a_batch_is_the_single_environment(fitted):
    scenario = Scenario.load(fitted)
    _, together = play(LearnedUsers(scenario), scenario, 6, 40)
    for row in (0, 4):
        _, alone = play(LearnedUsers(scenario), scenario, 1, 40, first_seed=row)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a["window_items"][row], b["window_items"][0])
            np.testing.assert_allclose(a["response"][row], b["response"][0], atol=1e-5)


def test_rows_that_do_not_answer_are_left_alone(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario)
    batch, _ = play(users, scenario, 5, 6)
    response, memory = np.full_like(batch.arrays.response, 7.0), users._memory
    before = [values.copy() for values in (memory.memory, memory.evidence, memory.last)]
    focus = batch._focus._replace(active=np.array([True, False, True, False, False]))
    users.respond(focus, response)
    assert (response[[1, 3, 4]] == 7).all() and (response[[0, 2]] != 7).any(axis=1).all()
    for now, then in zip((memory.memory, memory.evidence, memory.last), before, strict=True):
        np.testing.assert_array_equal(now[[1, 3, 4]], then[[1, 3, 4]])
    assert (memory.memory[[0, 2]] != before[0][[0, 2]]).any(axis=1).all()
    users.respond(focus._replace(active=np.zeros(5, np.bool_)), response)


def test_episodes_draw_members_and_starts_from_the_table(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario)
    users.allocate(300, scenario.config, Workers(300, 1))
    keys = np.random.default_rng(0).integers(2**63, size=300).astype(np.uint64)
    start = users.reset(np.arange(300), keys, 1)
    assert np.bincount(users._memory.member).min() > 60
    table = np.column_stack([users.simulator.features, users.simulator.hours])
    drawn = np.column_stack([start.features, start.hour])
    assert np.isin(
        drawn.view([("", drawn.dtype)] * drawn.shape[1]), table.view([("", table.dtype)] * table.shape[1])
    ).all()
    assert len(np.unique(drawn, axis=0)) > 40
    again = users.reset(np.array([3, 7]), keys[[3, 7]], 1)
    np.testing.assert_array_equal(again.features, start.features[[3, 7]])


def test_members_can_be_chosen(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario, members=[2, 0])
    play(users, scenario, 40, 3)
    assert set(users._memory.member) == {0, 2}
    whole, all_three = LearnedUsers(scenario), LearnedUsers(scenario, members=range(3))
    (_, seen), (_, again) = play(whole, scenario, 20, 10), play(all_three, scenario, 20, 10)
    for step, other in zip(seen, again, strict=True):
        np.testing.assert_array_equal(step["response"], other["response"])
    for wrong in ([], [3], [-1, 0]):
        with pytest.raises(InputError, match="name some of the 3 networks"):
            EdgeFeedEnv(scenario=scenario, members=wrong)
    with pytest.raises(InputError, match="members applies to learned users only"):
        EdgeFeedEnv(scenario="lite", users="synthetic", members=[0])


def test_uncertainty_follows_every_member_and_changes_no_answer(fitted):
    scenario = Scenario.load(fitted)
    watched = LearnedUsers(scenario, uncertainty=True)
    batch, seen = play(watched, scenario, 6, 30)
    _, plain = play(LearnedUsers(scenario), scenario, 6, 30)
    for a, b in zip(seen, plain, strict=True):
        np.testing.assert_allclose(a["response"], b["response"], atol=1e-5)
        np.testing.assert_array_equal(a["uncertainty"] > 0, a["focus_active"])
        assert not b["uncertainty"].any()
    # What they tell of the next card is what each would tell alone of this very session.
    focus, response = batch._focus, np.zeros_like(batch.arrays.response)
    assert focus.active.sum() > 3
    memory, told = watched._memory, []
    for k in range(3):
        alone = LearnedUsers(scenario)
        alone.allocate(6, scenario.config, Workers(6, 1))
        alone._memory.member[:] = k
        alone._memory.user[:], alone._memory.last[:] = memory.user, memory.last
        alone._memory.memory[:] = memory.memory[6 * k : 6 * k + 6]
        alone._memory.evidence[:] = memory.evidence[6 * k : 6 * k + 6]
        alone.respond(focus, response)
        told.append(response[focus.active, CLICK_PROBABILITY])
    watched.respond(focus, response)
    np.testing.assert_allclose(watched.uncertainty[focus.active], np.std(told, axis=0), atol=1e-6)
    # All members remember the same answer, the one that was given.
    np.testing.assert_array_equal(memory.last[focus.active], memory.next_last[focus.active])


def test_luck_is_shared_where_the_choice_is_the_same(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario)
    batch, _ = play(users, scenario, 40, 3)
    focus, memory = batch._focus, users._memory
    start = [values.copy() for values in (memory.memory, memory.evidence, memory.last)]

    def respond(seen: Focus) -> np.ndarray:
        for now, then in zip((memory.memory, memory.evidence, memory.last), start, strict=True):
            now[:] = then
        response = np.zeros_like(batch.arrays.response)
        users.respond(seen, response)
        return response

    np.testing.assert_array_equal(respond(focus), respond(focus))
    context = focus.context.copy()
    context[:, SLOT] += 1  # other draws
    assert (respond(focus._replace(context=context))[:, :6] != respond(focus)[:, :6]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("num_envs", [300, 600])
def test_threads_change_nothing(fitted, num_envs):
    scenario = Scenario.load(fitted)
    one, two = (
        FeedBatch(
            num_envs, "joint", scenario.config, scenario.catalog, LearnedUsers(scenario), threads=threads
        )
        for threads in (1, 2)
    )
    for batch in (one, two):
        batch.reset(np.arange(num_envs), np.arange(num_envs))
        for _ in range(12):
            batch.step((batch.arrays.pool_items >= 0).argmax(1))
    np.testing.assert_array_equal(one.arrays.response, two.arrays.response)
    np.testing.assert_array_equal(one.arrays.observation, two.arrays.observation)
    two.close()


def test_no_torch_is_needed(fitted):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgerec_gym.env import EdgeFeedEnv\n"
        "env = EdgeFeedEnv(scenario=sys.argv[1]); env.reset(seed=1)\n"
        "for _ in range(9): env.step(int(env.action_masks().argmax()))\n"
        "print(sorted(name for name in ('torch', 'onnx', 'polars.ml') if sys.modules.get(name)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fitted)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def broken(fitted: Path, folder: Path, **changes: np.ndarray) -> Scenario:
    """A copy with other tensors, and the hash that goes with them."""
    shutil.copytree(fitted, folder)
    tensors = load_file(folder / "simulator.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v.size}, folder / "simulator.safetensors")
    return trusted(folder)


def trusted(folder: Path) -> Scenario:
    values = json.loads((folder / "scenario.json").read_text())
    values["sha256"] = {name: _sha256(folder / name) for name in values["sha256"]}
    (folder / "scenario.json").write_text(json.dumps(values))
    return Scenario.load(folder)


def test_broken_files_are_named(fitted, tmp_path):
    scenario = Scenario.load(fitted)
    with pytest.raises(
        InputError, match="embedding_size, profile_size, card_types and responses cannot be changed"
    ):
        LearnedUsers(scenario).allocate(2, scenario.config.replace(profile_size=9), Workers(2, 1))
    weights = load_file(fitted / "simulator.safetensors")["member1.heads"]
    bad = weights.copy()
    bad[0, 0] = np.nan
    with pytest.raises(InputError, match=r"a/simulator.safetensors: tensor 'member1.heads' is not finite"):
        LearnedUsers(broken(fitted, tmp_path / "a", **{"member1.heads": bad}))
    with pytest.raises(
        InputError, match=r"b/simulator.safetensors: tensor 'member1.heads' has shape .*, not"
    ):
        LearnedUsers(broken(fitted, tmp_path / "b", **{"member1.heads": weights[:, :-1]}))
    gone = {f"member{k}.decay": np.zeros(0, np.float32) for k in range(3)}
    with pytest.raises(InputError, match=r"c/simulator.safetensors lacks the tensors decay of every member"):
        LearnedUsers(broken(fitted, tmp_path / "c", **gone))
    shutil.copytree(fitted, tmp_path / "d")
    (tmp_path / "d" / "simulator.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"d/simulator.onnx cannot be loaded"):
        LearnedUsers(trusted(tmp_path / "d"))
    shutil.copytree(fitted, tmp_path / "e")
    (tmp_path / "e" / "simulator.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"e/simulator.safetensors is not a readable safetensors file"):
        LearnedUsers(trusted(tmp_path / "e"))


def test_uncertainty_in_info_and_as_a_penalty(fitted):
    plain = EdgeFeedVectorEnv(16, scenario=str(fitted))
    told = EdgeFeedVectorEnv(16, scenario=str(fitted), uncertainty=True)
    reward = plain.config.reward.replace(uncertainty=-2.0)
    fined = EdgeFeedVectorEnv(16, scenario=str(fitted), reward=reward)
    for env in (plain, told, fined):
        observation, infos = env.reset(seed=3)
        assert ("uncertainty" in infos) == (env is told)
    for _ in range(12):
        actions = observation["action_mask"].argmax(axis=1)
        (observation, rewards, *_), (*_, infos), (_, lower, *_, terms) = (
            env.step(actions) for env in (plain, told, fined)
        )
        uncertainty = np.where(infos["answered"], infos["uncertainty"], 0)
        np.testing.assert_allclose(lower, rewards - 2.0 * uncertainty, atol=1e-5)
        np.testing.assert_allclose(terms["reward_terms"]["uncertainty"], -2.0 * uncertainty, atol=1e-5)
    assert (uncertainty > 0).any()
    single = EdgeFeedEnv(scenario=str(fitted), uncertainty=True)
    single.reset(seed=0)
    assert max(single.step(0 + k)[4]["uncertainty"] for k in range(6)) > 0
