"""What a tiny model finds by beams on a mesh of eight host devices."""

import jax

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
