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

from edgerec_gym.batch import FeedBatch
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.scenario import Scenario, _sha256
from edgerec_gym.simulator.fit import fit
from edgerec_gym.users.base import CLICK, CLICK_PROBABILITY, LEAVE, PAGE_VIEW, PURCHASE_PROBABILITY, SLOT
from edgerec_gym.users.learned import LearnedUsers


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
        seen[-1]["uncertainty"] = users.uncertainty.copy()
        ended = np.flatnonzero(a.terminated | a.truncated)
        if len(ended):
            batch.reset(ended)
    return batch, seen


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
    response, state = np.full_like(batch.arrays.response, 7.0), users._state.copy()
    focus = batch._focus._replace(active=np.array([True, False, True, False, False]))
    users.respond(focus, response)
    assert (response[[1, 3, 4]] == 7).all() and (response[[0, 2]] != 7).any(axis=1).all()
    np.testing.assert_array_equal(users._state[:, [1, 3, 4]], state[:, [1, 3, 4]])
    users.respond(focus._replace(active=np.zeros(5, np.bool_)), response)


def test_episodes_draw_members_and_starts_from_the_table(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario)
    users.allocate(300, scenario.config)
    keys = np.random.default_rng(0).integers(2**63, size=300).astype(np.uint64)
    start = users.reset(np.arange(300), keys, 1)
    assert np.bincount(users._member).min() > 60
    table = np.column_stack([users.simulator.features, users.simulator.hours])
    drawn = np.column_stack([start.features, start.hour])
    assert np.isin(
        drawn.view([("", drawn.dtype)] * drawn.shape[1]), table.view([("", table.dtype)] * table.shape[1])
    ).all()
    assert len(np.unique(drawn, axis=0)) > 40
    again = users.reset(np.array([3, 7]), keys[[3, 7]], 1)
    np.testing.assert_array_equal(again.features, start.features[[3, 7]])


def test_uncertainty_follows_every_member_and_changes_no_answer(fitted):
    scenario = Scenario.load(fitted)
    watched = LearnedUsers(scenario, uncertainty=True)
    batch, seen = play(watched, scenario, 6, 30)
    _, plain = play(LearnedUsers(scenario), scenario, 6, 30)
    for a, b in zip(seen, plain, strict=True):
        np.testing.assert_allclose(a["response"], b["response"], atol=1e-5)
        np.testing.assert_array_equal(a["uncertainty"] > 0, a["focus_active"])
        assert not b["uncertainty"].any()
    # All members remember the same answer: the one that was given.
    answers = watched._state[:, :, watched.simulator.answer]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    # What they tell of the next card is what each would tell alone of this very session.
    focus = batch._focus
    told = []
    for k in range(3):
        watched._play(focus, np.full(6, k), watched._state[k])
        told.append(watched._answers[: focus.active.sum(), CLICK_PROBABILITY].copy())
    response = np.zeros_like(batch.arrays.response)
    watched.respond(focus, response)
    assert focus.active.sum() > 3
    np.testing.assert_allclose(watched.uncertainty[focus.active], np.std(told, axis=0), atol=1e-6)


def test_luck_is_shared_where_the_choice_is_the_same(fitted):
    scenario = Scenario.load(fitted)
    users = LearnedUsers(scenario)
    batch, _ = play(users, scenario, 4, 3)
    focus, state = batch._focus, users._state.copy()
    first, second = (np.zeros_like(batch.arrays.response) for _ in range(2))
    users.respond(focus, first)
    users._state[:] = state
    context = focus.context.copy()
    context[:, SLOT] += 1  # other draws
    users.respond(focus._replace(context=context), second)
    uniforms = users._slots[:, -19:].copy()
    users._state[:] = state
    users.respond(focus, second)
    np.testing.assert_array_equal(first, second)
    assert (users._slots[:, -19:] != uniforms).all()
    assert 0 <= uniforms.min() and uniforms.max() < 1


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
    with pytest.raises(InputError, match="embedding_size, profile_size and card_types cannot be changed"):
        LearnedUsers(scenario).allocate(2, scenario.config.replace(profile_size=9))
    weights = load_file(fitted / "simulator.safetensors")["member1.heads"]
    bad = weights.copy()
    bad[0, 0] = np.nan
    with pytest.raises(InputError, match=r"a/simulator.safetensors: tensor 'member1.heads' is not finite"):
        LearnedUsers(broken(fitted, tmp_path / "a", **{"member1.heads": bad}))
    with pytest.raises(
        InputError, match=r"b/simulator.safetensors: tensor 'member1.heads' has shape .*, not"
    ):
        LearnedUsers(broken(fitted, tmp_path / "b", **{"member1.heads": weights[:, :-1]}))
    with pytest.raises(InputError, match=r"c/simulator.safetensors lacks the tensor 'answer'"):
        LearnedUsers(broken(fitted, tmp_path / "c", answer=np.zeros(0, np.int32)))
    shutil.copytree(fitted, tmp_path / "d")
    (tmp_path / "d" / "simulator.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"d/simulator.onnx cannot be loaded"):
        LearnedUsers(trusted(tmp_path / "d"))
    shutil.copytree(fitted, tmp_path / "e")
    (tmp_path / "e" / "simulator.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"e/simulator.safetensors is not a readable safetensors file"):
        LearnedUsers(trusted(tmp_path / "e"))
