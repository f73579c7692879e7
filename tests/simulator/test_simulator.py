"""Users learned from logs: what the network reads, and the step graph that plays it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_log import columns, writer

from edgerec_gym.answers import (
    BUY,
    CLICK,
    CLICK_PROBABILITY,
    FOCUSED,
    HOUR,
    LEAVE,
    N_PAGE_VIEWS,
    PAGE_AGE,
    PAGE_SUMMARY,
    PAGE_VIEW,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    SLOT,
    WINDOW,
    Focus,
    UserStart,
)
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.logging_policy import RandomisedPolicy
from edgerec_gym.logs.sessions import SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.simulator.dataset import padded, plan_batches
from edgerec_gym.simulator.export import export
from edgerec_gym.simulator.inputs import SessionBatch, hat
from edgerec_gym.simulator.losses import fitted_heads, log_losses
from edgerec_gym.simulator.model import HEADS, UserNetwork
from edgerec_gym.users.learned import LearnedUsers
from edgerec_gym.users.learned_layout import N_ANSWER
from edgerec_gym.users.synthetic import SyntheticUsers

CONFIG = FeedConfig(embedding_size=4, profile_size=2)
REAL_LOG = ("position", "neighbours", "exposure_actions", "page_view_actions", "leave", "order_within_page")


def random_sessions(
    config: FeedConfig, unidentified: tuple[str, ...], sessions: int, slots: int
) -> SessionBatch:
    """Sessions of random content in the encoding of answers.py."""
    rng = np.random.default_rng(5)

    def levels(n: int, *shape: int) -> np.ndarray:
        return rng.integers(0, n, shape) / (n - 1)

    b, t = sessions, slots
    width = config.n_item_features + config.n_types
    cards = rng.normal(size=(b, t + WINDOW - 1, width)) * 0.4
    cards[:, :, config.embedding_size + 1] = rng.uniform(0.001, 0.4, (b, t + WINDOW - 1))
    cards[:, :2] = 0
    click = rng.random((b, t, 1)) < 0.4
    looks = np.stack([levels(n, b, t) for n in (8, 4, 5, 5, 4, 3)], -1)
    opened = np.concatenate([levels(8, b, t, 1), rng.random((b, t, 10)) < 0.3], -1) * click
    if "exposure_actions" in unidentified:
        looks[:] = 0
    if "page_view_actions" in unidentified:
        opened[:, :, 1:] = 0
    context = rng.random((b, t, 8))
    context[:, :, SLOT] = np.arange(t)
    context[:, :, PAGE_AGE] = np.arange(t) % 3
    context[:, :, HOUR] = 14
    context[:, :, N_PAGE_VIEWS] = np.cumsum(click[:, :, 0], 1) - click[:, :, 0]
    length = np.array([t, t - 2, 1] + [t] * (b - 3))
    actions = np.concatenate([looks, click, opened, np.zeros((b, t, 1))], -1)
    actions *= (np.arange(t) < length[:, None])[:, :, None]
    user = rng.uniform(-1, 1, (b, config.n_user_features))
    page = rng.normal(size=(b, t, len(PAGE_SUMMARY)))
    *inputs, page = (torch.tensor(values).float() for values in (cards, context, user, actions, page))
    return SessionBatch(*inputs, torch.tensor(length), torch.ones(b), page)


def random_network(
    config: FeedConfig, unidentified: tuple[str, ...], seed: int, bins: int = 0
) -> UserNetwork:
    """A network whose every part matters."""
    torch.manual_seed(seed)
    network = UserNetwork(config, unidentified, hidden=12, bins=bins)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = 0.3 * torch.randn_like(parameter)
            if parameter is network.heads.weight:
                noise[(parameter == 0).all(1)] = 0  # heads that are never fitted
            parameter.add_(noise * (parameter > -100))
        network.heads.bias[sum(HEADS[head] for head in ("dwell", "exposure"))] = 0  # clicks are frequent
    network.inputs.set_scales(
        torch.rand(network.inputs.width) * 2,
        torch.tensor([-2.0, 0.7]),
        torch.tensor([1, 1, 0, 1, 1, 1, 1, 1.0]),
        torch.rand(config.n_user_features),
    )
    network.inputs.set_bins(
        torch.randn_like(network.inputs.bin_start), torch.rand_like(network.inputs.bin_start) * 2
    )
    return network


class Exported:
    """Fitted users in a folder, all that LearnedUsers asks of a scenario."""

    def __init__(self, folder: Path, networks: list[UserNetwork], config: FeedConfig) -> None:
        export(networks, np.zeros((1, config.n_user_features), np.float32), np.zeros(1), folder)
        self.folder = folder
        self.catalog = SimpleNamespace(supply=None)

    def simulator_files(self) -> tuple[Path, Path]:
        return self.folder / "simulator.onnx", self.folder / "simulator.safetensors"


def play_users(scenario: Exported, config: FeedConfig, user: np.ndarray, member: int) -> LearnedUsers:
    """Users at the start of sessions, all of one member."""
    users = LearnedUsers(scenario)
    users.allocate(len(user), config, Workers(len(user), 1))
    users.reset(np.arange(len(user)), np.zeros(len(user), np.uint64), 1)
    users._memory.member[:] = member
    users._memory.user[:] = user
    return users


def look(batch: SessionBatch, t: int, keys: np.ndarray) -> Focus:
    """What is seen at slot t of every session."""
    n = len(keys)
    cards = np.ascontiguousarray(batch.cards[:, t : t + WINDOW].numpy())
    context = np.ascontiguousarray(batch.context[:, t].numpy())
    pages = np.zeros((n, WINDOW, len(PAGE_SUMMARY)), np.float32)
    pages[:, FOCUSED] = batch.page[:, t]
    return Focus(np.ones(n, np.bool_), cards, np.zeros((n, WINDOW), np.int32), context, keys, pages)


@pytest.mark.parametrize(
    ("unidentified", "lookahead", "bins"),
    [
        ((), 2, 0),
        ((), 0, 3),
        (("order_within_page",), 2, 0),
        (("page_view_duration",), 1, 0),
        (REAL_LOG, 2, 0),
        (REAL_LOG, 2, 3),
    ],
)
def test_steps_of_the_graph_equal_the_whole_session(tmp_path, unidentified, lookahead, bins):
    config = CONFIG.replace(lookahead=lookahead)
    networks = [random_network(config, unidentified, seed, bins) for seed in range(2)]
    batch = random_sessions(config, unidentified, sessions=6, slots=9)
    scenario = Exported(tmp_path, networks, config)
    for k, network in enumerate(networks):
        with torch.no_grad():
            logits, _ = network.forward_sequence(batch)
        users = play_users(scenario, config, batch.user.numpy(), k)
        assert users.simulator.members == 2
        found, response = np.zeros((6, 9)), np.zeros((6, RESPONSE_SIZE), np.float32)
        for t in range(9):
            users.respond(look(batch, t, np.arange(6, dtype=np.uint64)), response)
            found[:, t] = response[:, CLICK_PROBABILITY]
            actions = batch.actions[:, t, :LEAVE]
            opened = hat(actions[:, PAGE_VIEW : PAGE_VIEW + 1], 8) * actions[:, CLICK : CLICK + 1]
            users._memory.last[:, -N_ANSWER:] = torch.cat([hat(actions[:, :1], 8), actions, opened], 1)
        answered = np.arange(9) < batch.length.numpy()[:, None]
        wanted = logits["click_probability"].numpy()
        assert wanted.std() > 0.03  # the sessions differ
        np.testing.assert_allclose(found[answered], wanted, atol=1e-5)


def test_answers_follow_the_heads(tmp_path):
    network = random_network(CONFIG, (), 1)
    one = random_sessions(CONFIG, (), sessions=4, slots=4)
    n = 40_000
    same = {
        name: getattr(one, name)[:1].repeat_interleave(n, 0) for name in ("cards", "context", "user", "page")
    }
    first = one._replace(**same)
    users = play_users(Exported(tmp_path, [network], CONFIG), CONFIG, first.user.numpy(), 0)
    focus = look(first, 0, np.arange(n, dtype=np.uint64))
    drawn = np.zeros((n, RESPONSE_SIZE), np.float32)
    users.respond(focus, drawn)
    answers = torch.from_numpy(drawn[:, : LEAVE + 1])
    # Every drawn answer as a session of its own: the heads, given what was drawn before.
    batch = SessionBatch(
        torch.from_numpy(focus.cards),
        one.context[:1, :1].expand(n, -1, -1),
        one.user[:1].expand(n, -1),
        answers[:, None],
        torch.ones(n, dtype=torch.int64),
        torch.ones(n),
        one.page[:1, :1].expand(n, -1, -1),
    )
    with torch.no_grad():
        logits, _ = network.forward_sequence(batch)
    tolerance = 5 / np.sqrt(n)
    for head, column, levels in (("dwell", 0, 8), ("exposure", 1, 4)):
        wanted = torch.softmax(logits[head][:, : 8 if head == "dwell" else 5], 1).mean(0)[:levels].numpy()
        observed = np.bincount(np.rint(drawn[:, column] * (levels - 1)).astype(int), minlength=levels) / n
        np.testing.assert_allclose(observed, wanted, atol=tolerance)
    click = drawn[:, CLICK] > 0
    assert 0.05 < click.mean() < 0.95 and drawn[~click, PAGE_VIEW:LEAVE].max() == 0
    assert abs(click.mean() - drawn[0, CLICK_PROBABILITY]) < tolerance
    assert abs(torch.sigmoid(logits["click"]).mean() - drawn[0, CLICK_PROBABILITY]) < tolerance
    assert abs(drawn[:, BUY].mean() - drawn[0, PURCHASE_PROBABILITY]) < tolerance
    page_view = torch.softmax(logits["page_view"][0], 0).numpy()
    observed = np.bincount(np.rint(drawn[click, PAGE_VIEW] * 7).astype(int), minlength=8) / click.sum()
    np.testing.assert_allclose(observed, page_view, atol=5 / np.sqrt(click.sum()))
    signs = torch.sigmoid(logits["signs"])[torch.from_numpy(click)].mean(0).numpy()
    np.testing.assert_allclose(
        drawn[click, PAGE_VIEW + 1 : LEAVE].mean(0), signs, atol=5 / np.sqrt(click.sum())
    )
    assert abs(drawn[:, LEAVE].mean() - torch.sigmoid(logits["leave"]).mean()) < tolerance


def test_what_a_log_cannot_tell_is_neither_read_nor_fitted():
    network = random_network(CONFIG, REAL_LOG, 2)
    batch = random_sessions(CONFIG, REAL_LOG, sessions=5, slots=8)
    heads = fitted_heads(network.unidentified)
    assert heads == ["click", "page_view", "ranking"]
    before = network.heads.weight.detach().clone(), network.heads.bias.detach().clone()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(3):
        logits, rows = network.forward_sequence(batch)
        optimizer.zero_grad()
        torch.stack(list(log_losses(logits, rows, heads).values())).sum().backward()
        optimizer.step()
    cuts = np.cumsum([0, *HEADS.values()])
    for (head, size), start in zip(HEADS.items(), cuts, strict=False):
        same = torch.equal(network.heads.weight[start : start + size], before[0][start : start + size])
        assert same == (head not in heads), head
    with torch.no_grad():
        wanted = network.forward_sequence(batch)[0]["click_probability"]
        context = batch.context.clone()
        context[:, 1:, N_PAGE_VIEWS] += (context[:, 1:, PAGE_AGE] > 0) * 3.0  # moves within a page only
        cards = batch.cards.clone()
        cards[:, -2:] += 1.0  # of the longest sessions: neighbours of their last card
        found = network.forward_sequence(batch._replace(context=context, cards=cards))[0]["click_probability"]
        position = batch._replace(context=batch.context.clone())
        position.context[:, :, SLOT] += 1
        moved = network.forward_sequence(position)[0]["click_probability"]
    np.testing.assert_array_equal(found[:3], wanted[:3])
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_answers_within_a_frozen_page_do_not_change_each_other():
    network = random_network(CONFIG, ("order_within_page",), 3)
    batch = random_sessions(CONFIG, (), sessions=3, slots=9)
    other = batch._replace(actions=batch.actions.clone())
    other.actions[0, 4, :CLICK] = 1 - other.actions[0, 4, :CLICK]  # second slot of the page at 3..5
    with torch.no_grad():
        a, b = (network.forward_sequence(x)[0]["click"][:9, 0].numpy() for x in (batch, other))
    # The click also sees the dwell on the same card (slot 4); slot 5 must not, the next page must.
    np.testing.assert_allclose(a[[0, 1, 2, 3, 5]], b[[0, 1, 2, 3, 5]], atol=1e-6)
    assert np.abs(a[6:] - b[6:]).min() > 1e-5


class Spy:
    """Synthetic users that note what they are shown."""

    name = "spy"
    uncertainty = None

    def __init__(self, users: SyntheticUsers) -> None:
        self.users, self.seen = users, []  # type: SyntheticUsers, list[tuple[np.ndarray, ...]]

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        self.users.allocate(num_envs, config, workers)

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        return self.users.reset(rows, keys, split)

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        self.users.respond(focus, response)
        active = focus.active.copy()
        self.seen.append((active, focus.cards.copy(), focus.context.copy(), response.copy()))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the lite preset."""
    folder = tmp_path_factory.mktemp("logs") / "lite"
    collect(folder, preset_name="lite", sessions=60)
    return folder


