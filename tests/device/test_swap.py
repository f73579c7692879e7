"""Hot swap: a wrong model is refused in one line while the old one plays on; a right one takes over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_devices import change, cut, flip, of_graph, seal, shift_golden, spoil
from small_agents import MAKERS
from small_devices import crban, exported, one, pointer

from edgerec_gym.agents.device.policy import DevicePolicy, load_policy
from edgerec_gym.agents.edgerec.rules import rules_from
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.export.whole import WholeAgent
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.device.description import digest_of
from edgerec_gym.device.engines import engine as engines
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import CONTEXT
from tests.small_pools import moments, stir


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CRBANs of several sizes, and one for another feed."""
    folder = tmp_path_factory.mktemp("models")
    exported(crban(), folder / "old")
    exported(crban(match=1, layers=2), folder / "new")
    exported(pointer(), folder / "pointer")
    config = Scenario.load("lite").config
    exported(crban(), folder / "other", config=config.replace(max_slots=2 * config.max_slots))
    return folder


def rows_of(session: DeviceSession, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.1, 0.9, (count, session.model.sizes[name][1])).astype(np.float32)
        for name in ("exposures", "page_views")
    }


def follow(session: DeviceSession, rows: dict[str, np.ndarray]) -> None:
    for name, several in rows.items():
        for row in several:
            session.append(name, row)


def load_session(folder: Path) -> DeviceSession:
    return DeviceSession(load(folder / "device"))


def forget_mnn(folder: Path) -> None:
    of_graph(folder, "crban.scores", engine="mnn")


