"""Device models as folders: exported by the command, played back, and what is wrong with a folder is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_devices import change, cut, flip, of_graph, rename_golden, renamed, shift_golden, spoil
from command_line import fails_with, run_well
from small_rerankers import build

from edgerec_gym.agents.export.export import export, export_network
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.registry import find_agent, train_agent
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.device.description import digest_of, feature_digest
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments

COMMON: dict[str, Any] = {"seed": 0, "resume": True, "threads": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, an evaluator, a CRBAN, a generator, and a search of the first and third."""
    folder = tmp_path_factory.mktemp("runs")
    collect(folder / "logs", preset_name="lite", sessions=120, seed=1)
    for agent in ("evaluator", "pointer", "crban"):
        hyper = {"epochs": 1, "hidden": 8}
        train_agent(agent, folder / agent, logs=folder / "logs", hyper=hyper, **COMMON)
    based_on = [folder / "evaluator", folder / "pointer"]
    train_agent(
        "sequence-search",
        folder / "search",
        logs=None,
        based_on=based_on,
        hyper={},
        scenario="lite",
        **COMMON,
    )
    return folder


@pytest.fixture(scope="module")
def device(runs: Path) -> Path:
    """An exported search."""
    export(runs / "search", runs / "device", scenario="lite")
    return runs / "device"


