"""ESAN: what a slot sees, that one pass says what single ones do, what training repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from edgerec_gym.agents.data.exposed_lists import ListBatch, exposed_lists
from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.insertion.esan import ESAN, ESANConfig, Prediction
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.train import build, load_network, train
from edgerec_gym.agents.insertion.values import SlotValues, TrueValues, cloud_order, displaced, slots_left
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.lists.evaluator import CLICK, LEAVE, PURCHASE, outcome_losses
from edgerec_gym.agents.lists.evaluator_training import load_evaluator
from edgerec_gym.agents.perception.perception import base_logit
from edgerec_gym.config import FeedConfig, RewardConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "batch_size": 64}
T = 6


@pytest.fixture(scope="module")
def lite() -> Scenario:
    return Scenario.load("lite")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=200, seed=1)
    return folder


def make(config: FeedConfig | None = None, **changes: Any) -> ESAN:
    config = config or Scenario.load("lite").config
    return stir(build(config, ESANConfig(hidden=8, **changes), (True,) * 4))


@pytest.fixture(scope="module")
def network() -> ESAN:
    return make()


def moments(n_sessions: int, slots: int = 6, env_id: str = "EdgeFeedMix-v0", **options: Any) -> Any:
    """An environment some slots into its sessions, and its observation."""
    env = make_feeds(env_id, n_sessions, scenario="lite", users="synthetic", **options)
    observation, _ = env.reset(seed=5)
    for _ in range(slots):
        observation, *_ = env.step(np.zeros(n_sessions, np.int64))
    return env, observation


def inputs(observation: dict[str, np.ndarray], config: FeedConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors with the cards, and the goods in cloud order."""
    tensors = to_tensors(observation) | {"cards": torch.from_numpy(observation["cards"].copy())}
    order = cloud_order(observation)[:, : T + 2]
    listed = np.take_along_axis(observation["pool"], order[:, :, None], axis=1)
    types = np.zeros((*listed.shape[:2], config.n_types), np.float32)
    types[..., 0] = 1
    return tensors, torch.from_numpy(np.concatenate([listed, types], 2))


def predict(network: ESAN, n_sessions: int = 3) -> tuple[dict[str, Tensor], Tensor, Prediction]:
    _, observation = moments(n_sessions)
    tensors, goods = inputs(observation, network.config)
    with torch.no_grad():
        return tensors, goods, network.predict(tensors, goods, T)


def test_an_untrained_network_leaves_clicks_to_the_base_ctr(lite: Scenario) -> None:
    network = build(lite.config, ESANConfig(hidden=8), (True,) * 4)
    tensors, goods, found = predict(network)
    base = torch.sigmoid(base_logit(tensors["cards"], 16))
    torch.testing.assert_close(found.cards[..., CLICK], base.unsqueeze(2).expand(-1, -1, T))
    torch.testing.assert_close(found.goods[..., CLICK], torch.sigmoid(base_logit(goods[:, :T], 16)))
    assert network.judge(listed(tensors, goods)).weight.unique().tolist() == [1.0]


def listed(tensors: dict[str, Tensor], cards: Tensor) -> ListBatch:
    """A logged list of these cards, all answered, nothing clicked."""
    shape = cards.shape[:2]
    placed = np.ones(shape, np.bool_)
    observation = {key: value.numpy() for key, value in tensors.items() if key != "cards"}
    return ListBatch(observation, cards.numpy(), np.zeros((*shape, 4), np.float32), placed, placed)


@pytest.mark.parametrize(
    "changes", [{}, {"surroundings": 0}, {"behaviour": 0}, {"surroundings": 0, "behaviour": 0}]
)
def test_one_pass_says_what_single_lists_do(changes: dict[str, int]) -> None:
    """A card at slot t is judged as in a logged list with the card there and the goods pushed down."""
    network = make(**changes)
    tensors, goods, found = predict(network)
    for t in range(T - 2):
        for card in (0, 5):
            one = tensors["cards"][:, card : card + 1]
            mixed = torch.cat((goods[:, :t], one, goods[:, t:-1]), 1)
            logits = network.judge(listed(tensors, mixed)).logits[:, t]
            torch.testing.assert_close(
                network.probabilities(logits), found.cards[:, card, t], atol=1e-6, rtol=1e-4
            )
    logits = network.judge(listed(tensors, goods)).logits
    torch.testing.assert_close(network.probabilities(logits), found.goods, atol=1e-6, rtol=1e-4)


