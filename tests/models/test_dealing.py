"""Images dealt out over eight host devices, against one that reads them all."""

import numpy as np
import pytest

from tests import tiny
from tests.models.dealt import features
from vlm_jax.models.dealing import Deal
from vlm_jax.parallel import images_lie_whole
from vlm_jax.parallel.sharding import LARGEST_WHOLE

SLOW = pytest.mark.slow
BAR = 1e-5
TALL = (3, 0)
"""Samples of five images; a single one of three is dealt over all devices, window by window."""


def test_samples_and_their_groups_are_dealt_in_balance():
    sizes = {"data": 2, "model": 4}
    assert Deal.of(8, sizes) == Deal(("data", "model"), (), 1, 1)
    assert Deal.of(2, sizes) == Deal(("data",), ("model",), 4, 1)
    assert Deal.of(3, sizes) == Deal((), ("data", "model"), 8, 3)
    assert [Deal.of(2, sizes).groups(n, apart=True) for n in (1, 4, 5)] == [4, 4, 8]
    assert [Deal.of(4, sizes).groups(n, apart=True) for n in (1, 3, 5)] == [2, 4, 6], "2 samples"
    assert [Deal.of(4, sizes).groups(n, apart=False) for n in (1, 3, 5)] == [4, 4, 8]
    assert Deal.of(16, sizes).groups(7, apart=False) == 7


@pytest.mark.parametrize(
    ("family", "samples"),
    [
        ("qwen2_5_vl", TALL),
        ("qwen3_vl", (3,)),
        ("llava", TALL),
        *(
            pytest.param(family, samples, marks=SLOW)
            for family in ("qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "instructblip")
            for samples in ((3,), (3, 0, 1), (3, 0, 1, 0) * 2)
        ),
    ],
)
def test_dealt_images_have_the_features_of_one_device(eight, tmp_path, family, samples):
    small = dict(vision=dict(depth=2, fullatt_block_indexes=[1])) if family == "qwen2_5_vl" else {}
    folder = getattr(tiny, family)(tmp_path / family, **small)
    expected, all_work = eight(features, folder, 1, 1, samples)
    found, own_work = eight(features, folder, 2, 4, samples)
    np.testing.assert_allclose(found, expected, atol=BAR, rtol=0)
    if family != "instructblip":  # whose question's words each image has by itself
        assert own_work < 0.5 * all_work


def test_what_is_too_large_stays_split():
    class Sized:
        shape = (int(LARGEST_WHOLE),)

    assert images_lie_whole({"vision/a_d": Sized, "decoder/b_d": Sized})
    assert not images_lie_whole({"vision/a_d": Sized, "projector/b_d": Sized})
