"""edgerec registry: publish, promote, rollback, list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from broken_devices import change, flip
from command_line import fails_with, run_well
from small_devices import crban, exported

from edgerec_gym.device.description import digest_of


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    exported(crban(), tmp_path)
    shutil.copytree(tmp_path / "device", tmp_path / "newer")
    change(tmp_path / "newer", scenario="another")
    return [tmp_path / "device", tmp_path / "newer"]


def test_a_model_is_published_promoted_and_taken_back(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails_with("registry does not exist", "registry", "list")
    assert run_well("registry", "publish", "feed", "device") == "feed: stable is version 1\n"
    told = run_well("registry", "publish", "feed", "newer", "--share", 0.05)
    assert told == "feed: stable is version 1, canary is version 2, for 5% of the users\n"
    told = run_well("registry", "promote", "feed", "--share", 0.5, "--json")
    assert json.loads(told) == {"name": "feed", "stable": 1, "canary": 2, "previous": None, "share": 0.5}
    rows = json.loads(run_well("registry", "list", "--json"))
    assert [(row["version"], row["channel"], row["share"]) for row in rows] == [
        (1, "stable", 0.5), (2, "canary", 0.5),
    ]  # fmt: skip
    assert [row["digest"] for row in rows] == [digest_of(folder) for folder in models]
    table = run_well("registry", "list", "--registry", tmp_path / "registry")
    assert "stable" in table and "canary" in table and "50%" in table and digest_of(models[1])[:12] in table
    assert run_well("registry", "promote", "feed") == "feed: stable is version 2, previous is version 1\n"
    assert run_well("registry", "rollback", "feed") == "feed: stable is version 1\n"
    fails_with("feed has neither a canary nor a version before", "registry", "rollback", "feed")


def test_what_cannot_be_published_is_told(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    fails_with("device.json does not exist", "registry", "publish", "feed", tmp_path, "--registry", folder)
    fails_with("'../x' is not a name", "registry", "publish", "../x", models[0], "--registry", folder)
    fails_with("'--share'", "registry", "publish", "feed", models[0], "--share", 1.5)
    fails_with("feed has no canary", "registry", "promote", "feed", "--registry", folder)
    flip(models[0] / "crban.scores.onnx")
    fails_with("is corrupted", "registry", "publish", "feed", models[0], "--registry", folder)
    assert not list(folder.glob("*/*"))