def test_a_slot_sees_two_above_and_two_below(network: ESAN) -> None:
    tensors, goods, _ = predict(network)
    batch = listed(tensors, goods)

    def clicks(changed: int | None) -> Tensor:
        cards = goods.clone()
        if changed is not None:
            cards[:, changed, :16] = -cards[:, changed, :16]
        return network.judge(listed(tensors, cards)).logits[..., CLICK]

    before = clicks(None)
    for changed in range(T + 2):
        moved = ((clicks(changed) - before).abs().amax(0) > 1e-6).tolist()
        assert moved == [abs(t - changed) <= 2 for t in range(T)]
    screen = tensors["screen"].clone()
    tensors["screen"] = -screen
    moved = (
        (network.judge(listed(tensors, goods)).logits[..., CLICK] - before).abs().amax(0) > 1e-6
    ).tolist()
    assert moved[:2] == [True, True] and not any(moved[2:])
    assert batch.cards.shape[1] == network.below + T


def test_ablations_are_blind(lite: Scenario) -> None:
    tensors, goods, _ = predict(make())
    other = {
        key: value.flip(0) if key in ("exposures", "page_views") else value for key, value in tensors.items()
    }
    aside = goods.flip(1)
    for surroundings in (0, 1):
        for behaviour in (0, 1):
            network = make(surroundings=surroundings, behaviour=behaviour)
            with torch.no_grad():
                found = network.predict(tensors, goods, T).cards
                assert torch.equal(network.predict(other, goods, T).cards, found) != behaviour
                assert torch.equal(network.predict(tensors, aside, T).cards, found) != surroundings


def test_absent_cards_and_goods_are_worth_nothing(network: ESAN) -> None:
    tensors, goods, _ = predict(network)
    tensors["cards"][0, 3] = 0
    goods[1, 4:] = 0
    found = network.predict(tensors, goods, T)
    assert not found.cards[0, 3].any() and found.cards[0, 2].all()
    assert not found.goods[1, 4:].any() and found.goods[1, :4].all()
    assert (found.exposure[1, 5:] == found.exposure[1, 5]).all(), "nobody leaves where nothing stands"


def test_exposure_falls_with_leaving_and_ends_with_the_session(network: ESAN) -> None:
    tensors, goods, _ = predict(network)
    tensors["context"][:, 0] = 53 / 60  # the last two of 60 are placed, but not answered
    found = network.predict(tensors, goods, T)
    leave = found.goods[..., LEAVE].detach()
    exposure = found.exposure.detach()
    torch.testing.assert_close(exposure[:, 0], (1 - leave[:, 0]) ** 2)
    torch.testing.assert_close(exposure[:, 1] / exposure[:, 0], 1 - leave[:, 0])
    assert (exposure[:, :5] > 0).all() and not exposure[:, 5:].any()


def test_values_follow_the_reward_weights(lite: Scenario) -> None:
    reward = RewardConfig(click=2.0, purchase=3.0, insert_click=0.5)
    network = make(lite.config.replace(reward=reward))
    p = torch.tensor([0.1, 0.02, 0.5, 0.3])
    assert network.values(p, False).item() == pytest.approx(2.0 * 0.1 + 3.0 * 0.02)
    assert network.values(p, True).item() == pytest.approx(2.5 * 0.1 + 3.0 * 0.02)


def test_learns_what_the_neighbours_do(lite: Scenario) -> None:
    """Clicks follow the price of the card above, so only the surroundings can tell them."""
    tensors, goods, _ = predict(make(), 64)
    generator = torch.Generator().manual_seed(0)

    def fresh() -> ListBatch:
        cards = torch.rand(64, T + 2, 25, generator=generator)
        batch = listed(tensors, cards)
        batch.outcomes[:, 1:, CLICK] = cards[:, :-1, 16] > 0.5
        return batch

    losses = {}
    for surroundings in (0, 1):
        settings = ESANConfig(hidden=8, surroundings=surroundings, behaviour=0)
        network = build(lite.config, settings, (True, False, False, False))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = outcome_losses(network.judge(fresh()), network.identified)
            loss.sum().backward()
            optimizer.step()
        losses[surroundings] = loss[CLICK].item()
        assert loss[PURCHASE].item() == loss[LEAVE].item() == 0
    assert losses[1] < 0.4 and losses[0] > 0.55  # 0.58 is chance


