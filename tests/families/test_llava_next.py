"""LLaVA-NeXT: tiles, the covered part of their map, the newline."""

import json

import numpy as np
import pytest
from transformers.image_processing_utils import select_best_resolution

from tests import tiny
from tests.families import parity
from tests.reference import picture
from vlm_jax.batch import Kind
from vlm_jax.errors import CheckpointError
from vlm_jax.processing import Processor
from vlm_jax.processing.cutters.tiles import _unpadded

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.llava_next(tmp_path_factory.mktemp("next") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    return parity.Pair.of(folder)


@pytest.mark.parametrize("check", parity.checks("logits", "greedy", "batches", "kinds"))
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


@pytest.mark.parametrize(
    ("width", "height", "best", "kept", "tokens"),
    [
        (640, 480, (672, 672), (36, 48), 2340), (480, 640, (672, 672), (48, 36), 2352),
        (640, 427, (672, 672), (32, 48), 2144), (336, 336, (336, 672), (24, 24), 1176),
        (1280, 720, (672, 672), (28, 48), 1948), (1000, 300, (336, 1008), (22, 72), 2182),
        (400, 2000, (1008, 336), (72, 14), 1656), (1024, 899, (672, 672), (42, 48), 2634),
        (50, 40, (336, 672), (24, 30), 1320), (3000, 10, (336, 1008), (0, 72), 576),
    ],
)  # fmt: skip
def test_token_counts_at_the_released_size(width, height, best, kept, tokens):
    assert tuple(select_best_resolution((height, width), PINPOINTS)) == best
    grid, slots = _unpadded(width, height, best[0] // 336, best[1] // 336, 24)
    assert (grid[0], grid[1] - 1) == kept
    assert len(slots) == tokens
    assert (slots < 0).sum() == kept[0]


@pytest.mark.parametrize("size", [(100, 100), (200, 90), (60, 200), (56, 56), (113, 40), (300, 4)])
def test_pixels_and_packing_are_the_references(pair, size):
    import torch
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    image = picture(*size)
    made = pair.reference.image_processor(images=[image], return_tensors="pt")
    batch = pair.vlm.processor.batch([[image]], ["What?"])
    tiles = made["pixel_values"][0].numpy()
    ours = batch.images.patches_bgue[0, : len(tiles)]
    cells = tiles.reshape(len(tiles), 3, 4, 14, 4, 14).transpose(0, 2, 4, 1, 3, 5)
    np.testing.assert_array_equal(ours, cells.reshape(len(tiles), 16, -1))
    assert not batch.images.patches_bgue[0, len(tiles) :].any()

    # The reference packs features; of features that are their own numbers it packs our slots.
    count = image_size_to_num_patches(size[::-1], tiny.PINPOINTS, 56)
    assert count == len(tiles)
    numbers = torch.arange(count * 16.0).reshape(count, 16, 1)
    packed, _ = pair.reference.model.model.pack_image_features(
        [numbers], made["image_sizes"], "default", image_newline=torch.tensor([-1.0])
    )
    is_image = batch.kinds_bt[0] == Kind.IMAGE
    slots_m = batch.slots_bt[0][is_image]
    np.testing.assert_array_equal(slots_m, packed[0][:, 0].numpy())
    regions_m4 = pair.vlm.processor.regions(*size)
    np.testing.assert_array_equal(np.isnan(regions_m4).any(1), slots_m < 0)
    for view in (regions_m4[:16], regions_m4[16:]):
        cells_m4 = view[~np.isnan(view).any(1)]
        sides_m2 = cells_m4[:, 2:] - cells_m4[:, :2]
        # Both cover the picture once; of the flattest pictures no cell of the second is left.
        np.testing.assert_allclose(sides_m2.prod(1).sum(), 1 if len(cells_m4) else 0)
    assert not np.isnan(regions_m4[:16]).any()


def test_the_newline_matters_and_padding_of_groups_does_not_move_it(pair):
    vlm, batch = pair.vlm, pair.batch()
    assert (batch.slots_bt < 0).any()
    other = vlm.params | {"projector/newline_d": 0 * vlm.params["projector/newline_d"]}
    found = np.asarray(vlm.generator.logits(other, batch))
    assert np.abs(found - pair.logits(batch)).max() > 0.01
    # The sample without an image has no newline.
    alone = pair.batch([2])
    np.testing.assert_array_equal(
        np.asarray(vlm.generator.logits(other, alone)), pair.logits(alone)
    )


def test_a_processor_of_other_tiles_is_refused(folder, tmp_path):
    other = tiny.llava_next(tmp_path / "hf")
    path = other / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"image_grid_pinpoints": [[56, 112]]}))
    with pytest.raises(CheckpointError, match=r"image_grid_pinpoints .* must be equal"):
        Processor.from_folder(other)


def test_the_order_of_tokens_by_hand():
    """Tiles of 2 x 2 tokens, an image that covers the upper half of 2 x 1 tiles: see `AnyRes`."""
    grid, slots = _unpadded(400, 100, 1, 2, 2)
    assert grid == (2, 5)
    assert slots.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
