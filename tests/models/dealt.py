"""What the tower of a tiny model makes of images on some of eight host devices."""

import jax
import numpy as np

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from vlm_jax.families import find
from vlm_jax.models import abstract, merge
from vlm_jax.parallel import batch_sharding, knows_mesh, make_mesh, put, replicated


def features(folder, data: int, model: int, samples: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Returns the features of some samples, and the operations of a device."""
    mesh = make_mesh(data, model, jax.devices()[: data * model])
    vlm = vlm_jax.load(folder, mesh=mesh)
    most, graphdef = find(vlm.config.family).most_images, abstract(vlm.config)[0]
    chosen = [IMAGES[sample][:most] for sample in samples]
    images = vlm.processor.batch(chosen, [PROMPTS[sample] for sample in samples]).images
    placed = put(images, replicated(mesh) if len(samples) % data else batch_sharding(mesh))
    read = lambda params, images: merge(graphdef, params).image_features(images)
    compiled = jax.jit(knows_mesh(read, mesh)).lower(vlm.params, placed).compile()
    cost = compiled.cost_analysis()
    found = compiled(vlm.params, placed)
    assert len(found.sharding.device_set) == data * model
    return np.asarray(found), (cost[0] if isinstance(cost, list) else cost)["flops"]
