"""Lets vLLM be imported beside a torch for CPUs; on PYTHONPATH where scripts/clients.py asks it.

The torchvision of the registry is built for a torch with CUDA: its operators do not load, and it
fails as it describes two of them, which are declared here. Its torchcodec does not load either and
is hidden; vLLM does without. vLLM starts processes of its own, so this comes before any program.
"""

import sys

import torch

sys.modules["torchcodec"] = None  # type: ignore[assignment]
_operators = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
