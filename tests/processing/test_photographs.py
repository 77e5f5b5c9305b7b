"""Photographs, as people keep them, through both image processors and transformers' own.

They are those that scikit-image brings along: a portrait, a cup, a cat, a rocket, the eye's retina.
"""

import pathlib

import numpy as np
import PIL.Image
import pytest

from tests.processing.conftest import row

data = pathlib.Path(pytest.importorskip("skimage.data", reason="no scikit-image").__file__).parent


def _write(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """A file of one kind, as a camera, a scanner, a printer's or a phone would leave it."""
    plain = {"jpeg": "rocket.jpg", "large": "retina.jpg", "png": "coffee.png", "grey": "camera.png"}
    if kind in plain:
        return data / plain[kind]
    picture = PIL.Image.open(data / "chelsea.png")
    if kind == "exif":  # taken with the camera on its side
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        picture.save(folder / "turned.jpg", exif=exif)
        return folder / "turned.jpg"
    if kind == "cmyk":
        picture.convert("CMYK").save(folder / "printed.jpg")
        return folder / "printed.jpg"
    assert kind == "panorama"
    strip = np.concatenate([np.asarray(picture)[90:210]] * 5, axis=1)
    PIL.Image.fromarray(strip).save(folder / "panorama.jpg")
    return folder / "panorama.jpg"


@pytest.mark.parametrize("kind", ["jpeg", "large", "png", "grey", "exif", "cmyk", "panorama"])
def test_a_photograph_has_the_pixels_of_the_reference(llava, qwen, tmp_path, kind):
    path = str(_write(kind, tmp_path))
    expected = llava.reference([path], "What is this?")
    sample = row(llava.ours.batch([[path]], ["What is this?"]), 0)
    cells = expected["pixel_values"].reshape(3, 4, 14, 4, 14).transpose(1, 3, 0, 2, 4)
    np.testing.assert_array_equal(sample["patches"][0], cells.reshape(16, -1))
    np.testing.assert_array_equal(sample["tokens"], expected["input_ids"][0])

    expected = qwen.reference([path], "What is this?")
    batch = qwen.ours.batch([[path]], ["What is this?"])
    np.testing.assert_array_equal(row(batch, 0)["tokens"], expected["input_ids"][0])
    slots = batch.slots_bt[0, batch.tokens_bt[0] == qwen.config.image_token_id]
    units = batch.images.patches_bgue[0].reshape(-1, 4, 1176)
    np.testing.assert_array_equal(
        units[slots], expected["pixel_values"].astype(np.float32).reshape(-1, 4, 1176)
    )


def test_a_side_that_was_turned_is_another_picture(llava, tmp_path):
    upright = llava.ours.batch([[str(data / "chelsea.png")]], ["hi"]).images.patches_bgue
    turned = llava.ours.batch([[str(_write("exif", tmp_path))]], ["hi"]).images.patches_bgue
    assert np.abs(upright - turned).mean() > 0.1
