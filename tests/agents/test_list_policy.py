"""List policies: plans in EdgeFeedSlate-v0; slot by slot, the observation says when to plan anew."""

import gymnasium as gym
import numpy as np
import pytest

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.agents.baselines import DeviceGreedy, Greedy, Keep, baselines_of, make_policy
from edgerec_gym.agents.find_policy import find_policies
from edgerec_gym.agents.list_policy import ListPolicy, RandomList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.oracle import OraclePolicy
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate, play
from edgerec_gym.feed.slate import check_plan
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds


def sessions(policy, env_id="EdgeFeedSlate-v0", n=60, **options):
    return play(policy, env_id=env_id, scenario="lite", users="synthetic", sessions=n, seed=0, **options)


class Counted:
    """Keep, but it notes the slot of every plan (one session)."""

    name = "counted"

    def __init__(self, slate_size):
        self.slate_size, self.slots = slate_size, []

    def reset(self, mask):
        """Nothing to forget."""

    def plan(self, observation):
        self.slots.append(float(observation["context"][0, 0]))
        rows = len(observation["pool"])
        return {
            "order": np.zeros(observation["pool"].shape[:2]),
            "insert": np.zeros((rows, self.slate_size), int),
            "request": np.zeros(rows, int),
        }


@pytest.mark.parametrize("name", baselines_of("slate"))
def test_baselines_plan_legal_actions(lite, name):
    env = make_feeds("EdgeFeedSlate-v0", 64, scenario=lite, users="synthetic", slate_size=6)
    policy = make_policy(name, "slate", seed=1, slate_size=6)
    assert isinstance(policy, Policy) and policy.name == name
    observation, _ = env.reset(seed=3)
    policy.reset(np.ones(64, bool))
    cards = 0
    for _ in range(15):
        plans = policy.act(observation)
        check_plan(plans, lite.config.pool_size, lite.config.n_cards, 6, 64)
        observation, *_, infos = env.step(plans)
        assert not infos["invalid_action"].any()
        cards += (infos["placed_action"] >= lite.config.pool_size).sum()
    assert (cards > 50) == (name == "random")


@pytest.mark.parametrize("name", ["keep", "greedy"])
def test_order_that_does_not_change_earns_the_same_by_plans_and_by_slots(name):
    """Base scores stay as the cloud shipped them: a plan loses nothing."""
    by_slot = sessions(make_policy(name, "EdgeFeed-v0"), "EdgeFeed-v0")
    for other in (
        sessions(make_policy(name, "slate")),
        sessions(
            SlotBySlot(ScoredList({"keep": Keep, "greedy": Greedy}[name](), 10), every=3), "EdgeFeed-v0"
        ),
    ):
        for key in by_slot:
            assert np.allclose(by_slot[key], other[key], rtol=0, atol=1e-9), key


def test_device_greedy_planned_for_every_slot_is_device_greedy():
    by_slot = sessions(DeviceGreedy(), "EdgeFeedRerank-v0")
    planned = sessions(SlotBySlot(ScoredList(DeviceGreedy(), 1)), "EdgeFeedRerank-v0")
    rarely = sessions(SlotBySlot(ScoredList(DeviceGreedy(), 10)), "EdgeFeedRerank-v0")
    assert all(np.array_equal(by_slot[key], planned[key]) for key in by_slot)
    assert not np.array_equal(by_slot["value"], rarely["value"])


@pytest.mark.parametrize("every", [None, 1, 4])
def test_slot_by_slot_plans_anew_at_triggers_only(lite, every):
    """What the observation shows agrees with what `info` says has happened."""
    size = 7
    env = gym.make("EdgeFeed-v0", scenario=lite, users="synthetic").unwrapped
    made_by = {"click": 0, "delete": 0, "page": 0, "quiet": 0, "end": 0}
    for seed in range(12):
        policy = Counted(size)
        player = SlotBySlot(policy, every)
        observation, _ = env.reset(seed=seed)
        player.reset(np.ones(1, bool))
        expected, since, quiet, due, over = [], 0, 0, True, False
        while not over:
            if due or since == size:
                expected.append(float(observation["context"][0]))
                since = quiet = 0
            action = int(player.act({key: value[None] for key, value in observation.items()})[0])
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            since += 1
            quiet += info["answered"]
            clicked = info["reward_terms"]["click"] > 0
            deleted = info["answered"] and env.batch.arrays.response[0, 5] > 0
            silent = every is not None and quiet >= every
            due = clicked or deleted or info["page_arrived"] or silent
            for name, happened in zip(
                made_by, (clicked, deleted, info["page_arrived"], silent, since == size), strict=True
            ):
                made_by[name] += bool(happened)
        assert policy.slots == expected
    assert all(made_by[name] for name in ("click", "delete", "page"))
    assert bool(made_by["quiet"]) == (every is not None) and bool(made_by["end"]) == (every is None)


