"""Arrays and graphs from files are checked before a kernel or a session sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from edgerec_gym import memory
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.errors import InputError
from edgerec_gym.onnx_check import read_graph
from edgerec_gym.parquet import check_parquet
from edgerec_gym.scenario import SHIPPED_FOLDER, Scenario
from edgerec_gym.tensors import read_tensors
from edgerec_gym.users import ground_truth
from edgerec_gym.users.learned import Simulator
from edgerec_gym.vector_env import EdgeFeedVectorEnv

LITE = SHIPPED_FOLDER / "lite"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("starts.hour", np.full(2000, 24, np.int32), r"'starts.hour' must lie in 0..23"),
        ("starts.hour", np.full(2000, -1, np.int32), r"'starts.hour' must lie in 0..23"),
        ("starts.hour", np.zeros(1999, np.int32), "'starts.features' does not fit"),
        ("starts.hour", np.zeros(2000, np.int64), "'starts.hour' does not fit: int64"),
        ("starts.features", np.zeros((2000, 19), np.float32), "'member0.query_by_user' does not fit"),
        ("starts.features", np.full((2000, 20), 7, np.float32), "must lie in -1..1"),
        ("starts.features", np.full((2000, 20), np.nan, np.float32), "is not finite"),
        ("member0.card_scale", np.zeros((5, 24), np.float32), "has shape"),
        ("member2.decay", np.zeros(8, np.float64), "is float64; allowed: float32"),
        ("member9.decay", np.zeros(8, np.float32), "lacks the tensor 'member5.card_scale'"),
        ("member4.decay", None, r"lacks the tensor"),
    ],
)
def test_weights_of_learned_users(name: str, value: Any, message: str, tmp_path: Path) -> None:
    tensors = load_file(LITE / "simulator.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        Simulator(LITE / "simulator.onnx", tmp_path / "w.safetensors")


def test_weights_of_another_shape_in_every_member(tmp_path: Path) -> None:
    for name, shape in (
        ("pair", (4, 24)),
        ("context", (7, 10)),
        ("strength", (8, 33)),
        ("gates", (162, 319)),
    ):
        tensors = load_file(LITE / "simulator.safetensors")
        for member in range(5):
            tensors[f"member{member}.{name}"] = np.zeros(shape, np.float32)
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=r"does not fit|cannot be loaded|does not run"):
            Simulator(LITE / "simulator.onnx", tmp_path / "w.safetensors")


def changed_graph(path: Path, change: Any) -> Path:
    model = onnx.load(LITE / "simulator.onnx")
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def put_apart(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    weight.ClearField("raw_data")


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "trips"))
    model.graph.node.append(helper.make_node("Loop", ["trips", ""], ["out"], body=body))


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([60_000, 60_000]), "shape"))
    model.graph.node.append(helper.make_node("Expand", ["hidden", "shape"], ["out"]))


def renamed(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "new_memory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_apart, "its weights lie in another file"),
        (loop, "it uses the operator 'Loop'; allowed: Abs"),
        (huge, r"it asks for an array of the shape \[60000, 60000\]"),
        (lambda m: setattr(m, "ir_version", 99), "its IR version is 99; allowed: 7 to 13"),
        (lambda m: setattr(m.opset_import[0], "version", 5), "its opset is 5; allowed: 13 to"),
        (
            lambda m: setattr(m.graph.node[0], "op_type", "RandomNormal"),
            "it uses the operator 'RandomNormal'",
        ),
        (lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"), "an operator of 'com.microsoft'"),
        (lambda m: m.functions.add(), "it holds functions or training"),
        (lambda m: m.graph.sparse_initializer.add(), "it holds sparse weights"),
        (renamed, "cannot be loaded|is not a step"),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 7),
            "loaded|run|step",
        ),
    ],
)
def test_graphs_that_do_what_they_may_not(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        Simulator(changed_graph(tmp_path / "g.onnx", change), LITE / "simulator.safetensors")
    assert "\n" not in str(error.value)


def test_a_corrupted_graph_never_raises_anything_else(tmp_path: Path) -> None:
    content = (LITE / "simulator.onnx").read_bytes()
    rng, file = np.random.default_rng(0), tmp_path / "g.onnx"
    for _ in range(100):
        broken = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(max(1, min(len(broken), 4000)), size=3):
            if at < len(broken):
                broken[at] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        try:
            read_graph(file)
        except InputError as error:
            assert "\n" not in str(error)


def test_safetensors_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32)}, file)
    assert read_tensors(file, {"a": (np.float32, (None, 3))})["a"].shape == (2, 3)
    for wanted, message in (
        ({"a": (np.float32, (2, 4))}, r"'a' does not fit: float32 \[2, 3\], not float32 \[2, 4\]"),
        ({"a": (np.int32, (2, 3))}, "not int32"),
        ({"b": (np.int32, (2, 3))}, "lacks the tensor 'b'"),
        ({}, "holds the unknown 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            read_tensors(file, wanted)
    head = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    with pytest.raises(InputError, match="'a' is BF16; allowed: F32"):
        read_tensors(file)
    for content in (b"", b"\xff" * 8, b"\xff" * 100, (2**40).to_bytes(8, "little")):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is not a readable safetensors file"):
            read_tensors(file)


def test_a_parquet_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": np.zeros(5_000_000, np.int64)}), file, compression="zstd")
    assert file.stat().st_size < 100_000
    monkeypatch.setattr(memory, "available", lambda: 7 * 10**7)
    with pytest.raises(
        InputError, match=r"reading .*bomb.parquet needs 80.0 MB of memory; 70.0 MB are available"
    ):
        check_parquet(file)
    with pytest.raises(InputError, match="has 5,000,000 rows; allowed: up to 10"):
        check_parquet(file, most_rows=10)
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    assert check_parquet(file).num_rows == 5_000_000


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("card_type", pl.lit(2**32, pl.Int64), "row 0: card_type is 4294967296; allowed"),
        ("category", pl.lit(2**40, pl.Int64), "row 0: category is"),
        ("category", pl.lit(0.5), "column 'category' must hold whole numbers, not Float64"),
        ("e3", pl.lit(float("nan")), "embeddings of item row 0 is not finite"),
        ("base_logit", pl.lit(99.0), "base_logit must lie in -20..20"),
        ("e3", pl.lit("x"), "column 'e3' must be numeric"),
    ],
)
def test_catalogues_that_are_wrong(column: str, value: pl.Expr, message: str, tmp_path: Path) -> None:
    pl.read_parquet(LITE / "catalog.parquet").with_columns(value.alias(column)).write_parquet(
        tmp_path / "c.parquet"
    )
    with pytest.raises(InputError, match=message):
        Catalog.load(tmp_path / "c.parquet", 16)


def test_a_catalogue_of_another_world(tmp_path: Path) -> None:
    shutil.copytree(LITE, tmp_path / "s", ignore=shutil.ignore_patterns("agents"))
    items = pl.read_parquet(LITE / "catalog.parquet")
    many = pl.concat([items] * 40).sort("card_type", "category", maintain_order=True)
    many.write_parquet(tmp_path / "s" / "catalog.parquet")
    with pytest.raises(InputError, match="synthetic.n_items = 2000 differs from the 80000 items"):
        Scenario.load(tmp_path / "s")
    lite, other = Scenario.load("lite"), ground_truth("lite", n_items=3000)
    with pytest.raises(InputError, match="differs from the 3000 items"):
        Scenario("mixed", lite.config, other.catalog, synthetic=lite.synthetic)


@pytest.mark.parametrize("users", ["synthetic", "learned"])
def test_more_environments_than_memory(users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 4 * 10**9)
    with pytest.raises(InputError, match=r"num_envs = 10000000 needs .* GB of memory; 4.0 GB are available"):
        EdgeFeedVectorEnv(10**7, scenario="lite", users=users)


def test_more_users_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    with pytest.raises(
        InputError, match=r"n_users = 10000000 and n_items = 2000 needs .* GB of memory; 1.0 GB"
    ):
        ground_truth("lite", n_users=10**7)


def test_available_memory_is_a_number() -> None:
    assert memory.available() > 10**7
    memory.check(10, "this")
