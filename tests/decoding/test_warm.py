"""Programs compiled ahead of time, from shapes, are those that calls run."""

import concurrent.futures

import jax
import numpy as np
import pytest

from tests.compiles import counted
from tests.decoding.test_steered import leaf
from tests.prefixes import cut
from tests.reference import IMAGES
from vlm_jax.attention.steering import Lens, Reallocation, Steering
from vlm_jax.decoding import DecodeSettings, Generator

SLOTS = 4


def described(tree):
    """Shapes in place of arrays, with shardings where the arrays have them."""
    describe = lambda a: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=getattr(a, "sharding", None)
    )
    return jax.tree.map(describe, tree)


def test_warmed_calls_compile_nothing(llava_vlm):
    """Whole prompts sampled, and prompts behind prefixes steered, warmed side by side."""
    vlm = llava_vlm
    whole = vlm.processor.batch([IMAGES[1], IMAGES[1]], ["What is this?", "Why is it there?"])
    first, suffix = cut(whole, [0])
    steering = Steering(
        lens=Lens(leaf(vlm, 0.2)),
        reallocation=Reallocation(leaf(vlm, 2), leaf(vlm, 0.5), leaf(vlm, 0.3)),
    )
    greedy = DecodeSettings(max_new_tokens=SLOTS)
    sampled = dict(settings=greedy.replace(temperature=0.7), stop_ids=[7])
    steered = dict(settings=greedy, steering=steering, logit_bias=np.zeros(384, np.float32))
    generator = Generator(vlm.config, vlm.mesh)
    shapes = described(vlm.params)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(generator.warm, shapes, described(whole), **sampled),
            pool.submit(generator.warm, shapes, suffix, prefix=described(first), **steered),
        ]
    assert [future.result() for future in asked] == [None, None]
    drawn = DecodeSettings(temperature=1.5, seed=3, max_new_tokens=3)
    other = dict(settings=drawn, stop_ids=[9])
    with counted() as compiled:
        made = generator(vlm.params, whole, slots=SLOTS, **other)
        prefix = generator.read_prefix(vlm.params, first)
        generator(vlm.params, suffix, prefix=prefix, owner_b=[0, 0], **steered)
    assert not compiled
    assert generator.compilations == 5
    generator.warm(shapes, suffix, greedy, prefix=described(first), images_apart=True)
    with counted() as compiled:
        read = generator.read_images(vlm.params, first)
        again = generator.read_prefix(vlm.params, read)
        generator(vlm.params, suffix, greedy, prefix=again, owner_b=[0, 0])
    assert not compiled
    expected = vlm.generator(vlm.params, whole, slots=SLOTS, **other)
    np.testing.assert_array_equal(made.tokens_bn, expected.tokens_bn)


def test_options_that_calls_do_not_have_are_refused(llava_vlm):
    batch = llava_vlm.processor.batch([IMAGES[1]], ["What is this?"])
    with pytest.raises(TypeError, match="temperature"):
        llava_vlm.generator.warm(llava_vlm.params, batch, DecodeSettings(), temperature=0.5)
