"""Engines: MNN answers as ONNX Runtime does, and converting for it touches neither network nor programs."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails_with
from small_devices import crban, evaluator, exported, followed, one, pointer, search

from edgerec_gym.agents.export import mnn_convert, mnn_process
from edgerec_gym.agents.export.export import make_parts
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.device import session as device_session
from edgerec_gym.device import trial
from edgerec_gym.device.engines import engine as engines
from edgerec_gym.device.engines.engine import ENGINES, Arrays
from edgerec_gym.device.engines.onnx_runtime import ports
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.graph import DeviceGraph
from edgerec_gym.device.session import load
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.onnx_graph import OnnxGraph
from edgerec_gym.scenario import Scenario
from tests.small_pools import moments

pytest.importorskip("MNN", exc_type=ImportError)

AGENTS: dict[str, Callable[[], Any]] = {
    "crban": crban,
    "crban, two layers": lambda: crban(layers=2, match=1),
    "crban, no behaviour": lambda: crban(exposures=0, page_views=0),
    "pointer": lambda: pointer(match=1),
    "sequence-search": lambda: search(match=1),
    "sequence-search, no lookahead": lambda: search_without_lookahead(),
}


def search_without_lookahead() -> SequenceSearch:
    config = Scenario.load("lite").config.replace(lookahead=0)
    return SequenceSearch(config, evaluator(config), None, SearchConfig()).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, DeviceModel]]:
    """Each agent for each engine."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for agent, make in AGENTS.items():
        network = make()
        found[agent] = {
            engine: exported(network, folder / f"{agent} {engine}", config=network.config, engine=engine)
            for engine in ENGINES
        }
    return found


