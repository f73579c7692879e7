"""What an ONNX file contains, told before ONNX Runtime sees it, and without the package `onnx`.

The runtime is made for trusted files: it opens other files that a graph names, and runs loops for as long as
they ask. So only graphs of the operators that this package writes, none of them a loop, are passed on, from
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import read_bytes

MOST_BYTES = 2**26
MOST_NODES = 100_000
MOST_NUMBERS = 2**28  # that the shapes written into a graph may ask for
IR_VERSIONS, OPSETS = range(7, 14), range(13, 26)
OPERATORS = frozenset(  # those of simulator/graph.py and agents/export/
    "Abs Add Cast Clip Concat CumSum DequantizeLinear Div DynamicQuantizeLinear Exp Expand GRU Gather Gemm "
    "Identity LSTM LayerNormalization Log MatMul MatMulInteger Max Min Mul Pad Range ReduceMax ReduceMean "
    "ReduceSum Relu Reshape Round Shape Sigmoid Sign Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose "
    "Unsqueeze".split()
)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
FLOAT, INT64 = 1, 7  # data types of tensors
Field = tuple[int, int, int | memoryview]  # number, wire type, value


def read_graph(path: str | Path) -> bytes:
    """Read an ONNX file and check what it contains; raises InputError as :func:`check_graph` does."""
    content = read_bytes(path, MOST_BYTES)
    check_graph(content, path)
    return content


def check_graph(content: bytes, path: str | Path) -> None:
    """Check what an ONNX file contains.

    Args:
        content: the file's content.
        path: the file, for messages.

    Raises:
        InputError: the content is no ONNX model, or asks for what this package's graphs never do.
    """
    try:
        _check_model(memoryview(content))
    except _Refused as error:
        raise InputError(f"{path} cannot be loaded: {error}") from None
    except (ValueError, IndexError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be loaded: it is not an ONNX model") from None


class _Refused(Exception):
    """What a graph may not do."""


def _fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of a message; ValueError or IndexError if it is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("no field")
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError("no wire type")
        if length > len(data) - at:
            raise ValueError("cut off")
        yield number, kind, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
        shift += 7
    raise ValueError("too long")


def _part(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number instead of a message")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message instead of a number")
    return value - 2**64 if value >= 2**63 else value


def _name(value: int | memoryview) -> str:
    return bytes(_part(value)).decode()


def _check_model(data: memoryview) -> None:
    version, opsets, graphs = 0, [], []
    for number, _, value in _fields(data):
        if number == 1:
            version = _number(value)
        elif number == 7:
            graphs.append(_part(value))
        elif number == 8:
            own = {n: v for n, _, v in _fields(_part(value))}
            if 1 in own and (domain := _name(own[1])) not in ("", "ai.onnx"):
                raise _Refused(f"it needs the operators of {shown(domain)}; allowed: those of ONNX itself")
            opsets.append(_number(own.get(2, 0)))
        elif number in (20, 25):
            raise _Refused("it holds functions or training; allowed: a graph alone")
    if len(graphs) != 1:
        raise ValueError("not one graph")
    if version not in IR_VERSIONS:
        raise _Refused(f"its IR version is {version}; allowed: {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    for opset in opsets or [0]:
        if opset not in OPSETS:
            raise _Refused(f"its opset is {opset}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    _check_graph(graphs[0])


def _check_graph(data: memoryview) -> None:
    nodes = 0
    for number, _, value in _fields(data):
        if number == 1:
            nodes += 1
            _check_node(_part(value))
        elif number == 5:
            _check_tensor(_part(value))
        elif number == 15:
            raise _Refused("it holds sparse weights; allowed: dense ones")
    if nodes > MOST_NODES:
        raise _Refused(f"it has more than {MOST_NODES:,} nodes")


def _check_node(data: memoryview) -> None:
    operator, attributes = "", []
    for number, _, value in _fields(data):
        if number == 4:
            operator = _name(value)
        elif number == 5:
            attributes.append(_part(value))
        elif number == 7 and _name(value) not in ("", "ai.onnx"):
            raise _Refused(f"it uses an operator of {shown(_name(value))}; allowed: those of ONNX itself")
    if operator not in OPERATORS:
        raise _Refused(f"it uses the operator {shown(operator)}; allowed: {', '.join(sorted(OPERATORS))}")
    for attribute in attributes:
        for number, _, value in _fields(attribute):
            if number in (5, 10):
                _check_tensor(_part(value))
            elif number in (6, 11):
                raise _Refused("it holds a graph within a graph; allowed: none")


def _check_tensor(data: memoryview) -> None:
    """Refuse weights in other files, and whole numbers that ask for huge arrays if they are a shape."""
    sizes, kind, raw, numbers = [], 0, memoryview(b""), []
    for number, wire, value in _fields(data):
        if number == 1:
            sizes += [_number(value)] if wire == VARINT else _packed(_part(value))
        elif number == 2:
            kind = _number(value)
        elif number == 7:
            numbers += [_number(value)] if wire == VARINT else _packed(_part(value))
        elif number == 9:
            raw = _part(value)
        elif number == 13 or (number == 14 and value):
            raise _Refused("its weights lie in another file; allowed: weights in the graph itself")
    count = 1
    for size in sizes:
        count *= size
        if size < 0 or count > MOST_BYTES:
            raise _Refused(f"it has a weight of the shape {sizes[:8]}")
    if kind == INT64 and len(raw) <= 64 and len(raw) % 8 == 0:
        numbers += [int.from_bytes(raw[k : k + 8], "little", signed=True) for k in range(0, len(raw), 8)]
    product = 1
    for number in numbers[:8] if len(numbers) <= 8 else []:
        product *= number if 1 < number < 2**31 - 1 else 1  # larger ones are ends of slices
    if product > MOST_NUMBERS:
        raise _Refused(f"it asks for an array of the shape {numbers}")


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(_number(value))
    return values
