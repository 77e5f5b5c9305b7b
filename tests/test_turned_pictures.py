"""A photograph that was taken on its side is upright wherever it comes in, as from a path."""

import base64
import io
import pathlib

import numpy as np
import PIL.Image
import pytest

from vlm_jax.decoding.named import read_named
from vlm_jax.errors import PromptError
from vlm_jax.evals.pictures import embedded
from vlm_jax.evals.records import Record
from vlm_jax.processing import images
from vlm_jax.processing.images import load_image
from vlm_jax.report.examples import _picture
from vlm_jax.serving.chat import read_image
from vlm_jax.study.looking import _size


@pytest.fixture
def path(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255  # red at the left, which is the top of the turned picture
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(pixels).save(path, exif=exif)
    return path


def is_upright(picture) -> bool:
    pixels = np.asarray(picture.convert("RGB"))
    return pixels.shape == (60, 40, 3) and pixels[0, :, 0].min() > 250 and pixels[-1].max() < 5


def test_it_is_upright_everywhere(path):
    text = base64.b64encode(path.read_bytes()).decode()
    assert is_upright(load_image(path, "The image"))
    assert is_upright(read_image(f"data:image/png;base64,{text}", "here"))
    assert is_upright(
        embedded(Record(pathlib.Path("t.parquet"), 1, {"image": {"bytes": path.read_bytes()}}))
    )
    assert _size(path) == (40, 60)
    shown = _picture(path, 512).partition("base64,")[2]
    assert is_upright(PIL.Image.open(io.BytesIO(base64.b64decode(shown))))


def test_a_pil_image_is_left_alone_which_is_said_once(path, caplog):
    images._warn_of_orientation.cache_clear()
    for _ in range(2):
        assert load_image(PIL.Image.open(path), "The image").size == (60, 40)
    assert caplog.text.count("PIL.ImageOps.exif_transpose(image) turns it.") == 1


def test_agla_masks_it_upright(path):
    seen = []

    def mask(image, prompt):
        seen.append(image)
        return np.ones((image.height, image.width), np.uint8)

    (view,) = read_named("agla", {"mask": mask}).views([path], "What is this?")
    assert is_upright(seen[0])
    assert is_upright(view.images[0])


def test_a_picture_that_is_too_large_is_not_looked_at(monkeypatch):
    plain = io.BytesIO()
    PIL.Image.new("RGB", (60, 40)).save(plain, "PNG")
    text = base64.b64encode(plain.getvalue()[:-40]).decode()  # whose pixels cannot be decoded
    monkeypatch.setattr("vlm_jax.processing.images.MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with pytest.raises(PromptError, match="more than the budget"):
        read_image(f"data:image/png;base64,{text}", "here")
