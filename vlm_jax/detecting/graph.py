"""Computes graphs of TensorFlow in JAX: the operations of the detectors here, no others.

Weights that say how (shapes, axes, sizes) are constants of the program; everything is NHWC.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.detecting.tfjs import Graph, Node
from vlm_jax.errors import CheckpointError

LAYOUT = ("NHWC", "HWIO", "NHWC")
DTYPES = {"DT_FLOAT": jnp.float32, "DT_INT32": jnp.int32, "DT_BOOL": jnp.bool_}


def run(graph: Graph, feeds: Mapping[str, Array], wanted: str) -> Array:
    """Returns what a node of a graph gives; only what it needs is computed.

    Args:
        graph: the graph.
        feeds: values of its placeholders, by name.
        wanted: name of the node.

    Raises:
        CheckpointError: an operation or a setting is none of those known here, an input is missing,
            the nodes form a circle, or values do not go together.
    """
    made: dict[str, Any] = {**graph.weights, **feeds}
    opened: set[str] = set()
    stack = [wanted]
    while stack:
        name = stack[-1]
        if name in made:
            stack.pop()
            continue
        node = graph.nodes.get(name)
        if node is None or node.op in ("Const", "Placeholder"):
            raise CheckpointError(f"{graph.path} has nothing for the node {name!r}.")
        reads = [_source(one) for one in node.input if not one.startswith("^")]
        missing = [source for source, _ in reads if source not in made]
        if missing and name in opened:
            raise CheckpointError(f"{graph.path}: the node {name!r} reads what it makes.")
        opened.add(name)
        if missing:
            stack += missing
            continue
        made[name] = _computed(graph, node, [_output(made[source], at) for source, at in reads])
        stack.pop()
    return _output(made[wanted], 0)


def _source(name: str) -> tuple[str, int]:
    """The node that an input names, and which output: `top:1`."""
    node, _, at = name.partition(":")
    return node, int(at) if at.isdecimal() and len(at) < 3 else 0


def _output(value: Any, at: int) -> Any:
    return value[at] if isinstance(value, tuple) else value


def _computed(graph: Graph, node: Node, inputs: list[Any]) -> Any:
    known = OPERATIONS.get(node.op)
    if known is None:
        raise CheckpointError(
            f"{graph.path}: the node {node.name!r} is the operation {node.op}; known are "
            f"{', '.join(sorted(OPERATIONS))}."
        )
    try:
        return known(node, *inputs)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as failure:
        reason = str(failure).partition("\n")[0]
        raise CheckpointError(f"{graph.path}: {node.op} {node.name!r}: {reason}") from failure


def _constant(value: Any) -> np.ndarray:
    """A value that says how, which the graph must hold."""
    if not isinstance(value, np.ndarray):
        raise TypeError("what says how must be a weight of the graph.")
    return value


def _padding(node: Node) -> str:
    padding = node.text("padding")
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding is {padding!r}; known are SAME and VALID.")
    if node.text("data_format") not in ("", "NHWC"):
        raise ValueError(f"data_format is {node.text('data_format')!r}; known is NHWC.")
    return padding


def _sides(node: Node, name: str) -> tuple[int, int]:
    """A setting by dim, for height and width; 1 for the others."""
    sides = node.wholes(name) or [1, 1, 1, 1]
    if len(sides) != 4 or sides[0] != 1 or sides[3] != 1 or min(sides) < 1:
        raise ValueError(f"{name} is {sides}; [1, height, width, 1] is needed.")
    return sides[1], sides[2]


def _convolution(node: Node, x_bhwc: Any, kernel: Any, *more: Any) -> Array:
    depthwise, groups = "epthwise" in node.op, 1
    if depthwise:
        high, wide, groups, times = kernel.shape
        kernel = kernel.reshape(high, wide, 1, groups * times)
    made = jax.lax.conv_general_dilated(
        x_bhwc,
        kernel,
        _sides(node, "strides"),
        _padding(node),
        rhs_dilation=_sides(node, "dilations"),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
        precision="highest",
    )
    after = node.texts("fused_ops")
    if after[:1] == ["BiasAdd"] and len(more) == 1:
        made, after = made + more[0], after[1:]
    elif after or more:
        raise ValueError(f"fused_ops is {after} with {len(more)} more inputs.")
    for name in after:
        if name not in ACTIVATIONS:
            raise ValueError(f"fused_ops has {name}; known are {', '.join(ACTIVATIONS)}.")
        made = ACTIVATIONS[name](made)
    return made


def _max_pool(node: Node, x_bhwc: Any) -> Array:
    window, strides = _sides(node, "ksize"), _sides(node, "strides")
    return jax.lax.reduce_window(
        x_bhwc, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), _padding(node)
    )


def _resize(node: Node, x_bhwc: Any, size: Any) -> Array:
    """Bilinear, as TensorFlow does it: without half pixels, row i of n is at i h / n.

    Two rows to four: 0, 0.5, 1, 1.5, the last of which lies beyond the last row and is it.
    """
    if node.flag("align_corners"):
        raise ValueError("align_corners is not known here.")
    for axis, length in zip((1, 2), _constant(size).tolist(), strict=True):
        have = x_bhwc.shape[axis]
        places = np.arange(length) * (have / length)
        if node.flag("half_pixel_centers"):
            places = np.maximum((np.arange(length) + 0.5) * (have / length) - 0.5, 0)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, have - 1)
        share = np.expand_dims((places - low).astype(np.float32), tuple(range(1, 4 - axis)))
        take = lambda rows, x=x_bhwc, axis=axis: jnp.take(x, rows, axis=axis)
        x_bhwc = take(low) * (1 - share) + take(high) * share
    return x_bhwc


def _slice(node: Node, x: Any, start: Any, stop: Any, step: Any) -> Array:
    for mask in ("ellipsis_mask", "new_axis_mask"):
        if node.whole(mask):
            raise ValueError(f"{mask} is not known here.")
    begins, ends, shrinks = (node.whole(f"{name}_mask") for name in ("begin", "end", "shrink_axis"))
    places: list[Any] = []
    for axis, (low, high, by) in enumerate(zip(*map(_constant, (start, stop, step)), strict=True)):
        has = lambda mask, axis=axis: bool(mask >> axis & 1)
        if has(shrinks):
            places.append(int(low))
        else:
            low, high = None if has(begins) else int(low), None if has(ends) else int(high)
            places.append(slice(low, high, int(by)))
    return x[tuple(places)]


def _gather(node: Node, x: Any, indices: Any, axis: Any) -> Array:
    if node.whole("batch_dims"):
        raise ValueError("batch_dims is not known here.")
    return jnp.take(x, indices, axis=int(_constant(axis)))


def _cast(node: Node, x: Any) -> Array:
    if node.kind("DstT") not in DTYPES:
        raise ValueError(f"DstT is {node.kind('DstT')!r}; known are {', '.join(DTYPES)}.")
    return jnp.asarray(x, DTYPES[node.kind("DstT")])


def _mean(node: Node, x: Any, axes: Any) -> Array:
    axes = tuple(_constant(axes).reshape(-1).tolist())
    return jnp.mean(x, axes, keepdims=node.flag("keep_dims"))


ACTIVATIONS: dict[str, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    "Relu": jax.nn.relu,
    "Relu6": jax.nn.relu6,
    "Sigmoid": jax.nn.sigmoid,
}

OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: lambda _, x, act=act: act(x) for name, act in ACTIVATIONS.items()},
    "Add": lambda _, a, b: jnp.add(a, b),
    "Cast": _cast,
    "ConcatV2": lambda _, *parts: jnp.concatenate(parts[:-1], int(_constant(parts[-1]))),
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "Equal": lambda _, a, b: jnp.equal(a, b),
    "ExpandDims": lambda _, x, axis: jnp.expand_dims(x, int(_constant(axis))),
    "FloorDiv": lambda _, a, b: jnp.floor_divide(a, b),
    "FloorMod": lambda _, a, b: jnp.mod(a, b),
    "FusedDepthwiseConv2dNative": _convolution,
    "GatherV2": _gather,
    "Identity": lambda _, x: x,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Mul": lambda _, a, b: jnp.multiply(a, b),
    "Reshape": lambda _, x, shape: jnp.reshape(x, _constant(shape).tolist()),
    "ResizeBilinear": _resize,
    "StridedSlice": _slice,
    "Sub": lambda _, a, b: jnp.subtract(a, b),
    "TopKV2": lambda _, x, count: tuple(jax.lax.top_k(x, int(_constant(count)))),
    "_FusedConv2D": _convolution,
}
"""What a node of an operation gives, by the node and what it reads."""