def test_cards_weigh_more_than_goods(logs: Path, network: ESAN) -> None:
    stream, _, _ = split_moments(LogReader(logs), horizon=10, no_click=10, per_session=8, seed=0)
    batch = exposed_lists(next(iter(stream.chunks())), np.arange(60), network.list_size)
    judged = network.judge(batch)
    assert judged.logits.shape == (60, 10, 4) and not judged.answered.all()
    mixed_in = batch.cards[:, :10, 21:].any(-1)
    assert np.array_equal(judged.weight.numpy(), np.where(mixed_in, 3.0, 1.0)) and mixed_in.any()


def test_training_is_loaded_back_and_repeats(logs: Path, tmp_path: Path) -> None:
    record = train(tmp_path / "a", logs, agent="esan", **QUICK)
    assert record["track"] == "mix" and len(record["loss"]) == 2
    assert train(tmp_path / "b", logs, agent="esan", **QUICK) == record
    first, second = (load_file(tmp_path / name / "policy.safetensors") for name in "ab")
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert (load_network(tmp_path / "a", LogReader(logs).config).scale != 1).any()
    with pytest.raises(InputError, match="'esan', not an evaluator"):
        load_evaluator(tmp_path / "a", LogReader(logs).config)


def test_a_log_without_cards_is_refused(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LogReader.__init__

    def without_cards(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.unidentified = ("cards",)

    monkeypatch.setattr(LogReader, "__init__", without_cards)
    with pytest.raises(InputError, match="has no mix-in cards"):
        train(tmp_path, logs, agent="esan", **QUICK)


# --- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_other_lookaheads(lookahead: int, lite: Scenario) -> None:
    env, observation = moments(2, lookahead=lookahead)
    values = NetworkValues(make(env.config)).values(observation, cloud_order(observation), 4)
    assert values.cards.shape == (2, 8, 4) and (values.exposure > 0).all()


def test_slots_left_end_with_the_page_and_the_session(lite: Scenario) -> None:
    env, observation = moments(1, slots=0)
    ended, arrived, seen = False, False, []
    while not ended:
        left = slots_left(observation, lite.config)[0]
        if arrived or not seen:
            seen.append(left)
            expected = left
        assert left == expected
        observation, _, terminated, truncated, info = env.step(np.zeros(1, np.int64))
        ended, arrived = bool(terminated | truncated), bool(info["page_arrived"][0])
        expected -= 1
        assert arrived == (expected == 0) or ended
    assert set(seen) == {10}


def test_displaced_goods_by_hand() -> None:
    values = SlotValues(np.zeros((1, 1, 3)), np.array([[4.0, 2.0, 1.0]]), np.array([[1.0, 0.9, 0.5]]))
    last = 0.5 * 1.0  # does not fit any more
    middle = (0.9 - 0.5) * 2.0
    first = (1.0 - 0.9) * 4.0
    assert displaced(values)[0] == pytest.approx([first + middle + last, middle + last, last])


def test_true_values_are_what_users_answer(lite: Scenario) -> None:
    """The value of a card that is placed now is known but for what will stand below it."""
    env, observation = moments(40, slots=12)
    oracle = TrueValues()
    with pytest.raises(InputError, match="bind the oracle"):
        oracle.values(observation, cloud_order(observation), 3)
    oracle.bind(env)
    values = oracle.values(observation, cloud_order(observation), 3)
    now = env.users.true_values(env.batch.arrays)
    close = np.corrcoef(values.cards[:, :, 0].ravel(), (now[:, 20:, 0] + 5 * now[:, 20:, 1]).ravel())
    assert close[0, 1] > 0.95
    with pytest.raises(InputError, match="needs users='synthetic'"):
        TrueValues().bind(make_feeds("EdgeFeedMix-v0", 1, scenario="lite", users="learned"))