def other_graph(folder: Path) -> None:
    """A graph with two layers in the place of one with one, recorded as it is."""
    shutil.copyfile(folder.parents[1] / "new/device/crban.exposures.onnx", folder / "crban.exposures.onnx")
    seal(folder)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda f: shutil.rmtree(f), "device.json does not exist"),
    "truncated": (lambda f: cut(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: it has"),
    "bit-flipped": (lambda f: flip(f / "crban.scores.onnx"), "crban.scores.onnx is corrupted: its content"),
    "golden bit-flipped": (lambda f: flip(f / "golden.safetensors"), "golden.safetensors is corrupted"),
    "not finite": (lambda f: spoil(f, "crban.scores.onnx"), "scores.onnx gives values that are not finite"),
    "other sizes": (other_graph, "crban.exposures.onnx: input 'hidden' is"),
    "other schema": (lambda f: change(f, schema_version=1), "has schema version 1; this version reads 2"),
    "wrong protocol": (
        lambda f: change(f, protocol=[7, 9]),
        "protocol is 7 to 9; this version speaks 1 to 2",
    ),
    "unknown engine": (lambda f: of_graph(f, "crban.scores", engine="abacus"), "engine is 'abacus'; allowed"),
    "engine missing": (forget_mnn, "engine 'mnn' needs an extra"),
    "other answers": (
        lambda f: shift_golden(f, "crban.scores/1/out/scores"),
        "differs from its golden output",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_model_is_refused_and_the_old_one_plays_on(
    folders: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "MNN" else find(name))
    spoil_it, message = WRONG[kind]
    candidate = folders / "candidate" / "device"
    shutil.copytree(folders / "old" / "device", candidate)
    try:
        spoil_it(candidate)
        session, untouched = load_session(folders / "old"), load_session(folders / "old")
        model, rows = session.model, rows_of(session, 30)
        for each in (session, untouched):
            follow(each, rows)
        with pytest.raises((InputError, MissingExtraError)) as raised:
            session.swap(candidate)
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert_same(session, untouched)
        assert session.model is model
    finally:
        shutil.rmtree(folders / "candidate", ignore_errors=True)


def assert_same(session: DeviceSession, other: DeviceSession) -> None:
    """Both play on in the same way."""
    for k, alone in enumerate(one(moments(3), k) for k in range(3)):
        more = rows_of(session, 2, seed=10 + k)
        for each in (session, other):
            follow(each, more)
        assert np.array_equal(session.scores(alone), other.scores(alone))
        assert session.rerank(alone).tolist() == other.rerank(alone).tolist()


def test_another_digest_or_other_features_are_refused(folders: Path) -> None:
    session, untouched = load_session(folders / "old"), load_session(folders / "old")
    with pytest.raises(InputError, match=f"has the digest {digest_of(folders / 'new/device')}; expected 00"):
        session.swap(folders / "new/device", digest="00")
    with pytest.raises(InputError, match="reads other features than"):
        session.swap(folders / "other/device")
    assert_same(session, untouched)


@pytest.mark.parametrize("count", [0, 3, 60])
def test_the_new_model_has_seen_the_last_events(folders: Path, count: int) -> None:
    """After a swap the session is that of the new model which has followed them, and goes on counting."""
    session = load_session(folders / "old")
    rows = rows_of(session, count)
    follow(session, rows)
    session.swap(folders / "new/device", digest=digest_of(folders / "new/device"))
    fresh = load_session(folders / "new")
    follow(fresh, {name: several[-session.model.sizes[name][0] :] for name, several in rows.items()})
    assert session.count == {"exposures": count, "page_views": count}
    assert_same(session, fresh)
    session.swap(folders / "pointer/device")
    assert session.model.agent == "pointer"
    assert sorted(session.rerank(one(moments(1), 0))) == sorted(set(session.rerank(one(moments(1), 0))))


def test_a_swap_after_a_restart_replays_the_same_events(folders: Path, tmp_path: Path) -> None:
    session = load_session(folders / "old")
    follow(session, rows_of(session, 33))
    session.save(tmp_path / "state")
    restarted = load_session(folders / "old")
    restarted.restore(tmp_path / "state")
    for each in (session, restarted):
        each.swap(folders / "new/device")
    assert restarted.count == session.count
    assert_same(session, restarted)


def test_a_state_of_another_model_is_refused(folders: Path, tmp_path: Path) -> None:
    """Even of one with the same sizes: its codes would mean something else."""
    shutil.copytree(folders / "old/device", tmp_path / "device")
    change(tmp_path / "device", scenario="another")
    session = load_session(folders / "old")
    session.save(tmp_path / "state")
    other = load_session(tmp_path)
    with pytest.raises(InputError, match="tensor 'model' does not fit; another model saved it"):
        other.restore(tmp_path / "state")


# --- in the middle of a session -----------------------------------------------------------------------

SESSIONS = 3
EVERY_SLOT = {"triggers": {"every_slot": True}, "request": {"cool_down": 0}}
AGENTS = [  # and their tracks; those that plan several slots at once come last
    ("dnn", "rerank"),
    ("crban", "rerank"),
    ("pointer", "rerank"),
    ("values-pg", "joint"),
    ("uplift-x", "request"),
    ("pointer-ppo", "joint"),
    ("edgerec", "joint"),
    ("esan", "joint"),
]
FOLLOW_ALL = ("dnn", "values-pg", "uplift-x", "esan")  # their events are all in the histories, or unread
PLAN_AHEAD = ("esan",)


def two_models(agent: str, env: Any, folder: Path) -> tuple[Path, Path]:
    """An agent, and the same with other parameters."""
    source, _ = MAKERS[agent](agent, env)
    if isinstance(source, WholeAgent):
        source = WholeAgent(source.network, rules_from(EVERY_SLOT))
    networks = [part for part in (source, *vars(source).values()) if hasattr(part, "parameters")]
    for seed, name in ((4, "old"), (5, "new")):
        for network in networks[:1] if networks[:1] == [source] else networks:
            stir(network, seed, 0.2)
        export_network(source, folder / name, find_agent(agent), "lite", env.config)
    return folder / "old", folder / "new"


def both(policies: list[DevicePolicy], observation: Observation, live: np.ndarray) -> bool:
    """Whether two policies act the same and give the same reasons, bit for bit, where sessions go on."""
    one, other = (policy.act(observation)[live].tolist() for policy in policies)
    same = one == other
    for row in np.flatnonzero(live).tolist():
        told = [policy.explain(row) for policy in policies]
        for name in ("scores", "matrix", "uplift") if None not in told else ():
            a, b = (getattr(said, name) for said in told)
            same &= (a is None) == (b is None) and (a is None or bool(np.array_equal(a, b)))
    return same


@pytest.mark.parametrize(
    ("agent", "track", "slot"),
    [(*case, slot) for case in AGENTS for slot in (1, 12, 30) if slot < 20 or case[0] in FOLLOW_ALL],
)
def test_a_swap_between_two_slots_acts_as_if_the_new_model_had_played_from_the_start(
    agent: str, track: str, slot: int, tmp_path: Path, lite: Scenario
) -> None:
    """Bit for bit, if the histories hold what the model has read; plans ahead, from the next plan on."""
    env = make_feeds(track, SESSIONS, scenario=lite, users="synthetic", split="eval")
    old, new = two_models(agent, env, tmp_path)
    swapped, fresh = load_policy(old, env), load_policy(new, env)
    assert isinstance(swapped, DevicePolicy) and isinstance(fresh, DevicePolicy)
    live = np.ones(SESSIONS, np.bool_)
    observation, _ = env.reset(seed=[3, 4, 6])
    for policy in (swapped, fresh):
        policy.reset(live)
    differed, compared, since = False, 0, -1
    for now in range(slot + 16):
        if now == slot:
            swapped.swap(load(new, digest_of(new)))
        same = both([swapped, fresh], observation, live)
        if now < slot:
            differed |= not same
        else:
            page = observation["context"][live, CONTEXT.index("page_age")] == 0
            if since < 0 and (agent not in PLAN_AHEAD or (now > slot and page.all())):
                since = now
            if since >= 0:
                assert same, f"slot {now}"
                compared += 1
        observation, _, terminated, truncated, _ = env.step(fresh.act(observation))
        live &= ~(terminated | truncated)
        if not live.any():
            break
    assert differed or slot == 1, "the models are not the same"
    assert compared > (0 if slot == 30 else 5)
    assert swapped.model.digest == fresh.model.digest


def test_an_agent_goes_on_with_its_counts_after_a_swap(tmp_path: Path, lite: Scenario) -> None:
    """Its requests so far count against the rules of the new model, and old answers are not new."""
    env = make_feeds("joint", SESSIONS, scenario=lite, users="synthetic", split="eval")
    eager = {"request": {"price": -1e3, "cool_down": 0, "per_session": 2}}
    source, _ = MAKERS["edgerec"]("edgerec", env)
    for name in ("old", "new"):
        stir(source.network, len(name), 0.1)
        agent = WholeAgent(source.network, rules_from(eager))
        export_network(agent, tmp_path / name, find_agent("edgerec"), "lite", lite.config)
    (tmp_path / "new/device.json").write_text((tmp_path / "new/device.json").read_text() + " ")
    policy = load_policy(tmp_path / "old", env)
    assert isinstance(policy, DevicePolicy)
    policy.reset(np.ones(SESSIONS, np.bool_))
    observation, _ = env.reset(seed=list(range(SESSIONS)))
    asked, live, told = np.zeros(SESSIONS, np.int64), np.ones(SESSIONS, np.bool_), list[set[Any]]()
    for now in range(30):
        if now in (6, 20):
            policy.swap(load(tmp_path / "new"))
        action = policy.act(observation)
        told.append({getattr(policy.explain(row), "trigger", "") for row in np.flatnonzero(live).tolist()})
        asked += live & (action == observation["action_mask"].shape[1] - 1)
        observation, _, terminated, truncated, _ = env.step(action)
        live &= ~(terminated | truncated)
    assert asked.max() == 2, "two in a session, whichever model asks"
    assert told[0] == {"start"} and told[6] == {"new model"}


def test_a_model_that_cannot_take_over_leaves_the_agent_playing(tmp_path: Path, lite: Scenario) -> None:
    """One for another track, and one whose rules cannot be kept, in the middle of a session."""
    env = make_feeds("joint", SESSIONS, scenario=lite, users="synthetic", split="eval")
    old, new = two_models("edgerec", env, tmp_path)
    source, _ = MAKERS["esan"]("esan", make_feeds("mix", 1, scenario=lite, users="synthetic"))
    network = WholeAgent(
        MAKERS["edgerec"]("edgerec", env)[0].network, rules_from({"insert": {"gaps": [1] * 5}})
    )
    export_network(network, tmp_path / "gaps", find_agent("edgerec"), "lite", lite.config)
    ppo, _ = MAKERS["pointer-ppo"]("pointer-ppo", make_feeds("rerank", 1, scenario=lite, users="synthetic"))
    export_network(ppo, tmp_path / "ppo", find_agent("pointer-ppo"), "lite", lite.config)
    policies = [load_policy(old, env) for _ in range(2)]
    observation, _ = env.reset(seed=list(range(SESSIONS)))
    for now in range(20):
        if now == 9:
            for name, message in (
                ("ppo", "was trained for the track 'rerank'"),
                ("gaps", "gaps has 5 entries"),
            ):
                with pytest.raises(InputError, match=message):
                    policies[0].swap(load(tmp_path / name))  # type: ignore[attr-defined]
        assert both(policies, observation, np.ones(SESSIONS, np.bool_))  # type: ignore[arg-type]
        observation, *_ = env.step(policies[1].act(observation))
