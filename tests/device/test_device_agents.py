"""Every agent on a phone: it decides as its torch form does, at every slot of whole sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_well
from small_agents import MAKERS, esan_network, uplift_model

from edgerec_gym.agents.device.policy import DevicePolicy, load_policy
from edgerec_gym.agents.export.decisions import coded_events
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.perception.perception import SEQUENCES
from edgerec_gym.agents.registry import AGENTS, find_agent
from edgerec_gym.device.codes import EventCodes
from edgerec_gym.device.description import Port
from edgerec_gym.device.engines.onnx_runtime import ports
from edgerec_gym.device.graph import DeviceGraph
from edgerec_gym.device.session import DeviceSession
from edgerec_gym.device.session import load as load_model
from edgerec_gym.errors import InputError
from edgerec_gym.registration import SLATE, make_feeds
from edgerec_gym.scenario import SHIPPED_FOLDER, Scenario

SESSIONS = 6
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (name, track, {})
        for name in ("dnn", "dlcm", "prm", "setrank", "seq2slate")
        for track in ("rerank", SLATE)
    ),
    ("dlcm", "rerank", {"layers": 2, "residual": 0}),
    ("prm", "rerank", {"layers": 2, "residual": 0}),
    ("seq2slate", SLATE, {"layers": 2, "residual": 0}),
    *(
        (name, track, {})
        for name in ("distilled-values", "values-pg")
        for track in ("joint", "rerank", SLATE)
    ),
    ("values-pg", "joint", {"queries": 2}),
    *((name, track, {}) for name in ("esan", "esan-pg") for track in ("mix", "joint", SLATE)),
    ("esan", "mix", {"behaviour": 0, "window": 3}),
    ("esan", "mix", {"surroundings": 0, "layers": 2}),
    *((name, "request", {}) for name in ("uplift-t", "uplift-x", "uplift-class", "uplift-dragon")),
    ("uplift-x", "joint", {}),
    ("uplift-t", "request", {"behaviour": 0}),
    ("uplift-dragon", "request", {"layers": 2}),
    ("request-dqn", "request", {}),
    ("request-dqn", "joint", {}),
    *(("pointer-ppo", track, {}) for track in ("joint", "rerank", "mix", "request")),
    ("pointer-ppo", "joint", {"recurrent": 0}),
    *(("flat-ppo", track, {}) for track in ("joint", "request")),
    ("edgerec", "joint", {}),
    ("edgerec", "joint", {"page_views": 0}),
    ("edgerec", "joint", {"joint": True}),
]


def gap(reference: Any, device: Any, row: int) -> float:
    """Largest difference between what both tell of a decision, relative to 1 + its size."""
    if not hasattr(reference, "explain"):
        return 0.0
    was, now = reference.explain(row), device.explain(row)
    assert (was is None) == (now is None)
    found = [0.0]
    for name in ("scores", "matrix", "uplift", "plan") if was is not None else ():
        a, b = getattr(was, name), getattr(now, name)
        assert (a is None) == (b is None), name
        if a is not None:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            kept = a > -1e6  # below are illegal actions and cards that cannot be placed
            assert np.array_equal(kept, b > -1e6)
            a, b = a[kept], b[kept]
            found.append(float((np.abs(a - b) / (1 + np.abs(a))).max(initial=0.0)))
    return max(found)


def same_actions(
    folder: Path, agent: str, env: Any, most: int = 1000, **settings: Any
) -> tuple[int, set[Any]]:
    """Play both forms on the same observations; returns slots, and the different actions among them."""
    source, reference = MAKERS[agent](agent, env, **settings)
    export_network(source, folder / "device", find_agent(agent), "lite", env.config)
    device: Any = load_policy(folder / "device", env)
    assert isinstance(device, DevicePolicy)
    everything = np.ones(SESSIONS, np.bool_)
    reference.reset(everything)
    device.reset(everything)
    observation, _ = env.reset(seed=list(range(SESSIONS)))
    live, chosen, slots = everything.copy(), set[Any](), 0
    while live.any() and slots < most:
        expected, found = reference.act(observation), device.act(observation)
        for row in np.flatnonzero(live).tolist():
            if isinstance(expected, dict):
                orders = [np.argsort(-part["order"][row], kind="stable")[:10] for part in (found, expected)]
                assert np.array_equal(*orders)
                assert np.array_equal(found["insert"][row], expected["insert"][row])
                chosen.add((*expected["insert"][row].tolist(), *orders[1][:3].tolist()))
            else:
                assert found[row] == expected[row]
                chosen.add(int(expected[row]))
            assert gap(reference, device, row) < 1e-5
        slots += int(live.sum())
        observation, _, terminated, truncated, _ = env.step(expected)
        live &= ~(terminated | truncated)
    return slots, chosen


@pytest.mark.parametrize(("agent", "track", "settings"), CASES, ids=lambda part: str(part).replace(" ", ""))
def test_it_acts_as_the_torch_agent(
    tmp_path: Path, lite: Scenario, agent: str, track: str, settings: dict[str, Any]
) -> None:
    """To the end of sessions that are longer than the histories, which hold 20 of 60 events."""
    env = make_feeds(track, SESSIONS, scenario=lite, users="synthetic", split="eval")
    slots, chosen = same_actions(tmp_path, agent, env, **settings)
    assert slots > (5 if track == SLATE else 25) * SESSIONS / 2
    assert len(chosen) > 1, "it decides otherwise at different moments"


@pytest.mark.parametrize("agent", ["values-pg", "esan", "pointer-ppo", "edgerec"])
def test_it_does_so_in_a_feed_without_lookahead(tmp_path: Path, lite: Scenario, agent: str) -> None:
    env = make_feeds("joint", SESSIONS, scenario=lite, users="synthetic", split="eval", lookahead=0)
    assert same_actions(tmp_path, agent, env, most=100)[0] >= 100


def test_every_agent_that_plays_is_a_case() -> None:
    elsewhere = {
        "crban",
        "pointer",
        "pointer-evaluator",
        "pointer-users",
        "pointer-distilled",
        "sequence-search",
    }
    assert {name for name, *_ in CASES} | elsewhere == {
        name for name, agent in AGENTS.items() if agent.graphs is not None
    }
    left = {name for name, agent in AGENTS.items() if agent.graphs is None}
    assert left == {"evaluator", "lightgcn", "sasrec", "deepfm"}
    assert all(AGENTS[name].not_exported for name in left)


def event_graph(content: bytes) -> DeviceGraph:
    inputs, outputs = ports(content)
    assert all(isinstance(port, Port) for port in inputs.values())
    return DeviceGraph(Path("event.onnx"), "onnxruntime", content, inputs, outputs)


@pytest.mark.parametrize("name", SEQUENCES)
def test_windows_are_what_a_network_reads_from_the_history(lite: Scenario, name: str) -> None:
    """At every moment the codes are those of an encoder that starts anew at the first row of the history."""
    encoder = esan_network(lite.config, layers=2).perception.encoder(name)
    length, width = encoder.length, encoder.n_card + encoder.n_action
    graph = event_graph(coded_events([encoder], length))
    codes = EventCodes.of(graph, length)
    rows = torch.rand(3 * length + 2, width, generator=torch.Generator().manual_seed(0))
    for k, row in enumerate(rows, 1):
        codes.append(graph, row.numpy())
        history = rows[max(0, k - length) : k]
        with torch.no_grad():
            expected = encoder(history.unsqueeze(0)).values[0].numpy()
        read = codes.read()
        np.testing.assert_allclose(read["codes"][: len(history)], expected, rtol=1e-5, atol=1e-5)
        assert not read["codes"][len(history) :].any()
        assert read["present"].sum() == len(history)


@pytest.mark.parametrize("agent", ["edgerec", "uplift-x"])
def test_it_goes_on_after_a_restart_of_the_app(tmp_path: Path, lite: Scenario, agent: str) -> None:
    env = make_feeds("joint", 1, scenario=lite, users="synthetic")
    source, _ = MAKERS[agent](agent, env)
    export_network(source, tmp_path / "device", find_agent(agent), "lite", lite.config)
    model = load_model(tmp_path / "device")
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (60, model.sizes["exposures"][1])).astype(np.float32)
    whole, parted = DeviceSession(model), DeviceSession(model)
    for k, row in enumerate(rows):
        whole.append("exposures", row)
        parted.append("exposures", row)
        if k % 25 == 10:
            parted.save(tmp_path / "state")
            parted = DeviceSession(model)
            parted.restore(tmp_path / "state")
    assert whole.codes
    for key, codes in whole.codes.items():
        for name, value in codes.read().items():
            np.testing.assert_allclose(parted.codes[key].read()[name], value, rtol=1e-5, atol=1e-6)


def change(folder: Path, **values: Any) -> None:
    file = folder / "device.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_wrong_with_settings_is_said(tmp_path: Path, lite: Scenario) -> None:
    env = make_feeds("joint", 1, scenario=lite, users="synthetic")
    source, _ = MAKERS["edgerec"]("edgerec", env)
    folder = tmp_path / "device"
    export_network(source, folder, find_agent("edgerec"), "lite", lite.config)
    written = json.loads((folder / "device.json").read_text())["settings"]["edgerec"]
    for changed, message in (
        ({}, "settings.edgerec: page_views is missing"),
        (written | {"page_views": 3}, "page_views must be true or false"),
        (written | {"prices": [0.0]}, "settings.edgerec needs 8 prices"),
        (written | {"plan": [1.0]}, "a plan_spread of 1 x 1 numbers"),
    ):
        change(folder, settings={"edgerec": changed})
        with pytest.raises(InputError, match=message):
            load_policy(folder, env)
    change(folder, settings={"edgerec": written})
    load_policy(folder, env)
    rules = folder / "rules.toml"
    rules.write_text(rules.read_text().replace("0.02", "0.5"))
    with pytest.raises(InputError, match=r"rules\.toml is corrupted"):
        load_policy(folder, env)


def test_other_tracks_and_other_sizes_are_refused(tmp_path: Path, lite: Scenario) -> None:
    config = lite.config
    joint = make_feeds("joint", 1, scenario=lite, users="synthetic")
    other = make_feeds("joint", 1, scenario="default", users="synthetic")
    for agent, wrong, message in (
        ("edgerec", "rerank", "takes all three decisions; it plays the tracks joint, not 'rerank'"),
        ("esan", "request", "inserts cards; it plays the tracks mix, joint, slate, not 'request'"),
        ("uplift-x", "mix", "requests pages; it plays the tracks joint, request, not 'mix'"),
        ("values-pg", "request", "re-ranks; it plays the tracks joint, rerank, slate, not 'request'"),
        ("pointer-ppo", "rerank", "was trained for the track 'joint'; this environment is 'rerank'"),
    ):
        source, _ = MAKERS[agent](agent, joint)
        folder = tmp_path / agent
        export_network(source, folder, find_agent(agent), "lite", config)
        with pytest.raises(InputError, match=message):
            load_policy(folder, make_feeds(wrong, 1, scenario=lite, users="synthetic"))
        with pytest.raises(InputError, match=r"exported for the scenario 'lite' with pool \[20, 20\]"):
            load_policy(folder, other)


def test_parameters_that_are_not_finite_are_refused(tmp_path: Path, lite: Scenario) -> None:
    model = uplift_model("uplift-x", lite.config)
    with torch.no_grad():
        next(model.effects.parameters()).fill_(torch.nan)
    env = make_feeds("request", 1, scenario=lite, users="synthetic")
    source, _ = MAKERS["uplift-x"]("uplift-x", env)
    with pytest.raises(InputError, match="is not finite; the network cannot be exported"):
        export_network(
            type(source)(model, lite.config), tmp_path / "d", find_agent("uplift-x"), "lite", lite.config
        )
    assert not list(tmp_path.iterdir())


WITHOUT_TORCH = """
import sys
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.evaluation.play import play
for folder, env_id in zip(sys.argv[1::2], sys.argv[2::2]):
    policy = find_policy(folder, env_id, "lite", "synthetic")
    found = play(policy, env_id=env_id, scenario="lite", users="synthetic", sessions=2, seed=0)
    assert found["violations"].sum() == 0, folder
    assert "torch" not in sys.modules and "onnx" not in sys.modules, folder
