"""Quantised graphs: ONNX models with weights of 8 or 4 bits, and kept state of 8 bits.

- 8 bits: dynamic quantisation by ONNX Runtime. Weights have a scale for each output (symmetric); what a layer
  reads is rounded to uint8 with one scale for all of it when the graph runs, and the product is one of
  integers.
- 4 bits: weights have a scale for each block of 32 inputs of an output; the product is one of floats.

Where a GRU is one node, its weights are stored on the same grids, and computed with as floats.

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

from edgerec_gym.agents.export.folder import PackedGraph, Packer, float32_for
from edgerec_gym.agents.export.mnn_convert import to_mnn
from edgerec_gym.device.engines.engine import REFERENCE
from edgerec_gym.errors import InputError

LEAST_NUMBERS = 512  # in a weight that is quantised
BLOCK = 32  # inputs that share a scale, with 4 bits
ALLOWED_BITS = (4, 8, 32)
# Largest difference from the golden outputs of the float32 graph, relative to 1 + their size.
TOLERANCES = {8: 0.1, 4: 0.5}
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
    _store_grus(model.graph, bits)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name = model.producer_version = ""
    return model.SerializeToString(deterministic=True)


def quantised_for(engine: str, bits: int) -> Packer:
    """Return what packs graphs with weights of 8 or 4 bits, and rounded kept state, for an engine.

    ONNX Runtime's weights are those of :func:`quantise`. MNN's converter rounds them itself, with the same
    sizes of blocks; its products are those of floats.

    Args:
        engine: name of the engine.
        bits: 4, 8, or 32 for float32 graphs.

    Raises:
        InputError: there is no such engine, or bits are others.
        MissingExtraError: the engine is not installed.
    """
    check_bits(bits)
    exact = float32_for(engine)
    if bits == 32:
        return exact

    def pack(name: str, graph: bytes) -> PackedGraph:
        rounded = round_kept_outputs(graph)
        content = quantise(rounded, bits) if engine == REFERENCE.name else to_mnn(rounded, name, bits)
        return PackedGraph(content, engine, bits, TOLERANCES[bits])

    return pack


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
            nodes_to_exclude=_small(model),
        )
        return _unsigned(onnx.load(out))


def _unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shift weights from -127..127 to 1..255, and their zero points with them: the same numbers.

    Without VNNI, x86 processors add products of unsigned and signed bytes in 16 bits, which overflow. ONNX
    Runtime multiplies two unsigned matrices without that.
    """
    for weights in model.graph.initializer:
        name = weights.name
        if name.endswith(("_quantized", "_zero_point")) and weights.data_type == onnx.TensorProto.INT8:
            shifted = (numpy_helper.to_array(weights).astype(np.int16) + 128).astype(np.uint8)
            weights.CopyFrom(numpy_helper.from_array(shifted, name))
    return model


