"""Logs as a Minari data set: what was logged, what recovers, what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from small_log import write_log

from edgerec_gym.agents.data.minari import export_minari
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader

SESSIONS = 25


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    collect(
        folder / "request", preset_name="lite", sessions=SESSIONS, seed=2, randomise=["request"], moments=3
    )
    collect(folder / "all", preset_name="lite", sessions=SESSIONS, seed=2)
    return folder


@pytest.mark.parametrize(("name", "env_id"), [("request", "EdgeFeedRequest-v0"), ("all", "EdgeFeed-v0")])
def test_episodes_are_what_the_environment_plays(logs, tmp_path, monkeypatch, name, env_id):
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setattr(
        "edgerec_gym.agents.data.minari.BLOCK_SLOTS", 100
    )  # several blocks, and sessions larger than one
    out = tmp_path / "minari" / "edgefeed-test-v0"
    done = export_minari(logs / name, out, env_id=env_id)
    assert {path.name for path in out.parent.iterdir()} == {out.name}  # nothing temporary is left
    dataset = minari.MinariDataset(out / "data")
    table = next(LogReader(logs / name).batches())
    assert done["steps"] == dataset.total_steps == table.num_rows
    assert done["episodes"] == dataset.total_episodes == SESSIONS
    env = dataset.recover_environment(split="log")
    assert env.spec.id == env_id and env.observation_space == dataset.observation_space
    at = 0
    for index, episode in enumerate(dataset.iterate_episodes()):
        seen, _ = env.reset(seed=2 * CLI_SEED_STRIDE + index)
        for step in range(len(episode)):
            for key, values in seen.items():
                np.testing.assert_allclose(episode.observations[key][step], values, atol=2e-6, err_msg=key)
            seen, reward, terminated, truncated, _ = env.step(int(episode.actions[step]))
            assert episode.rewards[step] == pytest.approx(reward)
            assert (episode.terminations[step], episode.truncations[step]) == (terminated, truncated)
        assert terminated or truncated
        propensity = table["propensity"].to_numpy()[at : at + len(episode)]
        np.testing.assert_array_equal(episode.infos["propensity"][1:], propensity)
        assert len(episode.observations["context"]) == len(episode) + 1 and np.isnan(
            episode.infos["propensity"][0]
        )
        assert (
            not episode.infos["randomised"][0]
            and episode.infos["randomised"][1:].any() == (propensity < 1).any()
        )
        at += len(episode)


def test_part_of_a_log_under_the_name_that_minari_finds(logs, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    export_minari(logs / "request", tmp_path / "edgefeed-request-v1", env_id="request", sessions=7)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("edgefeed-request-v1")
    assert dataset.total_episodes == 7 and "randomised" in next(dataset.iterate_episodes()).infos


@pytest.mark.parametrize(
    ("log", "out", "options", "message"),
    [
        ("request", "no name", {}, "cannot name a data set"),
        ("request", ".", {}, "cannot name a data set"),
        ("request", "x-v0", {"env_id": "EdgeFeedSlate-v0"}, "slots, not plans"),
        ("request", "x-v0", {"sessions": 0}, "at least 1"),
        ("request", "x-v0", {"scenario": "nowhere"}, "no scenario 'nowhere'"),
        ("all", "x-v0", {"env_id": "EdgeFeedRequest-v0"}, "does not exist in the track 'request'"),
        ("nowhere", "x-v0", {}, "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(logs, tmp_path, log, out, options, message):
    pytest.importorskip("minari")
    with pytest.raises(InputError, match=message):
        export_minari(logs / log, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_without_minari_the_extra_is_named(logs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.setitem(sys.modules, "minari.dataset.minari_storage", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgerec_gym\[offline\]'"):
        export_minari(logs / "request", tmp_path / "x-v0")


def test_an_existing_folder_and_an_unknown_origin_are_refused(logs, tmp_path):
    pytest.importorskip("minari")
    (tmp_path / "x-v0").mkdir()
    with pytest.raises(InputError, match="exists"):
        export_minari(logs / "request", tmp_path / "x-v0")
    write_log(tmp_path / "log")
    with pytest.raises(InputError, match="does not record its scenario"):
        export_minari(tmp_path / "log", tmp_path / "y-v0")
