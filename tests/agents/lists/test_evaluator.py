"""The list evaluator and the sequence search: what a place sees, what a value is, what training repeats."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_rerankers import build as build_reranker

from edgerec_gym.agents.data.exposed_lists import OUTCOMES, PurchaseSurrogate, exposed_lists
from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.learning.epochs import log_record
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.lists import evaluator_training
from edgerec_gym.agents.lists.evaluator import (
    CLICK,
    CONVERSION,
    LEAST_CVR,
    LEAVE,
    PURCHASE,
    EncodedCards,
    EvaluatorConfig,
    Judged,
    ListEvaluator,
    outcome_losses,
)
from edgerec_gym.agents.lists.evaluator_training import (
    EvaluatorTrainer,
    build,
    calibration_error,
    load_evaluator,
    platt_scaling,
    train,
)
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch, _settled
from edgerec_gym.agents.perception.cards import BASE_CVR
from edgerec_gym.agents.perception.perception import base_logit
from edgerec_gym.agents.rerank.reranker import RerankerConfig, end_with_page, slots_left
from edgerec_gym.answers import BUY, PAGE_VIEW
from edgerec_gym.answers import CLICK as CLICK_ACTION
from edgerec_gym.answers import LEAVE as LEAVE_ACTION
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from tests.small_pools import all_lists, moments, stir

QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "batch_size": 64}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=200, seed=1)
    return folder


def make(identified: tuple[bool, ...] = (True,) * 4, **changes: Any) -> ListEvaluator:
    return build(Scenario.load("lite").config, EvaluatorConfig(hidden=8, **changes), identified)


@pytest.fixture(scope="module")
def evaluator() -> ListEvaluator:
    return stir(make())


def test_an_untrained_evaluator_leaves_clicks_to_the_base_ctr() -> None:
    observation = moments(3)
    network = make()
    encoded = network.encode_pool(observation)
    logits = network.logits(encoded, torch.ones(3, 20, dtype=torch.bool))
    torch.testing.assert_close(logits[..., CLICK], base_logit(observation["pool"], 16))
    conversion = torch.logit(observation["pool"][..., 16 + BASE_CVR], LEAST_CVR)
    torch.testing.assert_close(logits[..., PURCHASE], CONVERSION * conversion - 2.0)


def test_a_place_sees_all_above_and_what_is_on_screen_below(evaluator: ListEvaluator) -> None:
    """Lookahead is 2: two cards below are on screen when a card is answered."""
    encoded, placed = evaluator.encode_pool(moments(1)), torch.ones(1, 8, dtype=torch.bool)

    def logits(changed: int | None) -> torch.Tensor:
        codes = encoded.codes[:, :8].clone()
        if changed is not None:
            codes[:, changed] += 1.0
        return evaluator.logits(EncodedCards(codes, encoded.base[:, :8], encoded.screen), placed)[0]

    before = logits(None)
    for changed in range(8):
        moved = ((logits(changed) - before).abs().amax(1) > 1e-6).tolist()
        assert moved == [place >= changed - 2 for place in range(8)]


def test_the_end_of_a_list_is_not_seen_from_afar(evaluator: ListEvaluator) -> None:
    encoded = evaluator.encode_pool(moments(2))
    encoded = EncodedCards(encoded.codes[:, :8], encoded.base[:, :8], encoded.screen)
    whole = evaluator.logits(encoded, torch.ones(2, 8, dtype=torch.bool))
    short = evaluator.logits(encoded, (torch.arange(8) < 6).expand(2, -1))
    torch.testing.assert_close(short[:, :4], whole[:, :4])
    assert (short[:, 5] - whole[:, 5]).abs().max() > 1e-5


def test_cut_lists_are_judged_as_their_beginnings(evaluator: ListEvaluator) -> None:
    """So training shows a search's beginnings, and still all answers of a list."""
    encoded = evaluator.encode_pool(moments(3))
    encoded = EncodedCards(encoded.codes[:, :8], encoded.base[:, :8], encoded.screen)
    whole = torch.ones(3, 8, dtype=torch.bool)
    uncut, found = evaluator.logits(encoded, whole), evaluator.logits(encoded, whole, torch.tensor([1, 5, 9]))
    for session, cut in enumerate((1, 5, 9)):
        beginning = evaluator.logits(encoded, (torch.arange(8) < cut).expand(3, -1))[session, :cut]
        torch.testing.assert_close(found[session, :cut], beginning)
        torch.testing.assert_close(found[session, cut:], uncut[session, cut:])
    assert (found[1, 4] - uncut[1, 4]).abs().max() > 1e-5


