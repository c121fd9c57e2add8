"""Integer convolutions of an ONNX graph as matrix products: the same bits, in a fraction of the time.

onnxruntime multiplies signed int8 weights on a processor's own integer units (VNNI, AMX), but only in `MatMulInteger`; its
`ConvInteger` does not use them. A convolution is a product of the k shifted copies of its input, side by side, with the weights
of the k taps below each other, and integers add up the same in any order. So nothing changes but the time: for Kokoro 1.39 ->
2.47 times real time of one core with AMX (`bench/kokoro.py`); by a profile (no file) convolutions were 64 % of it, products are 14 %.

Shapes: B batch, C channels in, O channels out, T samples in time, k taps.
"""

import numpy as np

LAST = np.iinfo(np.int64).max  # to the end


def as_products(model):
    """`model` (onnx.ModelProto) with every one-dimensional, ungrouped ConvInteger of constant uint8 weights replaced, and the
    constant weights of every MatMulInteger signed. Changes it in place and returns it."""
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    added: dict[str, np.ndarray] = {}

    def constant(name: str, value: np.ndarray) -> str:
        added.setdefault(name, value)
        return name

    def value(name: str) -> np.ndarray:
        return numpy_helper.to_array(constants[name])

    def product(node) -> list:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        x, weight, zero, weight_zero = node.input
        taps = value(weight)  # (O, C, k)
        count = taps.shape[2]
        (stride,), (gap,) = settings.get("strides", [1]), settings.get("dilations", [1])
        pads = np.array(settings.get("pads", [0, 0]))
        name, nodes = node.name, []

        def step(kind: str, inputs: list[str], label: str, **attributes) -> str:
            nodes.append(helper.make_node(kind, inputs, [f"{name}/{label}"], f"{name}/{label}", **attributes))
            return nodes[-1].output[0]

        if pads.any():
            around = constant(f"{name}/around", np.array([0, 0, pads[0], 0, 0, pads[1]]))
            x = step("Pad", [x, around, zero], "padded")
        x = step("Transpose", [x], "rows", perm=[0, 2, 1])  # (B, T, C)
        if count > 1 or stride > 1:
            shifted = []
            for i in range(count):
                edges = [i * gap, -(count - 1 - i) * gap or LAST, 1, stride]  # start, end, axis, step
                names = [constant(f"integer_conv/{edge}", np.array([edge])) for edge in edges]
                shifted.append(step("Slice", [x, *names], f"tap{i}"))
            x = step("Concat", shifted, "taps", axis=2)  # (B, T', k C)
        stacked = signed(taps).transpose(2, 1, 0).reshape(-1, len(taps))  # (k C, O)
        weights = constant(f"{name}/weights", np.ascontiguousarray(stacked))
        zeros = constant(f"{name}/zero", signed(value(weight_zero)))
        x = step("MatMulInteger", [x, weights, zero, zeros], "product")  # (B, T', O)
        nodes.append(helper.make_node("Transpose", [x], list(node.output), f"{name}/columns", perm=[0, 2, 1]))
        return nodes

    nodes = []
    for node in graph.node:
        nodes += product(node) if fits(node, constants) else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in added.items())
    for node in graph.node:
        if node.op_type == "MatMulInteger" and len(node.input) == 4:
            for name in node.input[1::2]:
                if name in constants and value(name).dtype == np.uint8:
                    constants[name].CopyFrom(numpy_helper.from_array(signed(value(name)), name))
    return model


def fits(node, constants: dict) -> bool:
    """Whether a node is a convolution that `as_products` can replace."""
    if node.op_type != "ConvInteger" or len(node.input) != 4 or not set(node.input[1::2]) <= constants.keys():
        return False
    settings = {a.name: a.i for a in node.attribute}
    uint8 = 2  # onnx.TensorProto.UINT8
    weight = constants[node.input[1]]
    return settings.get("group", 1) == 1 and len(weight.dims) == 3 and weight.data_type == uint8


def signed(unsigned: np.ndarray) -> np.ndarray:
    """uint8 -> int8, 128 less; with weights and their zero point moved alike, products stay."""
    return (unsigned.astype(np.int16) - 128).astype(np.int8)
