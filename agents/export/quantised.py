"""Quantised graphs: ONNX models with weights of 8 or 4 bits, and kept state of 8 bits.

- 8 bits: dynamic quantisation by ONNX Runtime. Weights have a scale for each output (symmetric); what a layer
  reads is rounded to uint8 with one scale for all of it when the graph runs, and the product is one of
  integers.
- 4 bits: weights have a scale for each block of 32 inputs of an output; the product is one of floats.

A weight of fewer than :data:`LEAST_NUMBERS` numbers stays as it is: the nodes and scales that 8 bits need
take more bytes than they save.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgerec_gym.errors import InputError

LEAST_NUMBERS = 512  # in a weight that is quantised
BLOCK = 32  # inputs that share a scale, with 4 bits
ALLOWED_BITS = (4, 8, 32)
KEPT = ("key", "value", "new_hidden", "interest")  # outputs of an event's graph that the phone keeps
BLOCK_OPSET, BLOCK_IR = 21, 10  # the first with scales for blocks


def quantise(graph: bytes, bits: int) -> bytes:
    """Return an ONNX model with weights of 8 or 4 bits; the same model gives the same bytes.

    Raises:
        InputError: bits are not 4, 8 or 32.
    """
    check_bits(bits)
    if bits == 32:
        return graph
    model = onnx.load_from_string(graph)
    with _quiet():
        model = _int8(model) if bits == 8 else _int4(model)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name = model.producer_version = ""
    return model.SerializeToString(deterministic=True)


def check_bits(bits: int) -> None:
    """Raise InputError unless weights can have so many bits."""
    if bits not in ALLOWED_BITS:
        raise InputError(f"bits = {bits} is not possible; allowed: {', '.join(map(str, ALLOWED_BITS))}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantisers from setting up the root logger and from writing to it."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


def _int8(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _named(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "graph.onnx")
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_large(model) or ["none"],
        )
        return onnx.load(out)


def _int4(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat

    model = _named(model)
    large = _large(model)
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=BLOCK,
        is_symmetric=True,
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in large],
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    del found.opset_import[:]
    found.opset_import.append(helper.make_opsetid("", BLOCK_OPSET))
    found.ir_version = max(found.ir_version, BLOCK_IR)
    return found


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write Gemm as MatMul and Add, and name the nodes, as the quantisers want them."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    for k, node in enumerate(wrapped.model.graph.node):
        node.name = f"n{k}"
    found: onnx.ModelProto = wrapped.model
    return found


def _large(model: onnx.ModelProto) -> list[str]:
    """Names of the products with a constant weight that is large enough."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and sizes.get(node.input[1], 0) >= LEAST_NUMBERS
    ]


def round_kept_outputs(graph: bytes) -> bytes:
    """Round what an event's graph keeps to 8 bits, with one scale for each row.

    The numbers stay float32, but a phone can store each as one byte. Graphs without such outputs stay as they
    are.
    """
    model = onnx.load_from_string(graph)
    kept = [output.name for output in model.graph.output if output.name in KEPT]
    if "new_hidden" not in kept:
        return graph
    for name in kept:
        for node in model.graph.node:
            node.output[:] = [f"{name}_exact" if other == name else other for other in node.output]
            node.input[:] = [f"{name}_exact" if other == name else other for other in node.input]
        _round_rows(model.graph, name)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _round_rows(graph: onnx.GraphProto, name: str) -> None:
    """Add the nodes that make `name` of `name_exact`: x / s rounded, times s, where 127 s is the largest |x|."""

    def constant(part: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}_{part}"))
        return f"{name}_{part}"

    def add(kind: str, part: str, *inputs: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, list(inputs), [f"{name}_{part}"], **attributes))
        return f"{name}_{part}"

    exact = f"{name}_exact"
    largest = add("ReduceMax", "largest", add("Abs", "size", exact), constant("axis", np.array([-1], np.int64)))
    scale = add("Mul", "scale", largest, constant("step", np.float32(1 / 127)))
    # A row of zeros has the scale 0, and stays as it is.
    scale = add("Max", "positive", scale, constant("least", np.float32(1e-20)))
    steps = add("Round", "steps", add("Div", "ratio", exact, scale))
    graph.node.append(helper.make_node("Mul", [steps, scale], [name]))