def test_learns_what_the_card_below_does_to_the_one_above() -> None:
    """Clicks follow the price of the next card, so a network that looks up only could not tell them."""
    network = make()
    observation, generator = moments(64, slots=0), torch.Generator().manual_seed(0)
    cards = torch.rand(64, 6, 25, generator=generator)
    placed, answered = torch.ones(64, 6, dtype=torch.bool), (torch.arange(6) < 5).expand(64, -1)
    outcomes = torch.zeros(64, 6, 4)
    outcomes[:, :5, CLICK] = (cards[:, 1:, 16] > 0.5).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        logits = network.logits(network.encode(observation, cards), placed)
        judged = Judged(logits, outcomes, answered, torch.ones(64, 6))
        loss = outcome_losses(judged, (True, False, False, False))
        loss.sum().backward()
        optimizer.step()
    assert loss[CLICK].item() < 0.35  # chance is 0.69
    assert loss[PURCHASE].item() == loss[LEAVE].item() == 0


def test_value_by_hand(evaluator: ListEvaluator) -> None:
    observation, lists = moments(1, [3, 8, 9]), torch.tensor([[[3, 9, 8], [8, -1, -1]]])
    encoded = evaluator.encode_pool(observation)
    for identified in ((True,) * 4, (True, True, True, False)):
        network = stir(make(identified, decay=0.9, purchase_weight=4.0, long_page_view_weight=0.5))
        network.load_state_dict(evaluator.state_dict())
        found = network.values(encoded, lists)[0]
        for rows, value in zip(lists[0], found, strict=True):
            kept = rows[rows >= 0]
            one = EncodedCards(encoded.codes[:, kept], encoded.base[:, kept], encoded.screen)
            p = network.probabilities(one, torch.ones(1, len(kept), dtype=torch.bool))[0].detach().numpy()
            expected, stay = 0.0, 1.0
            for click, purchase, long, leave in p:
                assert purchase <= click and long <= click
                expected += stay * (click + 4.0 * purchase + 0.5 * long)
                stay *= 1 - leave if identified[LEAVE] else 0.9
            assert value.item() == pytest.approx(expected, rel=1e-4)
    assert (evaluator.list_values(observation, lists) == evaluator.values(encoded, lists)).all()


def test_lists_are_what_the_log_shows(logs: Path) -> None:
    reader = LogReader(logs)
    stream, _, _ = split_moments(reader, horizon=10, no_click=10, per_session=8, seed=0)
    chunk = next(iter(stream.chunks()))
    batch = exposed_lists(chunk, np.arange(len(chunk)), 10)
    sessions, pages = chunk.log.sessions, chunk.log.pages.of_slot
    ended_early = cards = 0
    left = slots_left(to_tensors(batch.observation), reader.config)
    for k in range(0, len(chunk), 7):
        session, slot = chunk.session[k], chunk.slot[k]
        at, end = sessions.starts[session] + slot, sessions.starts[session + 1]
        rows = [row for row in range(at, min(at + 10, end)) if pages[row] == pages[at]]
        answered = [row < sessions.starts[session] + sessions.answered[session] for row in rows]
        n = len(rows)
        assert n <= left[k], "no list goes beyond its page"
        assert batch.placed[k].tolist() == [True] * n + [False] * (10 - n)
        assert batch.answered[k].tolist() == answered + [False] * (10 - n)
        assert np.array_equal(batch.cards[k, :n, :16], sessions.catalog.embeddings[sessions.item[rows]])
        assert not batch.cards[k, n:].any() and not batch.outcomes[k][~batch.answered[k]].any()
        for name, column in (("click", CLICK_ACTION), ("purchase", BUY), ("leave", LEAVE_ACTION)):
            assert np.array_equal(batch.outcomes[k, :n, OUTCOMES.index(name)], sessions.actions[rows, column])
        ended_early += n < 10
        cards += int((batch.cards[k, :n, 21:].any(1)).sum())
    assert ended_early and cards, "some lists end early, some hold mix-in cards"


