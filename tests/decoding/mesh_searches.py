"""What a tiny model finds by beams, and says by strategies, on a mesh of eight host devices."""

import jax
import numpy as np

import vlm_jax
from tests.reference import picture
from vlm_jax.decoding.named import read_named
from vlm_jax.parallel import make_mesh

QUESTIONS = ["Why?", "What is this?", "Is it red?", "How many?"] * 2
OPTIONS = {"max_new_tokens": 6}


def found(folder, data: int, model: int) -> list[list[tuple[int, ...]]]:
    """Returns the answers of beam search and of OPERA to questions about two images."""
    vlm = vlm_jax.load(folder, mesh=make_mesh(data, model, jax.devices()[: data * model]))
    images = [[picture(56, 56, number // 4)] for number in range(8)]
    beams = vlm.ask(images, QUESTIONS, {**OPTIONS, "num_beams": 3})
    opera = read_named("opera", {"num_beams": 2, "candidates": 2})
    penalised = vlm.ask(images, QUESTIONS, OPTIONS, strategy=opera)
    return [[one.tokens for one in made] for made in (beams, penalised)]


def left_half(image, prompt):
    """A mask that keeps the left half of an image."""
    mask = np.zeros((image.height, image.width))
    mask[:, : image.width // 2] = 1
    return mask


STRATEGIES = {"vcd": {}, "icd": {}, "agla": {"mask": left_half}, "dola": {}, "m3id": {"alpha": 1},
              "pai": {"alpha": 0.5}, "first_logit": {"alpha": 2, "beta": 0.01}}  # fmt: skip


def said(folder, data: int, model: int) -> dict[str, list[tuple[int, ...]]]:
    """Returns the answers of each strategy to questions about two images."""
    vlm = vlm_jax.load(folder, mesh=make_mesh(data, model, jax.devices()[: data * model]))
    images = [[picture(56, 56, number // 4)] for number in range(8)]
    return {
        name: [
            one.tokens
            for one in vlm.ask(images, QUESTIONS, OPTIONS, strategy=read_named(name, settings))
        ]
        for name, settings in STRATEGIES.items()
    }
