"""EdgeFeedSlate-v0: a plan is the same actions slot by slot in EdgeFeed-v0, until a trigger stops it."""

import gymnasium as gym
import numpy as np
import pytest
from actions import keep_action, random_action
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.errors import InputError
from edgerec_gym.feed.slate import STOPPED_BY
from edgerec_gym.scenario import Scenario

LITE = Scenario.load("lite")
N, M, K = LITE.config.pool_size, LITE.config.n_cards, LITE.config.slate_size


def make(env_id="EdgeFeedSlate-v0", users="synthetic", scenario=LITE, **config):
    return gym.make(env_id, scenario=scenario, users=users, **config).unwrapped


def plan(order=(), insert=(), request=0, size=K):
    """A plan; scores and cards that are not given are zero."""
    whole = {"order": np.zeros(N, np.float32), "insert": np.zeros(size, np.int64), "request": request}
    whole["order"][: len(order)] = order
    whole["insert"][: len(insert)] = insert
    return whole


def patient(**changes):
    """The lite feed with users who neither leave nor click, unless `changes` say so."""
    quiet = {"leave_bias": -20.0, "click_bias": -20.0, "taste": 0.0, "intent": 0.0, "pseudo_click": 0.0}
    return Scenario("patient", LITE.config, LITE.catalog, LITE.synthetic.replace(**(quiet | changes)))


def slot_by_slot(env, observation, action):
    """Play a plan in EdgeFeed-v0 as the manual page says; returns the last observation and what happened."""
    n_pool, n_cards = env.config.pool_size, env.config.n_cards
    seen = {"reward": 0.0, "terms": {}, "infos": [], "stopped_by": "plan"}
    for k, card in enumerate(action["insert"]):
        if k == 0 and action["request"]:
            step = n_pool + n_cards
        elif card > 0:
            step = n_pool + card - 1
        else:
            free = np.flatnonzero(observation["action_mask"][:n_pool])
            step = max(free, key=lambda row: (action["order"][row], -row))
        observation, reward, terminated, truncated, info = env.step(step)
        seen["reward"] += reward
        for name, value in info["reward_terms"].items():
            seen["terms"][name] = seen["terms"].get(name, 0.0) + value
        seen["infos"].append(info)
        if terminated or truncated:
            seen["stopped_by"] = "end"
        elif info["reward_terms"]["click"] > 0:
            seen["stopped_by"] = "click"
        elif info["page_arrived"]:
            seen["stopped_by"] = "page"
        if seen["stopped_by"] != "plan":
            break
    return observation, terminated, truncated, seen


def play_both(slates, slots, seed, draw, n_plans):
    """Play plans in both environments and compare everything."""
    observation, _ = slates.reset(seed=seed)
    expected, _ = slots.reset(seed=seed)
    first = 0
    stops = []
    for _ in range(n_plans):
        action = draw(observation)
        observation, reward, *over, info = slates.step(action)
        expected, *expected_over, seen = slot_by_slot(slots, expected, action)
        for key in expected:
            assert np.array_equal(observation[key], expected[key]), key
        assert (reward, over) == (seen["reward"], expected_over)
        assert info["reward_terms"] == seen["terms"]
        infos, n = seen["infos"], len(seen["infos"])
        assert info["slots"] == n and STOPPED_BY[info["stopped_by"]] == seen["stopped_by"]
        for name in ("placed_item", "placed_action", "click_probability", "purchase_probability"):
            assert info[name][:n].tolist() == [each[name] for each in infos], name
        assert info["invalid_positions"][:n].tolist() == [each["invalid_action"] for each in infos]
        assert info["invalid_action"] == any(each["invalid_action"] for each in infos)
        assert info["clicked"][:n].tolist() == [each["reward_terms"]["click"] > 0 for each in infos]
        assert (info["answered_item"][:n] >= 0).tolist() == [each["answered"] for each in infos]
        assert info["cost"] == sum(each["cost"] for each in infos)
        assert info["request_sent"] == max(each["request_sent"] for each in infos)
        assert info["page_arrived"] == infos[-1]["page_arrived"]
        assert info["positions"][:n].tolist() == list(range(first, first + n))
        assert all((info[name][n:] == -1).all() for name in ("positions", "placed_item", "answered_item"))
        first += n
        stops.append(seen["stopped_by"])
        if any(over):
            observation, _ = slates.reset()
            expected, _ = slots.reset()
            first = 0
    return stops


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    card_rate=st.sampled_from([0.0, 0.2, 1.0]),
    levels=st.sampled_from([1, 3, 1000]),  # few levels: many ties
    config=st.fixed_dictionaries(
        {
            "slate_size": st.integers(1, 12),
            "rules": st.sampled_from(["mask", "penalty"]),
            "request_latency": st.integers(1, 3),
            "lookahead": st.integers(0, 3),
            "request_budget": st.none() | st.integers(0, 2),
        }
    ),
)
def test_a_plan_equals_its_actions_slot_by_slot(seed, card_rate, levels, config):
    slates, slots = make(**config), make("EdgeFeed-v0", **config)
    rng = np.random.default_rng(seed)

    def draw(_):
        cards = rng.integers(M + 1, size=config["slate_size"])
        return {
            "order": (rng.integers(levels, size=N) / levels).astype(np.float32),
            "insert": np.where(rng.random(len(cards)) < card_rate, cards, 0),
            "request": int(rng.random() < 0.2),
        }

    play_both(slates, slots, seed, draw, 15)


