"""The value network's start from a log: it learns, repeats, and sees what the observations show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from edgerec_gym.agents.data.log_stream import log_tables
from edgerec_gym.agents.data.observed_log import OBSERVED_COLUMNS, ObservedLog
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.values import pretrain as pretraining
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.agents.values.play import loss_of, session_states
from edgerec_gym.agents.values.pretrain import (
    AHEAD,
    LONG_LOOK,
    AuxiliaryHeads,
    PretrainConfig,
    Pretrainer,
    WholeSessions,
    mood_changes,
    pretrain,
)
from edgerec_gym.agents.values.train import make_network
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from tests.small_pools import stir

SMALL: dict[str, Any] = {"hidden": 8, "keys": 4, "heads": 2, "queries": 2}
QUICK: dict[str, Any] = {"epochs": 2, "auxiliary": 0.3, "learning_rate": 5e-3, "batch_size": 16, "seed": 0}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> LogReader:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=300, seed=1)
    return LogReader(folder)


@pytest.fixture(scope="module")
def log(logs: LogReader) -> ObservedLog:
    table = next(log_tables(logs, None, lambda ids: ids < 12, OBSERVED_COLUMNS))
    return ObservedLog(table, LoggedSessions.from_table(table, logs.config, logs.catalog), logs.config)


def new_network(logs: LogReader) -> ValueNetwork:
    return make_network(logs.config, ValueConfig(**SMALL))


def trained(logs: LogReader, **changes: Any) -> tuple[dict[str, list[float]], ValueNetwork]:
    network = new_network(logs)
    return pretrain(network, logs, **QUICK | changes), network


def same(a: ValueNetwork, b: ValueNetwork) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_the_losses_fall(logs: LogReader) -> None:
    told: list[tuple[int, int, str]] = []
    found, network = trained(logs, epochs=5, learning_rate=0.01, progress=lambda *text: told.append(text))
    assert all(np.isfinite(found[name]).all() and len(found[name]) == 5 for name in found)
    assert found["loss"][-1] < found["loss"][0]
    assert found["auxiliary"][-1] < found["auxiliary"][0]
    assert [done for done, *_ in told] == [1, 2, 3, 4, 5] and told[0][2].startswith("click log-loss 0.")
    untrained, _ = trained(logs, epochs=1, learning_rate=1e-7)
    assert min(found["held_out"]) < untrained["held_out"][0]
    fresh = new_network(logs)
    assert fresh.state_dict().keys() == network.state_dict().keys(), "the heads are thrown away"


def test_auxiliary_losses_can_be_left_out(logs: LogReader) -> None:
    (without, plain), (with_, taught) = trained(logs, auxiliary=0), trained(logs)
    assert without["auxiliary"] == [0.0, 0.0] and min(with_["auxiliary"]) > 0
    assert not same(plain, taught)


def test_same_seed_same_parameters(logs: LogReader) -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    found, network = trained(logs)
    again, other = trained(logs)
    assert found == again and same(network, other)
    assert not same(network, trained(logs, seed=1)[1])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_the_best_epoch_is_kept(logs: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, seen = iter([0.5, 0.4, 0.6, 0.7, 0.1]), []

    def figure(self: Pretrainer) -> float:
        seen.append({name: part.clone() for name, part in self.values.state_dict().items()})
        return next(figures)

    monkeypatch.setattr(Pretrainer, "stopping_figure", figure)
    found, network = trained(logs, epochs=9)
    assert found["held_out"] == [0.5, 0.4, 0.6, 0.7], "it stops after two epochs without a better one"
    assert all(torch.equal(part, seen[1][name]) for name, part in network.state_dict().items())
    assert network.training


def test_states_are_those_of_the_observations(logs: LogReader, log: ObservedLog) -> None:
    """A whole logged session at once gives what its observations give one by one."""
    network = new_network(logs)
    stir(network)
    sessions = log.sessions
    views = [int(np.diff(log.clicks_before[sessions.starts[s : s + 2]])[0]) for s in range(len(sessions))]
    index = np.flatnonzero(np.array(views) <= logs.config.page_view_history)[:6]
    assert max(np.array(views)[index]) > 0
    batch = WholeSessions(log).batch(index)
    assert batch.answered.sum() == sessions.answered[index].sum()
    with torch.inference_mode():
        state, vectors = session_states(network, batch)  # type: ignore[arg-type]
        for row, session in enumerate(index):
            slots = np.arange(sessions.answered[session])
            seen = to_tensors(log.observations(np.full(len(slots), session), slots))
            found, compared = network.read(seen)
            assert torch.allclose(state[row, : len(slots)], found, atol=1e-5)
            assert torch.allclose(vectors[row, : len(slots)], compared, atol=1e-5)


def test_the_main_loss_is_that_of_play(logs: LogReader, log: ObservedLog) -> None:
    """With outcomes in the place of probabilities, and the shown card as the only candidate."""
    chunk, index = WholeSessions(log), np.arange(len(log.sessions))
    batch, network = chunk.batch(index), new_network(logs)
    stir(network)
    labels = {"click": batch.clicked.float(), "purchase": batch.bought.float(), "candidates": batch.cards}
    labels = {name: part.unsqueeze(2) for name, part in labels.items()}
    wanted = loss_of(network, SimpleNamespace(**vars(batch), **labels), 2.0)  # type: ignore[arg-type]
    assert network.settings.purchase_weight == 2.0 and batch.clicked.any()
    trainer = Pretrainer(network, PretrainConfig(auxiliary=0), 0, None, [batch])  # type: ignore[arg-type]
    found = trainer.loss(chunk, index, torch.Generator())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_heads_are_asked_about_the_next_cards(log: ObservedLog) -> None:
    """The losses, pair by pair."""
    batch, d = WholeSessions(log).batch(np.arange(4)), log.config.embedding_size
    generator = torch.Generator().manual_seed(0)
    heads = AuxiliaryHeads(8, d)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = torch.randn(*batch.answered.shape, 8, generator=generator)
    look = batch.exposures[..., 0] > LONG_LOOK
    losses: list[list[float]] = [[], [], []]
    for row, length in enumerate(batch.answered.sum(1).tolist()):
        cards, liked = batch.cards[row, :length, :d], (batch.clicked | look)[row, :length]
        for slot in range(length):
            vectors = heads.ahead(state[row, slot]).view(2, d + 1)
            for other in range(slot + 1, min(slot + AHEAD + 1, length)):
                for part, happened in enumerate((batch.clicked, look)):
                    logit = vectors[part, :d] @ cards[other] + vectors[part, d]
                    missed = binary_cross_entropy_with_logits(logit, happened[row, other].float())
                    losses[part].append(missed.item())
            sides = slice(max(0, slot - AHEAD), slot), slice(slot + 1, slot + AHEAD + 1)
            last, following = (cards[side][liked[side]] for side in sides)
            if len(last) and len(following):
                changed = (cosine_similarity(last.mean(0), following.mean(0), dim=0) < 0).float()
                missed = binary_cross_entropy_with_logits(heads.change(state[row, slot])[0], changed)
                losses[2].append(missed.item())
    found = heads(state, batch).tolist()
    assert found == pytest.approx([float(np.mean(part)) for part in losses], rel=1e-4)


def test_the_mood_changes_where_likes_turn() -> None:
    embeddings = torch.tensor([[[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0.2], [-1, 0], [1, 0]]])
    liked = torch.tensor([[True, True, False, True, True, False]])
    slot = torch.arange(6)
    ahead = (slot > slot.view(-1, 1)) & (slot <= slot.view(-1, 1) + 2)
    changed, known = mood_changes(embeddings, liked, ahead)
    assert known.tolist() == [[False, True, True, True, False, False]]
    assert changed[known].tolist() == [True, True, True]
    assert not mood_changes(embeddings.abs(), liked, ahead)[0][known].any()


def test_other_sizes_are_refused(logs: LogReader) -> None:
    network = make_network(logs.config.replace(embedding_size=8), ValueConfig(**SMALL))
    with pytest.raises(InputError, match=r"has user \[20\]; the value network reads \[12\]"):
        pretrain(network, logs, **QUICK)


def test_too_few_sessions_are_refused(logs: LogReader, tmp_path: Path) -> None:
    collect(tmp_path, preset_name="lite", sessions=2)
    with pytest.raises(InputError, match="holds too few sessions"):
        pretrain(new_network(logs), tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs = 0 is out of range"),
        ({"auxiliary": -1.0}, "auxiliary = -1.0 is out of range"),
        ({"seed": -1}, "seed = -1 is out of range"),
    ],
)
def test_bad_arguments(logs: LogReader, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(logs, **changes)


def test_the_first_sessions_decide_when_to_stop(logs: LogReader) -> None:
    """At most so many of them, from the days that are not held out."""
    train, stop, _ = pretraining.split_stream(pretraining.SessionLog, logs, None, seed=0, cached_slots=None)
    few = pretraining.held_sessions(stop, most=5)
    assert sum(len(batch.user) for batch in few) == 5
    learned, stopping = (
        {int(s) for chunk in part.chunks() for s in chunk.sessions.session} for part in (train, stop)
    )
    assert learned and stopping and not learned & stopping