def test_slot_by_slot_plays_cards_and_requests_where_they_are_legal(lite):
    n_pool, n_cards = lite.config.pool_size, lite.config.n_cards

    class Wants(Counted):
        """A card at the second slot that may be illegal, and a request with every plan."""

        def plan(self, observation):
            plans = super().plan(observation)
            plans["order"] = -np.tile(np.arange(n_pool), (len(plans["order"]), 1))
            plans["order"][:, 4] = 1
            plans["insert"][:, 1] = 3
            plans["request"][:] = 1
            return plans

    env = make_feeds("EdgeFeed-v0", 30, scenario=lite, users="synthetic", request_budget=1)
    observation, _ = env.reset(seed=0)
    player = SlotBySlot(Wants(5))
    player.reset(np.ones(30, bool))
    actions = []
    for _ in range(12):
        actions.append(player.act(observation))
        legal = observation["action_mask"][np.arange(30), actions[-1]]
        observation, _, terminated, truncated, infos = env.step(actions[-1])
        assert legal.all() and not infos["invalid_action"].any()
        player.reset(terminated | truncated)
    assert (actions[0] == n_pool + n_cards).all()  # the request stands in for what the order says
    assert (actions[1] == n_pool + 2).all()
    assert (actions[2] == 4).all()  # the new page is there, and no request is left
    rerank = make_feeds("EdgeFeedRerank-v0", 30, scenario=lite, users="synthetic")
    player.reset(np.ones(30, bool))
    assert (player.act(rerank.reset(seed=0)[0]) == 4).all()


def test_plans_of_one_row_do_not_depend_on_the_others(lite):
    """Only the rows at a trigger take the new plan, whatever it says for the rest."""
    env = make_feeds("EdgeFeedRerank-v0", 40, scenario=lite, users="synthetic")

    def actions(rows):
        observation, _ = env.reset(seed=2)
        player = SlotBySlot(ScoredList(DeviceGreedy(), 6))
        player.reset(np.ones(rows, bool))
        played = []
        for _ in range(15):
            action = np.zeros(40, np.int64)
            action[:rows] = player.act({key: value[:rows] for key, value in observation.items()})
            action[rows:] = observation["action_mask"][rows:].argmax(axis=1)
            played.append(action[:3])
            observation, _, terminated, truncated, _ = env.step(action)
            player.reset((terminated | truncated)[:rows])
        return np.array(played)

    assert np.array_equal(actions(3), actions(40))


def test_sessions_of_plans_do_not_depend_on_the_batch_size():
    a, b = (sessions(make_policy("device-greedy", "slate"), num_envs=size) for size in (16, 60))
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_plans_are_scored_like_slots(lite):
    """The sums of a policy with cards and requests agree with an independent count over the infos."""
    size, env_id = 40, "EdgeFeedSlate-v0"
    told = sessions(SlateBySlate(RandomList(10, seed=3)), env_id, size, num_envs=size)
    env = make_feeds(env_id, size, scenario=lite, users="synthetic", split="eval", autoreset_mode="NextStep")
    policy = RandomList(10, seed=3)
    observation, _ = env.reset(seed=0)
    over = np.zeros(size, bool)
    counted = {key: np.zeros(size) for key in told}
    while not over.all():
        observation, reward, terminated, truncated, infos = env.step(policy.plan(observation))
        live = ~over
        terms = infos["reward_terms"]
        purchases = terms["purchase"] / lite.config.reward.purchase
        counted["reward"] += live * reward
        counted["clicks"] += live * terms["click"]
        counted["purchases"] += live * purchases
        counted["requests"] += live * (terms["request"] < 0)
        counted["exposures"] += live * (infos["answered_item"] >= 0).sum(axis=1)
        counted["expected_clicks"] += live * infos["click_probability"].sum(axis=1)
        counted["expected_purchases"] += live * infos["purchase_probability"].sum(axis=1)
        expected = infos["click_probability"] + lite.config.reward.purchase * infos["purchase_probability"]
        counted["value"] += live * (expected.sum(axis=1) + terms["request"] + terms["invalid"])
        types = np.where(infos["answered_item"] >= 0, lite.catalog.card_type[infos["answered_item"]], 0)
        counted["expected_card_clicks"] += live * (infos["click_probability"] * (types > 0)).sum(axis=1)
        for k, name in enumerate(lite.config.card_types):
            counted[f"cards_{name}"] += live * (types == k + 1).sum(axis=1)
        over |= terminated | truncated
    for key in told:
        assert np.allclose(told[key], counted[key], atol=1e-5), key
    assert counted["requests"].sum() > 20 and counted["cards_ad"].sum() > 5


