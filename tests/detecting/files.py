"""Writes graphs of TensorFlow.js."""

import base64
import json
import pathlib
from typing import Any

import numpy as np


def text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def attributes(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a node as the format writes them."""
    written = {}
    for name, value in values.items():
        if isinstance(value, bool):
            written[name] = {"b": value}
        elif isinstance(value, int):
            written[name] = {"i": str(value)}
        elif isinstance(value, str):
            written[name] = {"type": value} if value.startswith("DT_") else {"s": text(value)}
        elif value and isinstance(value[0], str):
            written[name] = {"list": {"s": [text(one) for one in value]}}
        else:
            written[name] = {"list": {"i": [str(one) for one in value]} if value else {}}
    return written


class Writer:
    """A graph that is made node by node; float weights are stored as float16."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.tensors: list[dict[str, Any]] = []
        self.content = b""

    def node(self, op: str, name: str, *inputs: Any, **settings: Any) -> str:
        """Adds a node; inputs that are no names become weights."""
        names = [
            one if isinstance(one, str) else self.weight(f"{name}/{index}", one)
            for index, one in enumerate(inputs)
        ]
        self.nodes.append({"name": name, "op": op, "input": names, "attr": attributes(settings)})
        return name

    def weight(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if array.dtype.kind == "f":
            quantised = {"dtype": "float16", "original_dtype": "float32"}
            tensor |= {"dtype": "float32", "quantization": quantised}
            self.content += array.astype("<f2").tobytes()
        else:
            tensor |= {"dtype": "int32"}
            self.content += array.astype("<i4").tobytes()
        self.tensors.append(tensor)
        self.nodes.append({"name": name, "op": "Const", "attr": {"value": {"tensor": {}}}})
        return name

    def write(self, path: pathlib.Path) -> pathlib.Path:
        manifest = [{"paths": [path.stem + ".bin"], "weights": self.tensors}]
        graph = {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes, "library": {}},
            "weightsManifest": manifest,
        }
        path.write_text(json.dumps(graph))
        path.with_suffix(".bin").write_bytes(self.content)
        return path