@pytest.fixture
def device_copy(device: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(device, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("agent", "engine"),
    [("crban", "onnxruntime"), ("pointer", "onnxruntime"), ("search", "onnxruntime"), ("crban", "mnn")],
)
def test_the_command_exports_what_evaluate_plays(
    runs: Path, lite: Scenario, tmp_path: Path, agent: str, engine: str
) -> None:
    if engine == "mnn":
        pytest.importorskip("MNN", exc_type=ImportError)
    out = tmp_path / "device"
    command = ("export", runs / agent, "--out", out, "--scenario", "lite", "--engine", engine, "--json")
    described = json.loads(run_well(*command))
    assert described["places"] == lite.config.slate_size and described["scenario"] == "lite"
    assert described["bytes"] == _files_but(out, "device.json") < 3e6
    assert sorted(described["graphs"]) == sorted(
        path.stem for path in out.iterdir() if path.suffix in (".onnx", ".mnn")
    )
    assert {graph["engine"] for graph in described["graphs"].values()} == {engine}
    played = {}
    for folder in (runs / agent, out):
        policy = find_policy(str(folder), "EdgeFeedSlate-v0", lite, "synthetic")
        options: dict[str, Any] = {"env_id": "EdgeFeedSlate-v0", "scenario": lite, "users": "synthetic"}
        played[folder] = play(policy, sessions=20, seed=0, **options)
    a, b = played.values()
    if agent != "search":  # in a batch its draws differ from those of one session
        short = a["exposures"] <= lite.config.exposure_history
        assert short.sum() > 3 and np.allclose(a["value"][short], b["value"][short])
    assert b["violations"].sum() == 0 and b["value"].sum() > 0


def _files_but(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != name)


def test_an_earlier_export_is_replaced_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "device"
    export(runs / "search", out, scenario="lite")
    told = run_well("export", runs / "crban", "--out", out, "--scenario", "lite", "--places", 4)
    assert "crban for onnxruntime, 3 graphs, 0." in told
    assert load(out).places == 4
    assert [path.name for path in tmp_path.iterdir()] == ["device"] and len(list(out.iterdir())) == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(InputError, match="mine holds something other than an exported model"):
        export(runs / "crban", tmp_path / "mine", scenario="lite")
    assert (tmp_path / "mine" / "letter").exists()


def test_the_same_run_gives_the_same_bytes(runs: Path, device: Path, tmp_path: Path) -> None:
    export(runs / "search", tmp_path / "again", scenario="lite")
    for file in device.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_device_needs_no_torch(device: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from edgerec_gym.device.session import DeviceSession, load\n"
        f"model = load({str(device)!r})\n"
        "observation = {key: np.full(shape, 0.3) for key, shape in model.sizes.items()}\n"
        "print(len(DeviceSession(model).rerank(observation)))\n"
        "print([name for name in ('torch', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10", "[]"]


@pytest.mark.parametrize(
    ("agent", "options", "message"),
    [
        (
            "evaluator",
            ["--scenario", "lite"],
            "holds the agent 'evaluator', which cannot be exported to a device: it judges lists but does not "
            "play; export a sequence-search based on it; allowed: pointer-ppo",
        ),
        (
            "crban",
            ["--scenario", "default"],
            "was trained with pool [20, 20]; this environment has [100, 20]",
        ),
        ("search", ["--scenario", "default"], "was trained with"),
        ("crban", ["--scenario", "lite", "--places", "2000"], "places = 2000 is out of range"),
        (
            "crban",
            ["--scenario", "lite", "--engine", "abacus"],
            "'abacus' is not one of 'onnxruntime', 'mnn'",
        ),
        ("nothing", [], "holds no trained policy"),
    ],
)
def test_what_cannot_be_exported(
    runs: Path, tmp_path: Path, agent: str, options: list[str], message: str
) -> None:
    fails_with(message, "export", runs / agent, "--out", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_finite_is_not_exported(lite: Scenario, tmp_path: Path) -> None:
    network = build("crban", lite.config, RerankerConfig(hidden=8))
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan
    with pytest.raises(InputError, match=r"parameter 'perception\S+' is not finite"):
        export_network(network, tmp_path / "out", find_agent("crban"), "lite", lite.config)
    with pytest.raises(InputError, match="a DNN cannot be exported to a device"):
        export_network(
            build("dnn", lite.config, RerankerConfig(hidden=8)),
            tmp_path / "out",
            find_agent("evaluator"),
            "lite",
            lite.config,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil_it", "message"),
    [
        (lambda f: shutil.rmtree(f), "device.json does not exist"),
        (lambda f: (f / "device.json").write_text("{"), "device.json is not valid JSON"),
        (lambda f: change(f, kind="cake"), "does not describe a device model (kind is 'cake')"),
        (
            lambda f: change(f, schema_version=1),
            "has schema version 1; this version reads 2: write it again with `edgerec export RUN --out",
        ),
        (lambda f: change(f, places="ten"), "places must be a whole number, got 'ten'"),
        (lambda f: renamed(f, "cake.scores"), "names an unknown graph 'cake.scores'"),
        (lambda f: renamed(f, "../x"), "names an unknown graph '../x'"),
        (lambda f: renamed(f, "evaluator.scores"), "names an unknown graph 'evaluator.scores'"),
        (lambda f: change(f, graphs={}), "names no graphs"),
        (
            lambda f: of_graph(f, "evaluator.judge", engine="abacus"),
            "engine is 'abacus'; allowed: onnxruntime, mnn",
        ),
        (lambda f: of_graph(f, "evaluator.judge", bits=3), "graphs['evaluator.judge'].bits is wrong"),
        (lambda f: of_graph(f, "evaluator.judge", tolerance=2.0), "tolerance"),
        (
            lambda f: of_graph(f, "evaluator.judge", sha256="0" * 64),
            "evaluator.judge.onnx is corrupted: its content differs",
        ),
        (
            lambda f: of_graph(f, "evaluator.judge", inputs={}),
            "evaluator.judge.onnx: input 'base' is float32 ['n', 2], not missing",
        ),
        (
            lambda f: change(f, features="0" * 64),
            "features is not the digest of what a model for this config",
        ),
        (lambda f: change(f, protocol=[7, 9]), "protocol is 7 to 9; this version speaks 1 to 2"),
        (lambda f: cut(f / "golden.safetensors"), "golden.safetensors is corrupted: it has"),
        (lambda f: flip(f / "golden.safetensors"), "golden.safetensors is corrupted: its content differs"),
        (
            lambda f: shift_golden(f, "evaluator.judge/0/out/value"),
            "evaluator.judge.onnx differs from its golden output 'value' by",
        ),
        (
            rename_golden,
            "golden.safetensors: tensor 'evaluator.judge/7/out/value' is no golden input or output",
        ),
        (lambda f: cut(f / "evaluator.judge.onnx"), "evaluator.judge.onnx is corrupted: it has"),
        (
            lambda f: flip(f / "evaluator.judge.onnx"),
            "evaluator.judge.onnx is corrupted: its content differs",
        ),
        (lambda f: change(f, beams={"beams": 0}), "BeamConfig.beams = 0 is out of range"),
        (lambda f: (f / "evaluator.judge.onnx").unlink(), "evaluator.judge.onnx does not exist"),
        (lambda f: (f / "evaluator.judge.onnx").write_text("x"), "evaluator.judge.onnx is corrupted"),
        (
            lambda f: spoil(f, "evaluator.exposures.onnx"),
            "evaluator.exposures.onnx gives values that are not",
        ),
        (
            lambda f: spoil(f, "evaluator.encode.onnx"),
            "evaluator.encode.onnx gives values that are not finite",
        ),
        (lambda f: spoil(f, "evaluator.judge.onnx"), "evaluator.judge.onnx gives values that are not finite"),
        (lambda f: spoil(f, "generator.step.onnx"), "generator.step.onnx gives values that are not finite"),
        (
            lambda f: change(
                f,
                config=(other := Scenario.load("lite").config.replace(profile_size=7)).to_dict(),
                features=feature_digest(other),
            ),
            "input 'user' has the shape [1, 20]; the sizes in device.json need [1, 23]",
        ),
    ],
)
def test_a_folder_that_is_wrong_says_so(device_copy: Path, spoil_it: Any, message: str) -> None:
    spoil_it(device_copy)
    with pytest.raises(InputError, match=re.escape(message)):
        load(device_copy)


def test_a_missing_graph_is_noticed(device_copy: Path) -> None:
    recorded = json.loads((device_copy / "device.json").read_text())["graphs"]
    for name in ("evaluator.judge", "generator.exposures"):
        change(device_copy, graphs={key: value for key, value in recorded.items() if key != name})
        with pytest.raises(InputError, match=f"lacks the graph {name}"):
            load(device_copy)


def test_a_digest_that_is_trusted(device: Path) -> None:
    assert load(device, digest_of(device)).digest == digest_of(device)
    with pytest.raises(InputError, match=f"has the digest {digest_of(device)}; expected 00"):
        load(device, "00")


def test_an_environment_that_does_not_fit(device: Path, lite: Scenario, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scenario 'lite' with pool \[20, 20\]; this environment has"):
        find_policy(str(device), "EdgeFeedSlate-v0", "default", "synthetic")
    with pytest.raises(InputError, match="re-ranks; it plays the tracks joint, rerank, slate, not 'mix'"):
        find_policy(str(device), "EdgeFeedMix-v0", lite, "synthetic")
    export(runs / "pointer", tmp_path / "short", scenario="lite", places=3)
    with pytest.raises(InputError, match="lists of 3 cards; this environment asks for 10"):
        find_policy(str(tmp_path / "short"), "EdgeFeedSlate-v0", lite, "synthetic")


def observed(**changes: Any) -> dict[str, Any]:
    observation = {key: values[0].numpy() for key, values in moments(1).items()}
    return {key: value for key, value in (observation | changes).items() if value is not None}


@pytest.mark.parametrize("agent", ["crban", "pointer", "search"])
def test_a_pool_that_runs_dry(runs: Path, tmp_path: Path, agent: str) -> None:
    export(runs / agent, tmp_path / "device", scenario="lite")
    session = DeviceSession(load(tmp_path / "device"))
    pool = observed()["pool"]
    for left in (3, 1, 0):
        few = np.zeros_like(pool)
        few[5 : 5 + left] = np.random.default_rng(0).uniform(0.1, 0.9, (left, pool.shape[1]))
        found = session.rerank(observed(pool=few))
        assert sorted(found[:left].tolist()) == list(range(5, 5 + left))
        assert (found[left:] == -1).all() and len(found) == 10
        if agent == "crban":
            assert ((session.scores(observed(pool=few)) > -1e9) == few.any(1)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": np.full(20, np.nan)}, r"user is nan at \[0\]; it must be finite"),
        ({"context": np.full(17, np.inf)}, r"context is inf at \[0\]"),
        ({"pool": np.zeros((100, 20))}, r"pool has the shape \(100, 20\); this model reads \(20, 20\)"),
        ({"screen": None}, "the observation lacks the key 'screen'"),
    ],
)
def test_a_bad_observation(device: Path, changes: dict[str, Any], message: str) -> None:
    session = DeviceSession(load(device))
    with pytest.raises(InputError, match=message):
        session.rerank(observed(**changes))


def test_bad_events_calls_and_states(device: Path, runs: Path, tmp_path: Path) -> None:
    session = DeviceSession(load(device))
    width = session.model.sizes["exposures"][1]
    for name, row, message in (
        ("exposures", np.full(width, np.nan), "exposures is nan at"),
        ("exposures", np.zeros(width), "a row of zeros is padding"),
        ("exposures", np.zeros(3), r"exposures has the shape \(3,\)"),
        ("visits", np.zeros(3), "unknown sequence 'visits'; allowed: exposures, page_views"),
    ):
        with pytest.raises(InputError, match=message):
            session.append(name, row)
    assert session.count == {"exposures": 0, "page_views": 0}
    for places in (0, 11):
        with pytest.raises(InputError, match=f"places = {places} is out of range; this model allows 1 to 10"):
            session.rerank(observed(), places)
    with pytest.raises(InputError, match="gives no scores; use rerank"):
        session.scores(observed())
    with pytest.raises(InputError, match="state does not exist"):
        session.restore(tmp_path / "state")
    (tmp_path / "state").write_text("x")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        session.restore(tmp_path / "state")
    session.save(tmp_path / "state")
    export(runs / "crban", tmp_path / "crban", scenario="lite")
    other = DeviceSession(load(tmp_path / "crban"))
    with pytest.raises(InputError, match="does not search; use rerank"):
        other.search(observed())
    with pytest.raises(
        InputError, match=r"tensor 'crban.exposures.count' does not fit; another model saved it"
    ):
        other.restore(tmp_path / "state")
    session.kept["generator", "exposures"].keys[0] = np.nan
    session.save(tmp_path / "state")
    with pytest.raises(InputError, match=r"'generator.exposures.keys' holds values that are not finite"):
        DeviceSession(session.model).restore(tmp_path / "state")


def test_a_graph_checks_what_goes_in_and_out(device: Path) -> None:
    model = load(device)
    graph = model.graphs["evaluator"]["exposures"]
    with pytest.raises(InputError, match=r"exposures\.onnx has an input '\w+'; allowed: 'something'"):
        graph({"something": np.zeros(1, np.float32)})
    feeds = {
        name: np.zeros([int(size) for size in shape], np.float32) for name, shape in graph.inputs.items()
    }
    with pytest.raises(InputError, match=r"exposures\.onnx has no output 'other'; it has"):
        graph(feeds)["other"]
    for wrong in (np.zeros((1, 3), np.float32), np.zeros(3, np.float32), feeds["row"].astype(np.float64)):
        with pytest.raises(InputError, match=rf"input 'row' is {wrong.dtype} .*; allowed: float32 \[1, "):
            graph(feeds | {"row": wrong})
    judge = model.graphs["evaluator"]["judge"]
    hidden = int(judge.inputs["codes"][1])
    feeds = {
        "codes": np.zeros((4, hidden), np.float32),
        "base": np.zeros((5, 2), np.float32),
        "start": np.zeros((1, 1, hidden), np.float32),
        "lists": np.zeros((1, 3), np.int64),
    }
    with pytest.raises(InputError, match=r"input 'base' is float32 \[5, 2\]; allowed: float32 \['n', 2\]"):
        judge(feeds)