def test_a_plan_equals_its_actions_slot_by_slot_with_learned_users():
    """At one batch size learned users repeat exactly."""
    slates, slots = make(users="learned"), make("EdgeFeed-v0", users="learned")
    rng = np.random.default_rng(0)
    stops = play_both(slates, slots, 5, lambda seen: random_action(slates, seen, rng), 60)
    assert set(stops) >= {"page", "click", "end"}


def test_scores_decide_the_order_and_ties_go_to_cloud_order():
    env = make(scenario=patient())
    env.reset(seed=0)
    *_, info = env.step(plan(order=[0, 1, 0.5, 1, -1], size=K))
    # 1 and 3 are equally good, then 2; zeros follow in cloud order, and -1 comes last
    assert info["placed_action"][:6].tolist() == [1, 3, 2, 0, 5, 6]
    assert STOPPED_BY[info["stopped_by"]] == "page" and info["slots"] == K == LITE.config.page_size


@pytest.mark.parametrize("latency", [1, 2, 3])
def test_stops_when_a_page_arrives_or_the_plan_is_played(latency):
    env = make(scenario=patient(), slate_size=4, request_latency=latency)
    env.reset(seed=0)
    told = [env.step(plan(size=4))[-1] for _ in range(3)]
    # the automatic page is there after page_size slots
    assert [info["slots"] for info in told] == [4, 4, 2]
    assert [STOPPED_BY[info["stopped_by"]] for info in told] == ["plan", "plan", "page"]
    assert [info["request_sent"] for info in told if info["request_sent"]] == [2]
    *_, info = env.step(plan(size=4, request=1))
    assert info["slots"] == latency and info["request_sent"] == 1 and info["page_arrived"]
    assert info["placed_action"][0] == 0 and info["reward_terms"]["request"] < 0


def test_stops_at_the_first_answered_click():
    env = make(scenario=patient(click_bias=5.0))
    env.reset(seed=0)
    lookahead = LITE.config.lookahead
    for expected in (lookahead + 1, 1, 1):  # nothing is answered before lookahead + 1 cards are there
        *_, info = env.step(plan())
        assert info["slots"] == expected and STOPPED_BY[info["stopped_by"]] == "click"
        assert info["clicked"].tolist() == [k == expected - 1 for k in range(K)]
        assert info["reward_terms"]["click"] == 1


def test_stops_at_the_end_of_the_session():
    env = make(scenario=patient(), max_slots=7, slate_size=5)
    env.reset(seed=0)
    env.step(plan(size=5))
    *_, terminated, truncated, info = env.step(plan(size=5))
    assert (terminated, truncated, info["slots"]) == (False, True, 2)
    assert STOPPED_BY[info["stopped_by"]] == "end"
    with pytest.raises(InputError, match="the episode has ended"):
        env.step(plan(size=5))
    env = make(scenario=patient(leave_bias=5.0))
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step(plan())
    assert (terminated, truncated, info["slots"]) == (True, False, LITE.config.lookahead + 1)


def test_an_illegal_card_and_an_illegal_request_keep_and_pay_and_the_plan_goes_on():
    env = make(scenario=patient(), request_budget=0, gaps=(5,) * 4, first_slots=(0,) * 4)
    env.reset(seed=0)
    # card rows 0 and 4 are of one type: the second comes too early; so does the first, which is used up
    *_, info = env.step(plan(order=np.arange(N), insert=[0, 1, 5, 1], request=1))
    assert info["invalid_positions"][:5].tolist() == [True, False, True, True, False]
    assert info["placed_action"][:5].tolist() == [0, N, 1, 2, N - 1]  # keep is cloud order, not the plan's
    assert info["invalid_action"] and info["request_sent"] == 2 and info["slots"] == K
    assert info["reward_terms"]["invalid"] == pytest.approx(-0.3)


def test_penalty_mode_plays_cards_against_the_rules_and_counts_them():
    env = make(scenario=patient(), rules="penalty", share_caps=(0.0,) * 4)
    env.reset(seed=0)
    *_, info = env.step(plan(insert=[1, 2, 0, 2]))  # card row 1 is used up at the last
    assert info["cost"] == 2 and info["invalid_positions"][:4].tolist() == [False, False, False, True]
    assert info["placed_action"][:2].tolist() == [N, N + 1]