def test_expected_purchases_stand_in_for_those_that_were_made() -> None:
    """Half of the long looks end in a purchase, no short one does."""
    draws = np.random.default_rng(0)
    actions = np.zeros((4000, LEAVE_ACTION + 1), np.float32)
    actions[:, CLICK_ACTION] = 1
    long = draws.random(4000) < 0.3
    actions[long, PAGE_VIEW] = 1
    actions[:, BUY] = long & (draws.random(4000) < 0.5)
    surrogate = PurchaseSurrogate.fit([actions])
    assert surrogate is not None
    expected = surrogate(actions)
    assert expected[long].mean() == pytest.approx(0.5, abs=0.03) and expected[~long].max() < 0.01
    assert expected.mean() == pytest.approx(actions[:, BUY].mean(), rel=0.01)
    assert PurchaseSurrogate.fit([actions[:30]]) is None, "too few to learn from"
    assert PurchaseSurrogate.fit([]) is None


def test_the_learning_rate_falls(logs: Path) -> None:
    settings = EvaluatorConfig(learning_rate=0.01, epochs=5, final_rate=0.2, hidden=8)
    record = log_record("evaluator", "rerank", LogReader(logs), 0, settings) | {
        "identified": [True] * 4,
        "loss": [],
    }
    trainer = EvaluatorTrainer(LogReader(logs), record, settings)
    rates = [trainer._learning_rate(epoch) for epoch in range(5)]
    np.testing.assert_allclose(rates, [0.01, 0.008, 0.006, 0.004, 0.002])


def test_platt_scaling_repairs_what_is_too_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(20_000, generator=generator) - 1
    outcome = (torch.rand(20_000, generator=generator) < torch.sigmoid(logit)).float()
    scale, shift = platt_scaling(3 * logit + 1, outcome)
    assert scale == pytest.approx(1 / 3, abs=0.02) and shift == pytest.approx(-1 / 3, abs=0.05)
    assert calibration_error(3 * logit + 1, outcome) > 0.1
    assert calibration_error((3 * logit + 1) * scale + shift, outcome) < 0.02