def _int4(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat

    model = _named(model)
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=BLOCK,
        is_symmetric=True,
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=_small(model),
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    del found.opset_import[:]
    found.opset_import.append(helper.make_opsetid("", BLOCK_OPSET))
    found.ir_version = max(found.ir_version, BLOCK_IR)
    return found


def _store_grus(graph: onnx.GraphProto, bits: int) -> None:
    """Store the weights of GRU nodes with few bits; they become floats when the graph runs.

    ONNX Runtime's quantisers leave these nodes out. A GRU over a free number of candidates is one.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "GRU"]:
        for name in node.input[1:3]:
            weight = weights[name]
            steps, scale = _on_grid(numpy_helper.to_array(weight), bits)
            axis: dict[str, Any] = {"axis": 1} if bits == 8 else {"axis": 2, "block_size": BLOCK}
            graph.initializer.remove(weight)
            graph.initializer.append(steps)
            graph.initializer[-1].name = f"{name}_steps"
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scales"))
            inputs = [f"{name}_steps", f"{name}_scales"]
            graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], **axis))


def _on_grid(weight: np.ndarray, bits: int) -> tuple[onnx.TensorProto, np.ndarray]:
    """Steps and scales of a GRU's weights (1, outputs, inputs), on the grids of linear layers."""
    if bits == 8:
        scale = np.abs(weight[0]).max(axis=1) / np.float32(127)  # (outputs,)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        steps = np.round(weight / scale[:, None]).astype(np.int8)
        return numpy_helper.from_array(steps), scale
    count = -(-weight.shape[2] // BLOCK)
    padded = np.pad(weight, ((0, 0), (0, 0), (0, count * BLOCK - weight.shape[2])))
    blocks = padded.reshape(*weight.shape[:2], count, BLOCK)
    most, least = blocks.max(axis=3), blocks.min(axis=3)
    scale = np.where(np.abs(most) > np.abs(least), most, least) / np.float32(-8)  # (1, outputs, blocks)
    scale = np.where(scale == 0, np.float32(1), scale)
    steps = np.clip(np.floor(blocks / scale[..., None] + np.float32(0.5)), -8, 7).astype(np.int8)
    steps = steps.reshape(padded.shape)[:, :, : weight.shape[2]]
    return helper.make_tensor("", onnx.TensorProto.INT4, steps.shape, steps.ravel()), scale


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write Gemm as MatMul and Add, and name the nodes, as the quantisers want them."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    for k, node in enumerate(wrapped.model.graph.node):
        node.name = f"n{k}"
    found: onnx.ModelProto = wrapped.model
    return found


def _small(model: onnx.ModelProto) -> list[str]:
    """Names of the products whose weight is too small to be quantised."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and sizes.get(node.input[1], 0) < LEAST_NUMBERS
    ]


def round_kept_outputs(graph: bytes) -> bytes:
    """Round what an event's graph keeps to 8 bits, with one scale for each row.

    The numbers stay float32, but a phone can store each as one byte. Where a row consists of parts, each has
    its own scale; single numbers, such as the slot, stay as they are. So do graphs of no event.
    """
    model = onnx.load_from_string(graph)
    if "row" not in {given.name for given in model.graph.input}:
        return graph
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    widths = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in (*inferred.value_info, *inferred.output, *inferred.input)
    }
    makers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        maker = makers[output.name]
        if maker.op_type == "Concat" and maker.attribute[0].i in (1, -1):
            maker.input[:] = [_rounded(model.graph, x) if widths[x] > 1 else x for x in maker.input]
        else:
            exact = f"{output.name}_exact"
            for node in model.graph.node:
                node.output[:] = [exact if name == output.name else name for name in node.output]
                node.input[:] = [exact if name == output.name else name for name in node.input]
            _rounded(model.graph, exact, output.name)
    nodes = _sorted(model.graph)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _rounded(graph: onnx.GraphProto, exact: str, name: str | None = None) -> str:
    """Add the nodes that round rows: x / s rounded, times s, where 127 s is the largest |x|."""
    name = name or f"{exact}_rounded"

    def constant(part: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}_{part}"))
        return f"{name}_{part}"

    def add(kind: str, part: str, *inputs: str) -> str:
        graph.node.append(helper.make_node(kind, list(inputs), [f"{name}_{part}"]))
        return f"{name}_{part}"

    largest = add(
        "ReduceMax", "largest", add("Abs", "size", exact), constant("axis", np.array([-1], np.int64))
    )
    scale = add("Mul", "scale", largest, constant("step", np.float32(1 / 127)))
    # A row of zeros has the scale 0, and stays as it is.
    scale = add("Max", "positive", scale, constant("least", np.float32(1e-20)))
    steps = add("Round", "steps", add("Div", "ratio", exact, scale))
    graph.node.append(helper.make_node("Mul", [steps, scale], [name]))
    return name


def _sorted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes, each behind those whose outputs it reads."""
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    waiting, found = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        waiting = [node for node in waiting if not known.issuperset(node.input)]
        found += ready
        known.update(name for node in ready for name in node.output)
    return found
