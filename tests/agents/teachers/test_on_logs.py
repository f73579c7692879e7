"""Teachers on the cloud's logs: what they read, what they may not know yet, and their runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file
from small_teachers import TEACHERS, TINY, small_log, teacher, trained

from edgerec_gym.agents.data.event_sequences import (
    SessionSequences,
    UserHistory,
    page_arrivals,
    split_sequences,
)
from edgerec_gym.agents.data.judged_pages import read_pages
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.parameters import checkpoints
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.agents.teachers.graph import page_inputs, teacher_graph
from edgerec_gym.agents.teachers.networks import pages_of, sequences_of
from edgerec_gym.agents.teachers.train import load_teacher, score_pages
from edgerec_gym.errors import InputError
from edgerec_gym.files import remove_folder
from edgerec_gym.logs.store import LogReader


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_log(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def chunk(logs: Path) -> SessionSequences:
    reader = LogReader(logs)
    train, _, _ = split_sequences(reader, UserHistory.read(reader), 4)
    return next(iter(train.chunks()))


def test_earlier_clicks_are_those_of_earlier_days() -> None:
    rng = np.random.default_rng(0)
    user, day, item = rng.integers(4, size=60), rng.integers(5, size=60), rng.integers(9, size=60)
    history = UserHistory(user, day, item, np.arange(60))
    asked = [(u, d) for u in range(6) for d in range(7)]
    found = history.earlier(*(np.array(values) for values in zip(*asked, strict=True)), 3)
    for (u, d), row in zip(asked, found, strict=True):
        before = sorted((day[k], k) for k in range(60) if user[k] == u and day[k] < d)
        clicks = [0, 0, 0, *(item[k] + 1 for _, k in before)][-3:]
        assert row.tolist() == clicks


def test_a_log_without_clicks_has_no_history() -> None:
    nothing = np.zeros(0, np.int64)
    assert not UserHistory(*[nothing] * 4).earlier(np.array([0, 3]), np.array([1, 2]), 2).any()


def test_sequences_tell_what_the_phone_sees(chunk: SessionSequences) -> None:
    session, slot = page_arrivals(chunk.log)
    chosen = np.flatnonzero(slot > 0)[:20]
    sessions, pages = chunk.moments(session[chosen], slot[chosen])
    observed = chunk.log.observations(session[chosen], slot[chosen])
    width = sessions.cards.shape[2]
    for r in range(len(chosen)):
        events = observed["exposures"][r][(observed["exposures"][r] != 0).any(1)]
        at, known = pages.session[r], pages.known[r]
        seen = slice(known - len(events), known)
        np.testing.assert_array_equal(sessions.cards[at, seen], events[:, :width])
        assert not sessions.actions[at, ~sessions.target[at] & (sessions.ids[at] == 0)].any()
        np.testing.assert_array_equal(pages.pool[r], observed["pool"][r])


@pytest.mark.parametrize("name", TEACHERS)
def test_answers_that_are_not_known_yet_change_nothing(chunk: SessionSequences, name: str) -> None:
    network = teacher(name, chunk.log.config, len(chunk.log.sessions.catalog)).eval()
    if name == "lightgcn":
        torch.nn.init.ones_(network.scale)
    session, slot = page_arrivals(chunk.log)
    last = np.append(session[1:] != session[:-1], True)  # one page a session
    chosen = np.flatnonzero(last & (slot > 0))[:8]
    sessions, pages = chunk.moments(session[chosen], slot[chosen])
    before, _ = network.score(sequences_of(sessions), pages_of(pages))
    actions, cards, ids = sessions.actions.copy(), sessions.cards.copy(), sessions.ids.copy()
    for r, known in zip(pages.session, pages.known, strict=True):
        actions[r, known:] += 1
        cards[r, known:] += 1
        ids[r, known:] = 1
    changed = replace(sessions, actions=actions, cards=cards, ids=ids)
    after, _ = network.score(sequences_of(changed), pages_of(pages))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("name", TEACHERS)
def test_training_scores_a_card_as_its_page_does(chunk: SessionSequences, name: str) -> None:
    """The dense path over sessions and the path of page arrivals are one model."""
    network = teacher(name, chunk.log.config, len(chunk.log.sessions.catalog)).eval()
    log = chunk.log
    session, slot = page_arrivals(log)
    first = log.sessions.starts[session] + slot
    chosen = np.flatnonzero(log.pages.pool_row[first] >= 0)[:10]
    sessions, pages = chunk.moments(session[chosen], slot[chosen])
    part, page = sequences_of(sessions), pages_of(pages)
    scores, _ = network.score(part, page)
    own = log.pages.pool_row[first[chosen]]
    row, at = page.session, torch.from_numpy(slot[chosen])
    state = network.states(part)[row, part.known[row, at]]
    ids, cards = part.ids[row, at].unsqueeze(1), part.cards[row, at].unsqueeze(1)
    logits, _ = network.logits(state, ids, cards, part.context[row, at])
    expected = scores[torch.arange(len(own)), torch.from_numpy(own)]
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_graph_gives_the_scores_of_the_network(logs: Path, name: str) -> None:
    reader = LogReader(logs)
    network = teacher(name, reader.config, len(reader.catalog)).eval()
    if name == "lightgcn":
        torch.nn.init.ones_(network.scale)
        torch.nn.init.normal_(network.items.weight)
    _, _, held = split_sequences(reader, UserHistory.read(reader), 4)
    pages = read_pages(held, clicked=False, most=12)[0]
    expected = score_pages(network, pages)
    known = pages.pages.known
    content = teacher_graph(network, page_inputs(pages, int(known.argmax())))
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    read = {value.name for value in session.get_inputs()}
    for row in range(len(pages)):
        given = {key: value for key, value in page_inputs(pages, row).items() if key in read}
        np.testing.assert_allclose(session.run(None, given)[0][0], expected[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_run_repeats_resumes_and_loads(logs: Path, tmp_path: Path, name: str) -> None:
    one, other = trained(tmp_path / "one", logs, name), trained(tmp_path / "other", logs, name)
    first = load_file(one / "policy.safetensors")
    second = load_file(other / "policy.safetensors")
    assert first.keys() == second.keys()
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key])
    config = LogReader(logs).config
    assert load_teacher(one, config).n_items == len(LogReader(logs).catalog)
    assert len(json.loads((one / "policy.json").read_text())["ndcg"]) == 2
    with pytest.raises(InputError, match="not a re-ranker"):
        load_reranker(one, config)
    with pytest.raises(InputError):
        find_policy(str(one), "EdgeFeedRerank-v0", "lite", "synthetic", 0)


@pytest.mark.parametrize("name", ["sasrec", "lightgcn"])
def test_a_killed_run_ends_like_an_uninterrupted_one(logs: Path, tmp_path: Path, name: str) -> None:
    whole = trained(tmp_path / "whole", logs, name)
    cut = trained(tmp_path / "cut", logs, name)
    for left in ("policy.json", "policy.safetensors"):
        (cut / left).unlink()
    remove_folder(checkpoints(cut)[-1])

    train_agent(name, cut, logs=logs, seed=0, resume=True, hyper=TINY)
    first, second = load_file(whole / "policy.safetensors"), load_file(cut / "policy.safetensors")
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key])


def test_bad_runs_are_refused(logs: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", logs, "deepfm", epochs=1)
    config = LogReader(logs).config
    record = json.loads((run / "policy.json").read_text())
    (run / "policy.json").write_text(json.dumps(record | {"network": {"items": 0}}))
    with pytest.raises(InputError, match=r"network\.items is 0"):
        load_teacher(run, config)
    (run / "policy.json").write_text(json.dumps(record | {"network": {"items": 7}}))
    with pytest.raises(InputError, match="does not fit"):
        load_teacher(run, config)
