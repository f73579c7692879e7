"""Scenario folders: round trip, shared loading, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from edgerec_gym.config import preset
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import SIMULATOR_FILES, Scenario
from edgerec_gym.users import ground_truth


@pytest.fixture
def folder(lite: Scenario, tmp_path: Path) -> Path:
    assert lite.path is not None
    return Path(shutil.copytree(lite.path, tmp_path / "copy"))


def change(folder: Path, **values: object) -> None:
    file = folder / "scenario.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_saved_scenario_loads_the_same(lite, tmp_path):
    changed = replace(
        lite, name="mine", config=lite.config.replace(max_slots=30), provenance={"why": "a test"}
    )
    for name in SIMULATOR_FILES:
        shutil.copyfile(lite.path / name, tmp_path / name)
    changed.save(tmp_path)
    found = Scenario.load(tmp_path)
    assert found.path == tmp_path and found.simulator_files()[0].parent == tmp_path
    for name in ("name", "config", "synthetic", "unidentified", "provenance", "fidelity"):
        assert getattr(found, name) == getattr(changed, name), name
    for name in ("embeddings", "scalars", "card_type", "category", "names"):
        np.testing.assert_array_equal(getattr(found.catalog, name), getattr(lite.catalog, name))


def test_environments_share_one_catalogue_until_the_folder_changes(folder):
    first = Scenario.load(folder)
    assert Scenario.load(str(folder)).catalog is first.catalog
    change(folder, name="renamed")
    assert Scenario.load(folder).name == "renamed"


def test_the_shipped_scenarios_are_whole():
    for name in ("default", "lite"):
        scenario = Scenario.load(name)
        assert scenario.config == preset(name)[0] and scenario.synthetic == preset(name)[1]
        assert scenario.name == name and scenario.fidelity["click_auc"] > scenario.fidelity["click_auc_base"]
        assert "edgerec" in scenario.provenance["command"]
        scenario.simulator_files()


def test_the_ground_truth_of_a_preset_needs_no_folder():
    scenario = ground_truth("lite", n_items=400, intent=0.0)
    assert scenario.path is None and scenario.synthetic is not None
    assert len(scenario.catalog) == 400 and scenario.synthetic.intent == 0
    with pytest.raises(InputError, match="scenario 'lite' has no learned users"):
        scenario.simulator_files()


def test_an_unknown_name_lists_the_shipped_ones(tmp_path):
    with pytest.raises(
        InputError, match="no scenario 'xy': neither .* nor shipped; shipped are default, lite"
    ):
        Scenario.load("xy")
    with pytest.raises(InputError, match="did you mean 'lite-v2'?"):
        Scenario.load("lite-v3")
    with pytest.raises(InputError, match=r"scenario.json does not exist"):
        Scenario.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "logs"}, "does not describe a scenario"),
        ({"schema_version": 2}, "has schema version 2; this version reads 1"),
        ({"unidentified": ["mood"]}, "unidentified names 'mood'; known are position"),
        ({"unidentified": 3}, "unidentified must be a list"),
        ({"config": {"pool": 9}}, "FeedConfig has no field 'pool'; did you mean"),
        ({"config": {"max_slots": 2}}, "FeedConfig.max_slots = 2 is out of range"),
        ({"config": {"embedding_size": 17}}, "missing column 'e16'"),
        ({"synthetic": {"n_users": 1}}, "SyntheticUserConfig.n_users = 1 is out of range"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"fidelity": None}, "fidelity must be an object"),
    ],
)
def test_a_broken_description(folder, values, message):
    change(folder, **values)
    with pytest.raises(InputError, match=message) as caught:
        Scenario.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_catalogue(folder):
    file = folder / "catalog.parquet"
    items = pl.read_parquet(file)
    last = pl.int_range(pl.len()) == pl.len() - 1
    items.with_columns(card_type=pl.when(last).then(9).otherwise("card_type")).write_parquet(file)
    with pytest.raises(InputError, match=r"catalog.parquet: card_type 9 is not one of the feed's 0 to 4"):
        Scenario.load(folder)
    file.write_bytes(file.read_bytes()[:500])
    change(folder, name="again")
    with pytest.raises(InputError, match=r"catalog.parquet is not a readable Parquet file"):
        Scenario.load(folder)


@pytest.mark.parametrize("name", SIMULATOR_FILES)
def test_broken_learned_users_do_not_stop_the_ground_truth(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    scenario = Scenario.load(folder)
    with pytest.raises(InputError, match=f"{name} is corrupted"):
        scenario.simulator_files()
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        scenario.simulator_files()