print("played")
"""
RUNS = SHIPPED_FOLDER / "lite" / "agents"


def test_shipped_runs_are_exported_by_the_command_and_play_without_torch(tmp_path: Path) -> None:
    arguments: list[str] = []
    for run, env_id in (
        ("joint/runs/edgerec-0", "EdgeFeed-v0"),
        ("joint/runs/values-0", "EdgeFeed-v0"),
        ("joint/runs/values-0", "EdgeFeedRerank-v0"),
        ("mix/runs/esan-0", "EdgeFeedMix-v0"),
        ("request/runs/uplift-t-0", "EdgeFeedRequest-v0"),
        ("request/runs/request-dqn-0", "EdgeFeedRequest-v0"),
        ("rerank/runs/pointer-ppo-0", "EdgeFeedRerank-v0"),
        ("rerank/runs/seq2slate-0", "EdgeFeedSlate-v0"),
    ):
        out = tmp_path / run.replace("/", "-")
        if not out.exists():
            told = json.loads(run_well("export", RUNS / run, "--out", out, "--scenario", "lite", "--json"))
            size = sum(path.stat().st_size for path in out.iterdir())
            assert told["bytes"] + (out / "device.json").stat().st_size == size < 3e6
        arguments += [str(out), env_id]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "played", done.stderr
