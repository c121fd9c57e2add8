"""Integer convolutions as matrix products: the same integers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_prep.integer_conv import as_products


def a_model(taps: int, weights=np.uint8, group: int = 1, **settings):
    """x (1, 6, T), quantised by the graph, through one ConvInteger."""
    draw = np.random.default_rng(0)
    weight = draw.integers(0, 100, (5 if group == 1 else 6, 6 // group, taps)).astype(weights)
    constants = {"w": weight, "zw": np.array(41, weights)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("ConvInteger", ["q", "w", "zero", "zw"], ["y"], "conv", group=group, **settings),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, "t"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, [1, None, None])]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model


def run(model, length: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(1, 6, length)).astype(np.float32)
    return session.run(None, {"x": x})[0]


SETTINGS = [
    (1, {}),
    (3, {"pads": [1, 1]}),
    (7, {"pads": [9, 9], "dilations": [3]}),
    (5, {"pads": [2, 1], "strides": [3]}),
    (1, {"strides": [2]}),
    (4, {"pads": [0, 3], "strides": [2], "dilations": [2]}),
]


@pytest.mark.parametrize(("taps", "settings"), SETTINGS)
@pytest.mark.parametrize("length", [13, 40])
def test_the_same_integers(taps, settings, length):
    before = run(a_model(taps, **settings), length)
    model = as_products(a_model(taps, **settings))
    onnx.checker.check_model(model)
    assert not any(node.op_type == "ConvInteger" for node in model.graph.node)
    assert np.array_equal(run(model, length), before)


def test_what_it_cannot_replace_stays():
    grouped = as_products(a_model(3, group=2))
    assert [node.op_type for node in grouped.graph.node] == ["DynamicQuantizeLinear", "ConvInteger"]