def test_sessions_from_logs_are_what_the_users_saw(logs):
    config, synthetic = preset("lite")
    spy = Spy(SyntheticUsers(synthetic, config))
    batch = FeedBatch(60, "joint", config, spy.users.world.catalog, spy, split="log")
    batch.reset(np.arange(60), np.arange(60))
    policy, done = RandomisedPolicy(), np.zeros(60, np.bool_)
    habits = policy.habits(np.arange(60))
    for slot in range(config.max_slots):
        batch.step(policy.draw(batch, slot, habits)[0], done)
        done = done | batch.arrays.terminated | batch.arrays.truncated
    [sessions] = SessionStream(LogReader(logs), None).chunks()
    index = np.flatnonzero(sessions.answered > 0)
    found = padded(sessions, index, np.ones(len(index)))
    assert sessions.answered.sum() == sum(active.sum() for active, *_ in spy.seen)
    for j, row in enumerate(index):
        shown = [seen for seen in spy.seen if seen[0][row]]
        assert len(shown) == found.length[j]
        for t, (_, cards, context, response) in enumerate(shown):
            np.testing.assert_array_equal(found.cards[j, t : t + WINDOW], cards[row])
            np.testing.assert_array_equal(found.context[j, t], context[row])
            np.testing.assert_allclose(found.actions[j, t], response[row, : LEAVE + 1], atol=1e-6)


