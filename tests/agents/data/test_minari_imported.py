"""Imported logs as a Minari data set: with positions, as a stream, with propensities and actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import fails_with
from small_table import PAGE, Place, table

from edgerec_gym.agents.data.minari import export_minari
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.simulator.fit import fit

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

OPTIONS: dict[str, Any] = {"env_id": "EdgeFeedRerank-v0", "sessions": 30}
ACTION = (3, 0, 4, 1, 2)  # the index of the item that is shown at each place
LOGS: dict[str, dict[str, Any]] = {
    "lists": {"price": "price"},
    "stream": {"price": "price", "list": "row number", "position": None},
    "actions": {"price": "price", "action": "a"},
    "propensities": {"price": "price", "propensity": "p", "action": "index", "list": "row number"}
    | {"position": None},
}


@pytest.fixture(scope="module", params=LOGS)
def folder(request, tmp_path_factory) -> Path:
    place = Place(tmp_path_factory.mktemp(request.param))
    frame = table().with_columns(
        price=pl.col("sku") - 999,
        a=pl.col("rank").replace_strict(dict(enumerate(ACTION))),
        p=0.25,
        index=59 - (pl.col("sku") - 1000),
    )
    place.run(frame, **LOGS[request.param])
    fit(place.out, place.folder / "users", ensemble=1, epochs=1, hidden=8)
    return place.folder


def test_an_imported_log_becomes_episodes_of_its_scenario(folder, tmp_path):
    name, reader = folder.name.rstrip("0123456789"), LogReader(folder / "logs")
    out = tmp_path / "imported-v0"
    done = export_minari(reader.folder, out, scenario=str(folder / "users"), **OPTIONS)
    dataset = minari.MinariDataset(out / "data")
    env = dataset.recover_environment()
    assert env.observation_space == dataset.observation_space and env.action_space == dataset.action_space
    log = pl.concat([pl.DataFrame(pl.from_arrow(rows)) for rows in reader.batches()])
    log = log.filter(pl.col("session") < log["session"].unique().sort()[30])
    assert done["steps"] == log.height and done["episodes"] == 30
    at, price = 0, reader.config.embedding_size
    for episode in dataset.iterate_episodes():
        rows = log.slice(at, len(episode))
        at += len(episode)
        own, steps = episode.actions, np.arange(len(episode))
        assert episode.observations["action_mask"][steps, own].all()
        shown = episode.observations["pool"][steps, own, price]
        np.testing.assert_allclose(shown, rows["price_level"].to_numpy(), atol=1e-6)
        lag = reader.config.lookahead  # rewards come with the answers
        clicks = np.append(np.zeros(lag), rows["click"].to_numpy())[: len(steps)]
        np.testing.assert_allclose(episode.rewards, clicks * reader.config.reward.click, atol=1e-6)
        if name == "lists":
            assert own.tolist() == rows["page_age"].to_list()
        elif name == "stream":
            assert not own.any()
        elif name == "actions":
            assert own.tolist() == [ACTION[k] for k in rows["page_age"]] == rows["action"].to_list()
        else:
            assert own.tolist() == rows["action"].to_list()
            assert (episode.infos["propensity"][1:] == 0.25).all() and episode.infos["randomised"][1:].all()
            assert (episode.observations["action_mask"][0].sum() > PAGE) and len(np.unique(own)) > 1


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"position": None}, "does not tell in which order the cards of a page were placed"),
        ({"item": "half"}, "slot 1: the page had shown the item before"),
        ({"card_type": "kind", "card_types": {"a": "goods", "b": "video"}}, "a mix-in card was shown, but"),
    ],
)
def test_what_an_imported_log_does_not_tell_is_refused(folder, tmp_path, mapping, message):
    place = Place(tmp_path)
    first = pl.col("sku").first().over("uid", "page_id")
    frame = table().with_columns(
        half=pl.when(pl.col("rank") < 2).then(first).otherwise("sku"),
        kind=pl.when(pl.col("sku") % 3 == 0).then(pl.lit("b")).otherwise(pl.lit("a")),
        price=1,
    )
    place.run(frame, **mapping)
    with pytest.raises(InputError, match=message):
        export_minari(place.out, tmp_path / "x-v0", scenario=str(folder / "users"), **OPTIONS)
    assert not (tmp_path / "x-v0").exists()


def test_the_command_needs_the_fitted_users(folder, tmp_path):
    fails_with("what `edgerec fit` made of it", "export-logs", folder / "logs", "--out", tmp_path / "x-v0")
