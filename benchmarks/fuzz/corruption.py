"""Corrupt a file in one of many ways: its bytes, its place in the folder, or its content by its format."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.numpy import save_file

Rng = np.random.Generator
RAW = "\0raw\0"  # marks a text that replaces a value in JSON as it stands
MOST_BYTES = 4  # changed at once

# What a value becomes, as text that JSON's reader meets.
VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "a text": '"text"',
    "an empty text": '""',
    "a number in a text": '"1"',
    "a list": "[1, 2]",
    "an empty list": "[]",
    "an empty object": "{}",
    "an object": '{"a": 1}',
    "a list with null": "[null]",
    "a list of lists": "[[1], [2]]",
    "0": "0",
    "-1": "-1",
    "1.5": "1.5",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "1e308": "1e308",
    "2^31": "2147483648",
    "2^63": "9223372036854775808",
    "10^7": "10000000",
    "400 digits": "1" + "0" * 400,
    "5,000 digits": "1" + "0" * 5000,
    "400 digits after the point": "0." + "3" * 400,
    "100 brackets": "[" * 100 + "]" * 100,
    "100,000 brackets": "[" * 100_000 + "]" * 100_000,
    "5,000 objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "half a surrogate": '"\\ud800"',
    "a path": '"../../../../etc/passwd"',
    "a million letters": '"' + "x" * 1_000_000 + '"',
    "markup": '"<script>alert(1)</script>"',
    "a line break": '"a\\nb"',
}
TOML_VALUES = {k: v for k, v in VALUES.items() if k not in ("null", "half a surrogate")} | {
    "NaN": "nan",
    "Infinity": "inf",
    "-Infinity": "-inf",
    "an object": "{a = 1}",
    "5,000 objects": "{a=" * 5000 + "1" + "}" * 5000,
}


def corrupt(file: Path, form: str, rng: Rng, others: list[Path]) -> str:
    """Corrupt a file in place; returns in words how.

    Args:
        file: a file, or a link to one that must stay as it is.
        form: "json", "toml", "csv", "parquet", "safetensors", "onnx" or "mnn".
        rng: decides everything.
        others: files that may be put in its place.
    """
    content = file.read_bytes()
    file.unlink()
    draw = rng.random()
    if draw < 0.08:
        return _misplace(file, content, rng, others)
    if draw < 0.3:
        name = _pick(rng, list(BYTES))
        file.write_bytes(BYTES[name](content, rng))
        return name
    return FORMS[form](file, content, rng)


def _pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# --- the file and its bytes -----------------------------------------------------------------------------


def _misplace(file: Path, content: bytes, rng: Rng, others: list[Path]) -> str:
    how = _pick(rng, ["missing", "a folder", "a fifo", "a link to itself", "swapped", "swapped", "a device"])
    if how == "a folder":
        file.mkdir()
    elif how == "a fifo":
        os.mkfifo(file)
    elif how == "a link to itself":
        file.symlink_to(file.name)
    elif how == "a device":
        file.symlink_to("/dev/zero")
    elif how == "swapped":
        other = _pick(rng, others)
        shutil.copyfile(other, file)
        return "another file in its place"
    return how if how == "missing" else f"{how} in its place"


def _flip(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, MOST_BYTES + 1))):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flip_early(content: bytes, rng: Rng) -> bytes:
    """Headers and footers decide more than what lies between."""
    at = int(rng.integers(min(64, len(content))))
    at = at if rng.random() < 0.5 else len(content) - 1 - at
    return content[:at] + rng.bytes(1) + content[at + 1 :]


def _insert(content: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[:at] + rng.bytes(int(rng.integers(1, 2 * MOST_BYTES))) + content[at:]


def _cut_out(content: bytes, rng: Rng) -> bytes:
    at, n = int(rng.integers(len(content))), int(rng.integers(1, 1 + max(1, len(content) // 8)))
    return content[:at] + content[at + n :]


def _blank(content: bytes, rng: Rng) -> bytes:
    at, n = int(rng.integers(len(content))), int(rng.integers(1, 1 + max(1, len(content) // 8)))
    return content[:at] + bytes(min(n, len(content) - at)) + content[at + n :]


BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "truncated": lambda content, rng: content[: int(rng.integers(len(content)))],
    "bits flipped": _flip,
    "a byte near an end changed": _flip_early,
    "bytes inserted": _insert,
    "bytes removed": _cut_out,
    "bytes zeroed": _blank,
    "twice": lambda content, rng: content + content,
    "empty": lambda content, rng: b"",
    "zeros": lambda content, rng: bytes(len(content)),
    "noise": lambda content, rng: rng.bytes(min(len(content), 4096)),
    "a byte order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, rng: content.decode("latin-1").encode("utf-16"),
}


# --- JSON, TOML, CSV ------------------------------------------------------------------------------------


def _json(file: Path, content: bytes, rng: Rng) -> str:
    value = json.loads(content)
    parent, key = _walk(value, rng)
    how = _pick(rng, ["value", "value", "value", "removed", "renamed", "added", "repeated", "scaled"])
    told, is_list = f"{'an entry' if isinstance(parent, list) else key!r}", isinstance(parent, list)
    raws: list[str] = []

    def raw(text: str) -> str:
        raws.append(text)
        return f"{RAW}{len(raws) - 1}{RAW}"

    if how == "removed":
        del parent[key]
    elif how == "renamed" and not is_list:
        parent[f"{key}x"] = parent.pop(key)
    elif how == "added" and not is_list:
        parent["unknown"] = 1
    elif how == "repeated" and is_list:
        parent.extend(list(parent))
    elif how == "scaled" and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = _pick(rng, [parent[key] * 10, -parent[key], parent[key] + 1, parent[key] / 3])
    else:
        how = _pick(rng, list(VALUES))
        parent[key] = raw(VALUES[how])
    text = json.dumps(value)
    for k, replaced in enumerate(raws):
        text = text.replace(json.dumps(f"{RAW}{k}{RAW}"), replaced)
    file.write_text(text)
    return f"{told}: {how}" if how in VALUES else f"{told} {how}"


def _walk(value: Any, rng: Rng) -> tuple[Any, Any]:
    """A random place: the container and the key."""
    parent, key = value, _key(value, rng)
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.75:
        parent = parent[key]
        key = _key(parent, rng)
    return parent, key


def _key(container: Any, rng: Rng) -> Any:
    return _pick(rng, list(container) if isinstance(container, dict) else range(len(container)))


def _toml(file: Path, content: bytes, rng: Rng) -> str:
    lines = content.decode().splitlines()
    at = _pick(rng, [k for k, line in enumerate(lines) if "=" in line])
    name = lines[at].split("=")[0].strip()
    how = _pick(rng, ["removed", "renamed", "doubled", "value", "value", "value", "value"])
    if how == "removed":
        del lines[at]
    elif how == "renamed":
        lines[at] = "x" + lines[at]
    elif how == "doubled":
        lines.insert(at, lines[at])
    else:
        how = _pick(rng, list(TOML_VALUES))
        lines[at] = f"{name} = {TOML_VALUES[how]}"
    file.write_text("\n".join(lines) + "\n")
    return f"{name!r}: {how}"


def _csv(file: Path, content: bytes, rng: Rng) -> str:
    lines = content.decode().splitlines()
    row = int(rng.integers(0 if rng.random() < 0.2 else 1, len(lines)))
    cells = lines[row].split(",")
    column = int(rng.integers(len(cells)))
    how = _pick(rng, ["cell", "cell", "cell", "cell removed", "cell added", "row removed", "row doubled"])
    if how == "cell removed":
        del cells[column]
    elif how == "cell added":
        cells.insert(column, "1")
    elif how == "cell":
        values = ["", "x", "-1", "1e400", "NaN", "inf", "9" * 400, '"', '"a,b"', "1.5", "\0", "ü", "2" * 20]
        how = _pick(rng, values)
        cells[column] = how
        how = f"cell {how[:20]!r}"
    lines[row] = ",".join(cells)
    if how == "row removed":
        del lines[row]
    elif how == "row doubled":
        lines.insert(row, lines[row])
    file.write_text("\n".join(lines) + "\n")
    return f"{'header' if row == 0 else 'row'}: {how}"


# --- Parquet --------------------------------------------------------------------------------------------

TYPES = (
    pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(),
    pa.string(), pa.large_string(), pa.timestamp("us"), pa.date32(), pa.null(), pa.list_(pa.float32()),
    pa.decimal128(20, 3), pa.dictionary(pa.int32(), pa.string()), pa.binary(),
)  # fmt: skip
NUMBERS = (np.nan, np.inf, -np.inf, -1, 0, 1e308, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 0.5, 1e9)


def _parquet(file: Path, content: bytes, rng: Rng) -> str:
    table = pq.read_table(pa.BufferReader(content))
    at = int(rng.integers(table.num_columns))
    name, column = table.column_names[at], table.column(at)
    how = _pick(rng, ["type", "type", "nulls", "numbers", "numbers", "columns", "rows"])
    if how == "type":
        kind = _pick(rng, TYPES)
        table = table.set_column(at, pa.field(name, kind), _as_type(column, kind))
        how = f"as {kind}"
    elif how == "nulls":
        cells = column.to_pylist()
        for row in rng.integers(len(cells), size=int(rng.integers(1, 4))):
            cells[row] = None
        table = table.set_column(at, pa.field(name, column.type), pa.array(cells, column.type))
        how = "empty cells"
    elif how == "numbers":
        number = _pick(rng, NUMBERS)
        table = table.set_column(at, pa.field(name, column.type), _with_number(column, number, rng))
        how = f"a cell {number}"
    elif how == "columns":
        how = _pick(rng, ["removed", "renamed", "doubled", "moved"])
        if how == "removed":
            table = table.remove_column(at)
        elif how == "renamed":
            table = table.rename_columns(
                [f"{n}x" if k == at else n for k, n in enumerate(table.column_names)]
            )
        elif how == "doubled":
            table = table.append_column(table.field(at), column)
        else:
            table = table.select([*table.column_names[:at], *table.column_names[at + 1 :], name])
    else:
        how = _pick(rng, ["no rows", "half the rows", "one row", "rows doubled", "rows reversed"])
        n, name = table.num_rows, "the table"
        table = {
            "no rows": lambda: table.slice(0, 0),
            "half the rows": lambda: table.slice(0, n // 2),
            "one row": lambda: table.slice(int(rng.integers(n)), 1),
            "rows doubled": lambda: pa.concat_tables([table, table]),
            "rows reversed": lambda: table.take(pa.array(np.arange(n)[::-1].copy())),
        }[how]()
    pq.write_table(table, file)
    return f"{name!r} {how}"


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The column in another type, or any values of that type where it cannot be cast."""
    try:
        return column.cast(kind, safe=False).combine_chunks()
    except (pa.ArrowException, NotImplementedError, TypeError):
        if pa.types.is_list(kind):
            return pa.array([[1.0]] * len(column), kind)
        return pa.nulls(len(column), kind)