def test_a_request_takes_the_place_of_the_first_card():
    env = make(scenario=patient(), first_slots=(0,) * 4)
    env.reset(seed=0)
    *_, info = env.step(plan(order=[0, 1], insert=[1], request=1))
    assert info["placed_action"][:2].tolist() == [0, 1] and not info["invalid_action"]


BAD = [
    ({"order": np.full(N, np.nan)}, r"order\[0\] is nan; allowed: finite scores"),
    ({"order": np.r_[np.zeros(N - 1), np.inf]}, rf"order\[{N - 1}\] is inf"),
    ({"order": np.full(N, 1e300)}, r"order\[0\] is inf"),
    ({"order": np.zeros(N - 1)}, rf"order must be numbers of shape \({N},\), got shape \({N - 1},\)"),
    ({"order": ["a"] * N}, "order must be numbers"),
    (
        {"insert": np.r_[np.zeros(K - 1, int), M + 1]},
        rf"insert\[{K - 1}\] is {M + 1}; allowed: 0 \(no card\)",
    ),
    ({"insert": np.full(K, -1)}, r"insert\[0\] is -1"),
    ({"insert": np.zeros(K)}, "insert must be whole numbers"),
    ({"insert": np.zeros(K + 1, int)}, rf"insert must be whole numbers of shape \({K},\)"),
    ({"request": 2}, "request is 2; allowed: 0 or 1"),
    ({"request": True}, "request must be whole numbers"),
    (
        {"extra": 1},
        "a plan must be a dict of order, insert, request; got the keys order, insert, request, extra",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_plans_name_what_is_wrong(change, message):
    env = make()
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(plan() | change)
    with pytest.raises(InputError, match="a plan must be a dict of order, insert, request; got 3"):
        env.step(3)


def test_bad_plans_of_a_batch_name_the_row():
    env = gym.make_vec("EdgeFeedSlate-v0", num_envs=3, scenario=LITE, users="synthetic")
    observation, _ = env.reset(seed=0)
    good = keep_action(env, observation)
    for name, place, value, message in [
        ("order", (1, 4), np.nan, r"order\[4\] of row 1 is nan"),
        ("insert", (2, 3), 99, r"insert\[3\] of row 2 is 99; allowed: 0 \(no card\) to 8"),
        ("request", 0, 7, r"request of row 0 is 7"),
    ]:
        bad = {key: values.copy() for key, values in good.items()}
        bad[name][place] = value
        with pytest.raises(InputError, match=message):
            env.step(bad)
    with pytest.raises(
        InputError, match=r"insert must be whole numbers of shape \(3, 10\), got shape \(2, 10\)"
    ):
        env.step(good | {"insert": good["insert"][:2]})
    env.step(good)


def test_the_action_space_has_the_sizes_of_the_feed_and_its_samples_are_played():
    env = gym.make_vec(
        "EdgeFeedSlate-v0", num_envs=5, scenario=LITE, users="synthetic", pool_size=25, slate_size=3
    )
    assert env.single_action_space["order"].shape == (25,)
    assert env.single_action_space["insert"].nvec.tolist() == [M + 1] * 3
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(10):
        infos = env.step(env.action_space.sample())[-1]
    assert infos["positions"].shape == (5, 3) and infos["slots"].max() <= 3


def test_rows_that_have_ended_start_their_next_episode_while_others_play(users):
    env = gym.make_vec("EdgeFeedSlate-v0", num_envs=40, scenario=LITE, users=users)
    observation, infos = env.reset(seed=0)
    assert not infos["slots"].any() and (infos["placed_item"] == -1).all()
    rng, ended, restarts = np.random.default_rng(0), np.zeros(40, bool), 0
    for _ in range(25):
        actions = random_action(env, observation, rng)
        before = env.unwrapped.batch.arrays.slot.copy()
        observation, reward, terminated, truncated, infos = env.step(actions)
        slot = env.unwrapped.batch.arrays.slot
        assert np.array_equal(slot, np.where(ended, 0, before + infos["slots"]))
        assert not infos["slots"][ended].any() and (infos["slots"][~ended] > 0).all()
        assert np.allclose(reward, sum(infos["reward_terms"].values())) and not reward[ended].any()
        restarts += ended.sum()
        ended = terminated | truncated
        assert np.array_equal(ended, infos["stopped_by"] == STOPPED_BY.index("end"))
    assert restarts > 10


def test_uncertainty_of_learned_users_is_told_slot_by_slot():
    env = make(users="learned", uncertainty=True)
    env.reset(seed=0)
    *_, info = env.step(plan())
    told = info["uncertainty"]
    assert told.shape == (K,) and ((told > 0) == (info["answered_item"] >= 0)).all() and told.any()
    assert "uncertainty" not in make(users="learned").reset(seed=0)[1]