def test_training_is_loaded_back_repeats_and_resumes(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", logs, **QUICK)
    assert len(whole["loss"]) == 2 and whole["identified"] == [True] * 4
    assert whole["figures"]["click"]["calibration_error"] < 0.05
    original, epochs = evaluator_training.EvaluatorTrainer.run_epoch, []

    def dies(self: Any) -> None:
        if epochs:
            raise KeyboardInterrupt
        epochs.append(1)
        original(self)

    monkeypatch.setattr(evaluator_training.EvaluatorTrainer, "run_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", logs, **QUICK)
    monkeypatch.setattr(evaluator_training.EvaluatorTrainer, "run_epoch", original)
    assert train(tmp_path / "killed", logs, resume=True, **QUICK) == whole
    first, second = (load_file(tmp_path / name / "policy.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    network = load_evaluator(tmp_path / "whole", LogReader(logs).config)
    assert (network.scale != 1).any(), "the calibration is loaded, too"
    with pytest.raises(InputError, match="already holds a training run"):
        train(tmp_path / "whole", logs, **QUICK)
    with pytest.raises(InputError, match="made for|trained with"):
        load_evaluator(tmp_path / "whole", Scenario.load("default").config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed = -1 is out of range"),
        ({"hidden_size": 3}, "EvaluatorConfig has no field 'hidden_size'"),
        ({"purchase_weight": -1}, "purchase_weight = -1 is out of range"),
    ],
)
def test_bad_arguments(logs: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, logs, **changes)


def test_a_log_without_order_is_refused(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LogReader.__init__

    def without_order(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.unidentified = ("order_within_page",)

    monkeypatch.setattr(LogReader, "__init__", without_order)
    with pytest.raises(InputError, match="cannot tell the order within a page"):
        train(tmp_path, logs, **QUICK)


# --- sequence search -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_search_as_wide_as_all_lists_finds_the_best(evaluator: ListEvaluator, k: int) -> None:
    rows = [1, 3, 8, 9]
    observation, lists = moments(3, rows), all_lists(rows, k)
    search = SequenceSearch(
        evaluator.config, evaluator, None, SearchConfig(beams=10_000, candidates=4, stability=1.0)
    )
    with torch.no_grad():
        found = search.search(observation, k)
        value = evaluator.list_values(observation, lists.expand(3, -1, -1))
    torch.testing.assert_close(found.value, value.amax(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        evaluator.list_values(observation, found.rows.unsqueeze(1))[:, 0], found.value, atol=1e-5, rtol=1e-4
    )
    assert found.stopped.tolist() == [k] * 3
    assert found.calls >= 3 * len(list(permutations(rows, k))) and found.milliseconds > 0


def test_wider_is_never_worse_than_greedy_and_the_generator(evaluator: ListEvaluator) -> None:
    observation = moments(6, slots=0)
    generator = stir(build_reranker("pointer", evaluator.config, RerankerConfig(hidden=8)))
    search = SequenceSearch(evaluator.config, evaluator, generator, SearchConfig(stability=1.0))
    with torch.no_grad():
        found = search.search(observation, 6)
        proposed = evaluator.list_values(observation, generator.emit(observation, 6).unsqueeze(1))[:, 0]
    assert (found.value >= proposed - 1e-6).all()
    assert torch.equal(search.emit(observation, 6), found.rows), "searches repeat"


@pytest.mark.parametrize("k", [1, 5, 12])
def test_lists_hold_present_rows_once(evaluator: ListEvaluator, k: int) -> None:
    observation = moments(5)
    observation["pool"][0] = 0
    observation["pool"][1, 2:] = 0
    present = (observation["pool"] != 0).any(-1)
    search = SequenceSearch(evaluator.config, evaluator, None, SearchConfig(candidates=8))
    for session, there in zip(search.emit(observation, k).tolist(), present, strict=True):
        chosen = [row for row in session if row >= 0]
        assert len(chosen) == len(set(chosen)) == min(k, int(there.sum()))
        assert all(there[row] for row in chosen) and session[len(chosen) :] == [-1] * (k - len(chosen))


def test_more_beams_than_beginnings_leave_no_holes() -> None:
    """At the first place there are fewer beginnings than beams: nothing grows from what is missing."""
    network = make()
    search = SequenceSearch(
        network.config, network, None, SearchConfig(beams=30, candidates=20, stability=1.0)
    )
    for seed in range(4):
        stir(network, seed)
        assert (search.emit(moments(8), 6) >= 0).all()


def test_stops_when_the_beams_are_as_good_as_each_other(evaluator: ListEvaluator) -> None:
    value = torch.tensor([[1.0, 0.96], [1.0, 0.9], [1.0, -torch.inf], [0.0, 0.0]])
    assert _settled(value, 0.95).tolist() == [True, False, False, False]
    observation = moments(6, slots=0)
    found = {}
    for stability in (0.0, 0.9, 1.0):
        search = SequenceSearch(evaluator.config, evaluator, None, SearchConfig(stability=stability))
        with torch.no_grad():
            found[stability] = search.search(observation, 8)
    assert found[0.0].stopped.tolist() == [1] * 6 and found[1.0].stopped.tolist() == [8] * 6
    assert found[0.0].calls < found[0.9].calls <= found[1.0].calls
    assert (found[1.0].rows >= 0).all() and (found[0.0].rows >= 0).all()


def test_a_list_is_judged_as_far_as_its_page_goes(evaluator: ListEvaluator) -> None:
    """Four of ten slots are left: what stands behind them changes neither the value nor the search."""
    observation = moments(5)
    left = slots_left(observation, evaluator.config)
    assert left.tolist() == [4] * 5
    search = SequenceSearch(evaluator.config, evaluator, None, SearchConfig(stability=1.0))
    with torch.no_grad():
        short, long = search.search(observation, 4), search.search(observation, 9)
        seen = evaluator.list_values(observation, end_with_page(long.rows.unsqueeze(1), left))[:, 0]
    assert torch.equal(short.rows, long.rows[:, :4]) and (long.rows >= 0).all()
    torch.testing.assert_close(short.value, long.value)
    torch.testing.assert_close(seen, long.value)
    assert long.stopped.tolist() == [4] * 5