def test_the_summary_of_a_page_is_the_same_in_the_feed_and_in_its_log(tmp_path):
    """Cloud order shows a whole page: its first page_size candidates, which is what a log knows of it."""
    collect(tmp_path / "keep", preset_name="lite", sessions=30, randomise=())
    config, synthetic = preset("lite")
    users = SyntheticUsers(synthetic, config)
    batch = FeedBatch(30, "joint", config, users.world.catalog, users, split="log")
    batch.reset(np.arange(30), np.arange(30))
    [sessions] = SessionStream(LogReader(tmp_path / "keep"), None).chunks()
    done, whole = np.zeros(30, np.bool_), 0
    for slot in range(config.max_slots):
        arrays = batch.arrays
        batch.step(np.zeros(30, np.int64) + batch.observation(copy=False)["action_mask"].argmax(axis=1), done)
        for row in np.flatnonzero(~done):
            logged = sessions.summary[sessions.starts[row] + slot]
            if logged[-1] == 0:  # all of its page_size cards were placed
                np.testing.assert_allclose(arrays.window_page[row, arrays.newest], logged, atol=1e-5)
                whole += 1
        done = done | arrays.terminated | arrays.truncated
    assert whole > 300 and np.ptp(sessions.summary[:, :4], axis=0).min() > 0.01