def test_evaluate_scores_plans_beside_the_oracle():
    names = ["keep", "random", "device-greedy", "oracle"]
    found = find_policies(names, "EdgeFeedSlate-v0", "lite", "learned")
    rows = evaluate(found, env_id="EdgeFeedSlate-v0", scenario="lite", sessions=200, num_envs=100)
    by = {(row["policy"], row["users"]): row for row in rows}
    assert by["random", "synthetic"]["value"]["mean"] < by["keep", "synthetic"]["value"]["mean"]
    assert by["oracle", "synthetic"]["gain_over_keep"]["low"] > 1
    oracle = by["oracle", "synthetic"]
    assert (
        oracle["violations"]["mean"] == 0 < oracle["share_video"]["mean"] and oracle["requests"]["mean"] > 0.5
    )
    assert "exploitation_gap" in by["device-greedy", "learned"] and ("oracle", "learned") not in by


def test_list_policies_of_ones_own_play_every_id_that_orders():
    mine = f"{RandomList.__module__}:RandomList"
    assert isinstance(make_policy(mine, "slate", slate_size=4), SlateBySlate)
    assert isinstance(make_policy(mine, "joint"), SlotBySlot)
    assert isinstance(make_policy(mine, "rerank"), SlotBySlot)
    assert isinstance(RandomList(3), ListPolicy) and isinstance(ScoredList(Keep(), 3), ListPolicy)
    with pytest.raises(InputError, match="'random' plans lists: it plays joint, rerank, slate, not 'mix'"):
        make_policy(mine, "mix")
    with pytest.raises(InputError, match="'fixed-slot' plays the tracks joint, mix, not 'slate'"):
        make_policy("fixed-slot", "EdgeFeedSlate-v0")


def test_a_slot_policy_cannot_play_slates():
    with pytest.raises(InputError, match="a plan must be a dict of order, insert, request"):
        sessions(Keep())
    with pytest.raises(InputError, match="users='synthetic'"):
        OraclePolicy().bind(make_feeds("EdgeFeedSlate-v0", 2, scenario="lite"))


@pytest.mark.parametrize("every", [0, -1, 1.5, "often"])
def test_bad_every(every):
    with pytest.raises(InputError, match="must be a whole number of exposures"):
        SlotBySlot(RandomList(3), every)


def test_bad_plans_of_a_list_policy(lite):
    class Broken(Counted):
        """NaN scores."""

        def plan(self, observation):
            plans = super().plan(observation)
            plans["order"][1, 2] = np.nan
            return plans

    observation, _ = make_feeds("EdgeFeed-v0", 3, scenario=lite, users="synthetic").reset(seed=0)
    player = SlotBySlot(Broken(5))
    player.reset(np.ones(3, bool))
    with pytest.raises(InputError, match=r"order\[2\] of row 1 is nan"):
        player.act(observation)
    mix, _ = make_feeds("EdgeFeedMix-v0", 3, scenario=lite, users="synthetic").reset(seed=0)
    player = SlotBySlot(RandomList(5))
    player.reset(np.ones(3, bool))
    with pytest.raises(InputError, match="plays EdgeFeed-v0 and EdgeFeedRerank-v0, not 9 actions"):
        player.act(mix)