def drawn(graph: DeviceGraph, rng: np.random.Generator, places: int) -> Arrays:
    """Inputs of a graph, with sizes that are drawn, too."""
    sizes: dict[int | str, int] = {
        size: int(rng.integers(1, 19)) for shape in graph.inputs.values() for size in shape if size != 1
    }
    sizes |= {size: size for shape in graph.inputs.values() for size in shape if isinstance(size, int)}
    cards = sizes.get("n", 1)
    if "l" in sizes:
        sizes["l"] = min(sizes["l"], cards, places)
    whole: dict[str, Any] = {
        "place": lambda shape: rng.integers(0, places, shape),
        "rows": lambda shape: rng.permutation(20)[: shape[0]],
        "lists": lambda shape: np.stack([rng.permutation(cards)[: shape[1]] for _ in range(shape[0])]),
    }
    shapes = {name: [sizes[size] for size in shape] for name, shape in graph.inputs.items()}
    return {
        name: whole[name](shape) if name in whole else rng.uniform(0.02, 0.98, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("agent", AGENTS)
def test_engines_agree_on_every_graph(models: dict[str, dict[str, DeviceModel]], agent: str) -> None:
    rng = np.random.default_rng(0)
    reference, other = models[agent].values()
    for network, graphs in reference.graphs.items():
        for name, graph in graphs.items():
            answers = []
            for _ in range(12):
                inputs = drawn(graph, rng, reference.places)
                expected, found = graph(inputs), other.graphs[network][name](inputs)
                assert found.keys() == expected.keys() == graph.outputs.keys()
                for key, values in expected.items():
                    assert found[key].dtype == values.dtype and found[key].shape == values.shape
                    np.testing.assert_allclose(
                        found[key], values, rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}"
                    )
                answers.append([float(values.mean()) for values in expected.values()])
            assert np.ptp(answers, axis=0).max() > 1e-3, "the inputs matter"


@pytest.mark.parametrize("agent", ["crban", "pointer", "sequence-search"])
def test_engines_write_the_same_lists(models: dict[str, dict[str, DeviceModel]], agent: str) -> None:
    for slots in (0, 12):
        observation = moments(4, slots=slots)
        for k in range(4):
            alone = one(observation, k)
            reference, other = (
                followed(model, alone).rerank(alone).tolist() for model in models[agent].values()
            )
            assert reference == other


def test_an_answer_is_not_overwritten_by_the_next(models: dict[str, dict[str, DeviceModel]]) -> None:
    graph = models["crban"]["mnn"].graphs["crban"]["exposures"]
    rng = np.random.default_rng(0)
    first = graph(drawn(graph, rng, 6))
    kept = {name: values.copy() for name, values in first.items()}
    graph(drawn(graph, rng, 6))
    for name, values in first.items():
        assert np.array_equal(values, kept[name])


def test_the_graphs_hold_nothing_that_mnn_gets_wrong() -> None:
    """Sums of several, loops, and GRU nodes where an event is one step."""
    import onnx

    network = search(match=1)
    graphs = make_parts(find_agent("sequence-search"), network, 6).by_name()
    graphs |= make_parts(find_agent("crban"), crban(), 6).by_name()
    for name, content in graphs.items():
        nodes = onnx.load_from_string(content).graph.node
        used = {node.op_type for node in nodes}
        assert not used & {"Sum", "Loop", "Scan", "If"}, name
        assert ("GRU" in used) == (name in ("crban.scores", "evaluator.judge")), name
        for node in nodes:
            if node.op_type == "GRU":
                assert {a.name: a.i for a in node.attribute}["linear_before_reset"] == 1


def test_a_wrong_conversion_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden test sees that MNN answers otherwise: here to a Sum of three, which it gets wrong."""

    def summed(self: OnnxGraph, *terms: str, name: str | None = None) -> str:
        return self("Sum", *terms, name=name)

    monkeypatch.setattr(OnnxGraph, "add", summed)
    monkeypatch.setattr("edgerec_gym.onnx_check.OPERATORS", {"Sum", *_operators()})
    with pytest.raises(InputError, match=r"crban\.scores\.mnn differs from its golden output 'scores' by"):
        exported(crban(), tmp_path, engine="mnn")
    assert not (tmp_path / "device").exists()


def _operators() -> frozenset[str]:
    from edgerec_gym.onnx_check import OPERATORS

    return OPERATORS


# --- conversion -----------------------------------------------------------------------------------------


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in the process of a conversion."""
    file = Path(mnn_process.__file__)
    whole = (
        f"import sys; sys.path.insert(0, {str(file.parent)!r}); import mnn_process; mnn_process.forbid()\n"
    )
    return subprocess.run([sys.executable, "-c", whole + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run([sys.executable, '-m', 'pip', '--version'])",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import os; os.execv('/bin/true', ['true'])",
    ],
)
def test_python_can_neither_connect_nor_run_programs(code: str) -> None:
    done = guarded(f"{code}\nprint('done')")
    assert done.returncode == 3 and "is forbidden" in done.stderr and "done" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_nor_can_what_is_written_in_c() -> None:
    done = guarded("import ctypes; ctypes.CDLL(None).socket(2, 1, 0); print('done')")
    assert done.returncode < 0 and "done" not in done.stdout
    done = guarded("import ctypes; print(ctypes.CDLL(None).system(b'echo hello'))")
    assert done.returncode == 0 and "hello" not in done.stdout, "the program is ended before it begins"
    assert ctypes.CDLL(None).socket(2, 1, 0) >= 0, "elsewhere sockets open"


def test_the_conversion_imports_no_script_of_mnn() -> None:
    """Its scripts install packages and phone home when they are imported or run."""
    done = guarded("import _tools, json; print('\\n' + json.dumps(sorted(sys.modules)))")
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "_tools" in loaded and not [name for name in loaded if name.partition(".")[0] in ("MNN", "aliyun")]
    sources = Path(mnn_convert.__file__).parents[1].rglob("*.py")
    package = Path(device_session.__file__).parents[1].rglob("*.py")
    for file in (*sources, *package):
        assert "MNN.tools" not in file.read_text(encoding="utf-8"), file


def test_a_conversion_that_fails_says_so() -> None:
    with pytest.raises(InputError, match=r"some\.graph cannot be converted for MNN: "):
        mnn_convert.to_mnn(b"nonsense", "some.graph")


def test_the_same_graph_gives_the_same_bytes() -> None:
    graph = make_parts(find_agent("crban"), crban(), 6).by_name()["crban.scores"]
    assert mnn_convert.to_mnn(graph, "x") == mnn_convert.to_mnn(graph, "x")
    assert ports(graph)[0]["candidates"].shape == ["n", 20]


# --- what goes wrong ------------------------------------------------------------------------------------


def test_an_engine_that_is_missing(
    models: dict[str, dict[str, DeviceModel]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"engine 'mnn' needs an extra: pip install 'edgerec_gym\[mnn\]'"
    ):
        load(models["crban"]["mnn"].folder)
    with pytest.raises(MissingExtraError, match=r"edgerec_gym\[mnn\]"):
        exported(crban(), tmp_path, engine="mnn")
    fails_with(
        "the engine 'mnn' needs an extra",
        *("evaluate", models["crban"]["mnn"].folder, "--id", "EdgeFeedRerank-v0", "--scenario", "lite"),
    )


def test_an_engine_that_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown engine 'abacus'; allowed: onnxruntime, mnn"):
        exported(crban(), tmp_path, engine="abacus")


@pytest.fixture
def copy(models: dict[str, dict[str, DeviceModel]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["crban"]["mnn"].folder, tmp_path / "copy"))


def test_an_engine_that_ends_its_process(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is tried out in another process: here one that ends with a signal, or never."""
    monkeypatch.setattr(device_session, "_tried", set())
    for code, message in (
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            r"it ends the process that tries \(SIGSEGV\)",
        ),
        ("import sys; sys.exit(7)", r"it ends the process that tries \(code 7\)"),
        ("import time; time.sleep(60)", "no answer within 0 s"),
    ):
        monkeypatch.setattr(trial, "COMMAND", ("-c", code))
        monkeypatch.setattr(trial, "MOST_SECONDS", 0.1 if "sleep" in code else 60.0)
        with pytest.raises(InputError, match=rf"copy cannot be loaded: {message}"):
            load(copy)


def test_a_model_is_tried_out_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    monkeypatch.setattr(device_session, "_tried", set())
    monkeypatch.setattr(trial, "try_out", lambda folder: tried.append(folder))
    for _ in range(2):
        load(copy)
    assert tried == [copy]


def test_loading_and_running_print_nothing(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "from edgerec_gym.device.session import load\n"
        f"model = load({str(copy)!r})\n"
        "import sys; assert not {'torch', 'onnx', '_tools'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr() == ("", "")
