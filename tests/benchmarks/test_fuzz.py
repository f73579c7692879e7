"""A small, fixed part of the fuzzer, and that it finds what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz import model, steps
from benchmarks.fuzz.configs import make_setup

DOCUMENTS = ("logs.json", "mapping.json (csv)", "device session", "report: results.json", "scenario.json")


@pytest.mark.parametrize("number", range(5))
def test_every_id_keeps_to_its_rules(number: int) -> None:
    played = steps.play_number(number, seed=1, steps=4000, small=True)
    assert played.faults == [] and played.refused == ""
    assert played.steps > 100 and played.compared > 200


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("caps", "rule of insertion|action_mask"),
        ("latency", "page_arrived|context|request_sent|action_mask"),
        ("max_slots", "truncated|context"),
        ("weights", "reward term"),
        ("lookahead", "context|terminated|reward term|slots of the plan"),
    ],
)
def test_the_model_tells_other_rules_apart(field: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = model.make_rules

    def other(*arguments: Any) -> model.Rules:
        rules = make(*arguments)
        value = getattr(rules, field)
        return rules._replace(**{field: value + 1 if isinstance(value, int) else value * 0.5 + 0.01})

    monkeypatch.setattr(steps, "make_rules", other)
    setup = make_setup(0, seed=1, small=True)
    config = setup.scenario.config.replace(
        share_caps=[0.1] * len(setup.scenario.config.card_types),
        gaps=[0] * len(setup.scenario.config.card_types),
        first_slots=[0] * len(setup.scenario.config.card_types),
    )
    setup = replace(setup, scenario=replace(setup.scenario, config=config))
    [found] = steps.play_setup(setup, 4000).faults
    assert any(part in found for part in fault.split("|")), found


def test_a_replay_that_differs_is_noticed() -> None:
    with pytest.raises(steps.Harm, match="replay: reward: values differ"):
        steps._same("replay", {"reward": np.zeros(2)}, {"reward": np.array([0.0, 1e-300])})
