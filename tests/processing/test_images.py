"""Images from paths and PIL objects, as transformers loads them."""

import pathlib

import numpy as np
import PIL.Image
import pytest
from transformers.image_utils import load_image as reference_load

from tests.processing.conftest import picture
from vlm_jax.errors import PromptError
from vlm_jax.processing.images import load_image


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_orientation_tags_are_applied_to_paths(tmp_path, orientation):
    path = tmp_path / "photo.jpg"
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    picture(60, 40).save(path, exif=exif)
    ours = np.asarray(load_image(path, "Image 0"))
    assert ours.shape == ((60, 40, 3) if orientation in (5, 6, 7, 8) else (40, 60, 3))
    np.testing.assert_array_equal(ours, np.asarray(reference_load(str(path))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_the_pixels_of_the_reference(llava, tmp_path, mode):
    if mode == "I;16":
        pixels = np.arange(50 * 40, dtype=np.uint16).reshape(50, 40) * 30
        image = PIL.Image.fromarray(pixels)
    else:
        image = picture(40, 50, mode="RGBA" if "A" in mode else "RGB").convert(mode)
    assert image.mode == mode
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I;16") else "picture.png")
    image.save(path)
    for source in (str(path), image):
        expected = llava.theirs(images=[source], text="<image>", return_tensors="np")
        batch = llava.ours.batch_texts([[source]], ["<image>"])
        cells = expected["pixel_values"].reshape(3, 4, 14, 4, 14).transpose(1, 3, 0, 2, 4)
        np.testing.assert_array_equal(batch.images.patches_bgue[0, 0], cells.reshape(16, -1))


def test_paths_may_be_strings_or_path_objects_and_the_file_is_closed(llava, tmp_path):
    path = tmp_path / "picture.png"
    picture(40, 50).save(path)
    batches = [llava.ours.batch([[p]], ["hi"]) for p in (path, str(path), picture(40, 50))]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.images.patches_bgue, batches[0].images.patches_bgue)
    path.unlink()


def _bad_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    whole = folder / "whole.png"
    picture(200, 200).save(whole)
    jpeg = folder / "whole.jpg"
    picture(200, 200).save(jpeg)
    files = {
        "truncated": whole.read_bytes()[:300],
        "truncated_jpeg": jpeg.read_bytes()[:900],
        "header": whole.read_bytes()[:20],
        "text": b"this is no picture",
        "empty": b"",
    }
    paths = {}
    for name, content in files.items():
        paths[name] = folder / f"{name}.png"
        paths[name].write_bytes(content)
    return paths


@pytest.mark.parametrize("kind", ["truncated", "truncated_jpeg", "header", "text", "empty"])
def test_a_damaged_file_is_named_with_its_sample(llava, tmp_path, kind):
    path = _bad_files(tmp_path)[kind]
    with pytest.raises(
        PromptError, match=r"Sample 1, image 1 .*is corrupt or not an image"
    ) as caught:
        llava.ours.batch([[], [picture(30, 30), path]], ["hi", "there"])
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named_with_its_sample(llava, tmp_path):
    with pytest.raises(PromptError, match=r"Sample 0, image 0: no such file: .*nowhere\.png"):
        llava.ours.batch([[tmp_path / "nowhere.png"]], ["hi"])
    with pytest.raises(PromptError, match="no such file"):
        llava.ours.batch([[tmp_path]], ["hi"])


def test_the_pixel_budget_is_checked_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    picture(300, 200).save(path)
    monkeypatch.setattr(
        "PIL.ImageOps.exif_transpose", lambda image: pytest.fail("the image was decoded")
    )
    for source in (path, picture(300, 200)):
        with pytest.raises(
            PromptError, match="300x200 = 60000 pixels, more than the budget of 5999"
        ):
            load_image(source, "Sample 3, image 0", max_pixels=59_999)
    monkeypatch.undo()
    assert load_image(path, "Sample 3, image 0", max_pixels=60_000).size == (300, 200)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [1_000, 50_000])
def test_pillows_own_limit_is_our_error(tmp_path, monkeypatch, limit):
    path = tmp_path / "large.png"
    picture(300, 200).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(PromptError, match=r"Sample 0.*large\.png.*pixel limit"):
        load_image(path, "Sample 0, image 0")


@pytest.mark.parametrize("source", [3, None, np.zeros((4, 4, 3), np.uint8), b"bytes"])
def test_other_types_are_refused(llava, source):
    with pytest.raises(PromptError, match="Sample 0, image 0 must be a path or a PIL image"):
        llava.ours.batch([[source]], ["hi"])


def test_a_picture_without_pixels_or_too_thin_is_refused(qwen):
    with pytest.raises(PromptError, match="has no pixels"):
        qwen.ours.batch([[PIL.Image.new("RGB", (0, 5))]], ["hi"])
    with pytest.raises(PromptError, match=r"Sample 0, image 0 .*900x2 .*aspect ratio"):
        qwen.ours.batch([[picture(900, 2)]], ["hi"])