def test_a_log_that_does_not_fit_is_streamed(tmp_path):
    w = writer(tmp_path)
    w.write(columns([3, 1, 7, 5, 6]))
    w.write(columns([4, 9], first=5, seed=1))
    w.finish()
    reader = LogReader(tmp_path)
    [whole] = SessionStream(reader, None).chunks()
    streamed = SessionStream(reader, None, cached_slots=0)
    for _ in range(2):
        parts = list(streamed.chunks())
        assert [len(p) for p in parts] == [5, 2]
        np.testing.assert_array_equal(np.concatenate([p.actions for p in parts]), whole.actions)
        np.testing.assert_array_equal(np.concatenate([p.context for p in parts]), whole.context)
    [some] = SessionStream(reader, [1, 2], keep=lambda session: session != 2).chunks()
    assert some.session.tolist() == [1, 5, 6]
    np.testing.assert_array_equal(
        padded(some, np.array([1]), np.ones(1)).cards, padded(whole, np.array([5]), np.ones(1)).cards
    )


def test_batches_hold_every_session_once_and_little_padding():
    length = np.random.default_rng(0).integers(0, 200, 500)
    batches = plan_batches(length, 2000, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == np.flatnonzero(length).tolist()
    padded = [length[b].max() * len(b) for b in batches]
    assert max(padded) <= 2000
    assert length.sum() > 0.85 * sum(padded)