def _with_number(column: pa.ChunkedArray, number: float, rng: Rng) -> pa.Array:
    """The column with one cell, or one number of a list, replaced as far as its type can hold it."""
    cells = column.to_pylist()
    row = int(rng.integers(len(cells)))
    old = cells[row]
    try:
        cells[row] = [number, *old[1:]] if isinstance(old, list) else type(old)(number)
        return pa.array(cells, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        cells[row] = old
        return pa.array(cells[::-1], column.type)


# --- safetensors ----------------------------------------------------------------------------------------

DTYPES = (np.float64, np.float16, np.float32, np.int64, np.int32, np.int8, np.uint8, np.bool_, np.uint64)


def _safetensors(file: Path, content: bytes, rng: Rng) -> str:
    temporary = file.with_name(".whole")
    temporary.write_bytes(content)
    with safe_open(temporary, "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    temporary.unlink()
    name = _pick(rng, sorted(tensors))
    values = tensors[name]
    how = _pick(rng, ["type", "shape", "shape", "number", "number", "names", "header"])
    if how == "header":
        return _safetensors_header(file, content, rng)
    if how == "type":
        dtype = _pick(rng, DTYPES)
        with np.errstate(all="ignore"):
            tensors[name] = values.astype(dtype)
        how = f"as {np.dtype(dtype)}"
    elif how == "shape":
        how = _pick(rng, ["transposed", "flattened", "a dimension more", "no rows", "a row less", "doubled"])
        tensors[name] = {
            "transposed": lambda: values.T,
            "flattened": lambda: values.reshape(-1),
            "a dimension more": lambda: values[None],
            "no rows": lambda: np.atleast_1d(values)[:0],
            "a row less": lambda: np.atleast_1d(values)[:-1],
            "doubled": lambda: np.concatenate([np.atleast_1d(values)] * 2),
        }[how]()
    elif how == "number":
        number = _pick(rng, NUMBERS)
        everywhere = rng.random() < 0.5
        changed = values.copy()
        with np.errstate(all="ignore"):
            number = np.asarray(number).astype(values.dtype)
        if everywhere or not changed.size:
            changed[...] = number
        else:
            changed.reshape(-1)[int(rng.integers(changed.size))] = number
        tensors[name] = changed
        how = f"{number} {'everywhere' if everywhere else 'once'}"
    else:
        how = _pick(rng, ["removed", "renamed", "added", "swapped"])
        if how == "removed":
            del tensors[name]
        elif how == "renamed":
            tensors[f"{name}x"] = tensors.pop(name)
        elif how == "added":
            tensors["unknown"] = np.zeros(3, np.float32)
        else:
            other = _pick(rng, sorted(tensors))
            tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, file, metadata)
    return f"{re.sub('[0-9]+', 'N', name)} {how}"


def _safetensors_header(file: Path, content: bytes, rng: Rng) -> str:
    """Change what the header claims; the data stay."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    entry = header[_pick(rng, sorted(set(header) - {"__metadata__"}))]
    how = _pick(rng, ["shape", "dtype", "offsets", "size"])
    if how == "shape":
        entry["shape"] = _pick(rng, [[], [10**12], [2**62, 4], [-1], [0], ["a"], None])
    elif how == "dtype":
        entry["dtype"] = _pick(rng, ["F16", "BF16", "F8_E4M3", "I64", "X", 1, None])
    elif how == "offsets":
        entry["data_offsets"] = _pick(rng, [[0, 4], [4, 0], [0, 10**15], [-4, 0], [0], None])
    text = json.dumps(header).encode()
    claimed = _pick(rng, [2**63 - 1, 10**9, 1, 0]) if how == "size" else len(text)
    file.write_bytes(claimed.to_bytes(8, "little") + text + data)
    return f"header: {how}"


# --- ONNX -----------------------------------------------------------------------------------------------


def _onnx(file: Path, content: bytes, rng: Rng) -> str:
    model = onnx.load_from_string(content)
    how, change = _pick(rng, ONNX)
    change(model, rng)
    file.write_bytes(model.SerializeToString())
    return how


def _resize(model: Any, rng: Rng) -> None:
    node = _pick(rng, [*model.graph.input, *model.graph.output])
    sizes = node.type.tensor_type.shape.dim
    if len(sizes):
        _pick(rng, sizes).dim_value = int(_pick(rng, [0, 1, 3, 7, 4096, 2**40]))
    else:
        sizes.add().dim_value = 3


def _add_dimension(model: Any, rng: Rng) -> None:
    _pick(rng, [*model.graph.input, *model.graph.output]).type.tensor_type.shape.dim.add().dim_value = 1


def _free_dimensions(model: Any, rng: Rng) -> None:
    for size in _pick(rng, [*model.graph.input, *model.graph.output]).type.tensor_type.shape.dim:
        size.dim_param = "any"


def _rename_end(model: Any, rng: Rng) -> None:
    node = _pick(rng, [*model.graph.input, *model.graph.output])
    old, new = node.name, f"{node.name}x"
    node.name = new
    for step in model.graph.node:
        step.input[:] = [new if name == old else name for name in step.input]
        step.output[:] = [new if name == old else name for name in step.output]


def _retype(model: Any, rng: Rng) -> None:
    node = _pick(rng, [*model.graph.input, *model.graph.output])
    node.type.tensor_type.elem_type = _pick(rng, [TensorProto.DOUBLE, TensorProto.INT64, TensorProto.STRING])


def _drop_end(model: Any, rng: Rng) -> None:
    ends = _pick(rng, [model.graph.input, model.graph.output])
    if len(ends):
        del ends[int(rng.integers(len(ends)))]


def _drop_node(model: Any, rng: Rng) -> None:
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def _other_operator(model: Any, rng: Rng) -> None:
    node = _pick(rng, model.graph.node)
    node.op_type = _pick(rng, ["Sqrt", "Log", "Identity", "Reciprocal", "NoSuchThing", "Mul"])
    node.domain = "" if rng.random() < 0.9 else "com.example"


def _external(model: Any, rng: Rng) -> None:
    weights = [*model.graph.initializer]
    if not weights:
        return
    tensor = _pick(rng, weights)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", _pick(rng, ["../../../../etc/passwd", "data.bin", "/dev/zero"])


def _bad_weights(model: Any, rng: Rng) -> None:
    floats = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and w.raw_data]
    if floats:
        tensor = _pick(rng, floats)
        number = np.float32(_pick(rng, [np.nan, np.inf, 3e38, -3e38]))
        tensor.raw_data = number.tobytes() + tensor.raw_data[4:]


def _endless_loop(model: Any, rng: Rng) -> None:
    """Replace an output's value by one that a loop of 2^62 rounds carries."""
    graph = model.graph
    end = _pick(rng, graph.output)
    for node in graph.node:
        node.output[:] = [f"{name}_before" if name == end.name else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == end.name else name for name in node.input]
    graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]))
    graph.initializer.append(helper.make_tensor("go_on", TensorProto.BOOL, [], [True]))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["loop_on"], ["loop_on_after"]),
            helper.make_node("Identity", ["carried"], ["carried_after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("loop_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("loop_on_after", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_after", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["rounds", "go_on", f"{end.name}_before"], [end.name], body=body)
    graph.node.append(loop)


def _huge_tensor(model: Any, rng: Rng) -> None:
    """Let an output pass through a tensor of 2^40 numbers."""
    graph = model.graph
    end = _pick(rng, graph.output)
    for node in graph.node:
        node.output[:] = [f"{name}_before" if name == end.name else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == end.name else name for name in node.input]
    graph.initializer.append(helper.make_tensor("vast", TensorProto.INT64, [2], [2**20, 2**20]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    graph.node.append(helper.make_node("Expand", ["one", "vast"], ["vast_ones"]))
    graph.node.append(helper.make_node("ReduceMax", ["vast_ones"], ["vast_max"], keepdims=0))
    graph.node.append(helper.make_node("Mul", [f"{end.name}_before", "vast_max"], [end.name]))


def _opset(model: Any, rng: Rng) -> None:
    model.opset_import[0].version = int(_pick(rng, [1, 9, 99, 2**40]))


def _identity_graph(model: Any, rng: Rng) -> None:
    """Another valid graph: what comes in goes out."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("a", "b")]
    model.graph.CopyFrom(
        helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", ends[:1], ends[1:])
    )


ONNX: list[tuple[str, Callable[[Any, Rng], None]]] = [
    ("an input or output of another size", _resize),
    ("an input or output of another size", _resize),
    ("an input or output with a dimension more", _add_dimension),
    ("an input or output of any size", _free_dimensions),
    ("an input or output renamed", _rename_end),
    ("an input or output of another type", _retype),
    ("an input or output removed", _drop_end),
    ("a node removed", _drop_node),
    ("another operator", _other_operator),
    ("weights in an external file", _external),
    ("a weight that is not finite or huge", _bad_weights),
    ("an endless loop", _endless_loop),
    ("a tensor of 4 TB", _huge_tensor),
    ("another operator set", _opset),
    ("another graph", _identity_graph),
]

# --- MNN ------------------------------------------------------------------------------------------------

WORDS = {
    "0": 0,
    "1": 1,
    "-1": 2**32 - 1,
    "2^31 - 1": 2**31 - 1,
    "2^20": 2**20,
    "NaN": 0x7FC00000,
    "1e38": 0x7E967699,
}


def _mnn(file: Path, content: bytes, rng: Rng) -> str:
    """A FlatBuffer is words of 4 bytes: offsets, sizes and weights."""
    changed, name = bytearray(content), _pick(rng, list(WORDS))
    for _ in range(int(rng.integers(1, MOST_BYTES + 1))):
        # The tables of the operators stand at the beginning and the end, weights between them.
        at = int(rng.integers(len(content) // 4)) if rng.random() < 0.5 else int(rng.integers(1000))
        at = 4 * (at if rng.random() < 0.5 else len(content) // 4 - 1 - at)
        changed[at : at + 4] = WORDS[name].to_bytes(4, "little")
    file.write_bytes(bytes(changed))
    return f"words become {name}"


FORMS: dict[str, Callable[[Path, bytes, Rng], str]] = {
    "json": _json,
    "toml": _toml,
    "csv": _csv,
    "parquet": _parquet,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "mnn": _mnn,
}
