"""Images from paths and PIL objects, as transformers loads them."""

import inspect
import io
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image as reference_load

from tests.processing.conftest import picture
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.foreign import MAX_SCANS
from vlm_jax.processing import Processor
from vlm_jax.processing.cutters.base import to_rgb
from vlm_jax.processing.cutters.square import largest_size
from vlm_jax.processing.images import FORMATS, image_size, load_image, upright


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
        pixels = np.arange(50 * 40, dtype=np.uint16).reshape(50, 40) // 8
        image = PIL.Image.fromarray(pixels)
    else:
        image = picture(40, 50, mode="RGBA" if "A" in mode else "RGB").convert(mode)
    assert image.mode == mode
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I;16") else "picture.png")
    image.save(path)
    for source in (str(path), image):
        expected = llava.theirs(images=[source], text="<image>", return_tensors="np")
        batch = llava.ours.batch([[source]], ["hi"])
        cells = expected["pixel_values"].reshape(3, 4, 14, 4, 14).transpose(1, 3, 0, 2, 4)
        np.testing.assert_array_equal(batch.images.patches_bgue[0, 0], cells.reshape(16, -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_transparency_is_laid_over_white_as_transformers_lays_it(mode):
    if "return_numpy" not in inspect.signature(convert_to_rgb).parameters:
        pytest.skip("transformers before 5.21 drops transparency")
    image = picture(40, 50, mode="RGBA" if mode != "RGB" else mode).convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    expected = convert_to_rgb(image, return_numpy=True)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)


@pytest.mark.parametrize(
    "kind", ["grey16.png", "grey16.tif", "shares.tif", "nan.tif", "grey32.tif"]
)
def test_greys_that_would_be_white_or_black_are_refused(tmp_path, kind):
    greys = {
        "grey16": np.linspace(0, 65535, 600).astype(np.uint16),
        "shares": np.linspace(0, 1, 600).astype(np.float32),
        "nan": np.full(600, np.nan, np.float32),
        "grey32": np.linspace(-9, 300, 600).astype(np.int32),
    }[kind.partition(".")[0]]
    image = PIL.Image.fromarray(greys.reshape(20, 30))
    image.save(tmp_path / kind)
    for source in (image, tmp_path / kind):
        with pytest.raises(PromptError, match=r"greys of more than 8 bits.*save it with 8 bits"):
            load_image(source, "Image 0")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_of_a_turned_picture_is_that_of_its_pixels(tmp_path, suffix):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"turned.{suffix}"
    picture(40, 60).save(path, exif=exif)
    assert image_size(path, "Image 0") == load_image(path, "Image 0").size == (60, 40)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_pictures_is_read(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    still, *more = (PIL.Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue"))
    still.save(path, save_all=True, append_images=more)
    red, green, blue = np.asarray(load_image(path, "Image 0")).mean((0, 1))
    assert red > 250
    assert max(green, blue) < 5


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
    with pytest.raises(PromptError, match="is a folder; give the images in it"):
        llava.ours.batch([[tmp_path]], ["hi"])
    for url in ("https://example.org/cat.jpg", "data:image/png;base64," + "A" * 10**6):
        with pytest.raises(PromptError, match="is a URL, and nothing is fetched") as caught:
            llava.ours.batch([[url]], ["hi"])
        assert len(str(caught.value)) < 200


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


_SCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
(FILE) (w) file closefile
%%EOF
"""


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps"])
def test_a_picture_that_is_a_program_is_not_run(llava, tmp_path, monkeypatch, name):
    import PIL.EpsImagePlugin

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was run"))
    path = tmp_path / name
    path.write_bytes(_SCRIPT)
    with pytest.raises(PromptError, match=r"not an image of a format .*JPEG, PNG, WEBP, GIF, BMP"):
        llava.ours.batch([[path]], ["hi"])
    with pytest.raises(PromptError, match=r"is an EPS file, which is a program; give one of JPEG"):
        llava.ours.batch([[PIL.Image.open(path)]], ["hi"])


def scans(count: int) -> bytes:
    """A JPEG with `count` further passes over its pixels, some 100 bytes each."""
    held = io.BytesIO()
    picture(32, 32).convert("L").save(held, "JPEG", progressive=True)
    first, *others = held.getvalue()[:-2].split(b"\xff\xda")
    return b"\xff\xda".join([first, *others, *[others[1]] * count]) + b"\xff\xd9"


def test_a_jpeg_of_passes_without_end_is_refused_before_it_is_decoded(llava, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(scans(MAX_SCANS))
    for source in (path, PIL.Image.open(path), PIL.Image.open(io.BytesIO(path.read_bytes()))):
        with pytest.raises(PromptError, match="is a JPEG of more than 256 scans"):
            llava.ours.batch([[source]], ["hi"])
    with pytest.raises(PromptError, match="is a JPEG of more than 256 scans"):
        upright(PIL.Image.open(path), "A picture")
    path.write_bytes(scans(MAX_SCANS // 2))
    assert load_image(path, "Sample 0, image 0").size == (32, 32)


@pytest.mark.parametrize("kind", ["PPM", "EPS", "ICO", "TGA", "PCX", "SGI", "DDS", "PDF", "XBM"])
def test_only_the_listed_formats_are_read(tmp_path, kind):
    path = tmp_path / "photo.png"
    picture(32, 32).convert("1" if kind == "XBM" else "RGB").save(path, kind)
    with pytest.raises(PromptError, match=r"photo\.png.*corrupt or not an image of a format"):
        load_image(path, "Sample 0, image 0")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format_is_read_whatever_its_name(tmp_path, kind):
    path = tmp_path / "photo"
    picture(32, 24).save(path, kind)
    assert load_image(path, "Sample 0, image 0").size == (32, 24)
    assert image_size(path, "Sample 0, image 0") == (32, 24)


def test_a_pipe_is_not_waited_for_and_a_video_is_called_one(llava, tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")
    with pytest.raises(PromptError, match=r"photo\.jpg is not a regular file"):
        llava.ours.batch([[tmp_path / "photo.jpg"]], ["hi"])
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41")
    with pytest.raises(PromptError, match=r"clip\.mp4\) is a video, which is not supported"):
        llava.ours.batch([[tmp_path / "clip.mp4"]], ["hi"])


@pytest.mark.parametrize("path", ["a\0b.png", "\udcff\ud800.png", "x" * 5000, ""])
def test_a_path_that_is_none_is_one_error(llava, path):
    with pytest.raises(PromptError, match="Sample 0, image 0"):
        llava.ours.batch([[path]], ["hi"])


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (3, 80_000)])
def test_a_line_that_would_be_huge_once_resized_is_refused(llava, tmp_path, monkeypatch, size):
    path = tmp_path / "line.png"
    PIL.Image.new("RGB", size).save(path)
    monkeypatch.setattr("vlm_jax.processing.reader.load_image", lambda *_: pytest.fail("decoded"))
    ours = Processor.from_folder(llava.folder, llava.config, max_image_pixels=80_000_000)
    for source in (path, PIL.Image.open(path)):
        with pytest.raises(PromptError, match=r"Sample 0, image 0 .*is resized to .* pixels, more"):
            ours.batch([[source]], ["hi"])


def test_the_limit_of_pixels_is_an_argument(llava):
    ours = Processor.from_folder(llava.folder, llava.config, max_image_pixels=60_000)
    ours.batch([[picture(240, 250)]], ["hi"])
    with pytest.raises(PromptError, match="more than the budget of 60000"):
        ours.batch([[picture(240, 251)]], ["hi"])
    for value in (0, -1, 2.5, "many", 10**9):
        with pytest.raises(ConfigError, match="max_image_pixels must be a whole number from 1 to"):
            Processor.from_folder(llava.folder, llava.config, max_image_pixels=value)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 40}, "do_center_crop": False},
        {"size": {"shortest_edge": 40, "longest_edge": 90}, "do_center_crop": False},
        {"size": {"height": 70, "width": 30}, "do_center_crop": False},
        {"do_resize": False, "crop_size": {"height": 64, "width": 80}},
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 64, "width": 80}},
    ],
)
@pytest.mark.parametrize("size", [(30, 70), (95, 20), (64, 64)])
def test_the_largest_size_bounds_what_the_image_processor_makes(settings, size):
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    for pad in (False, True):
        processor = LlavaImageProcessorPil(**settings, do_pad=pad)
        made = processor(images=[picture(*size)], return_tensors="np")["pixel_values"]
        wide, high = largest_size(processor, *size)
        assert wide * high >= made.shape[-1] * made.shape[-2]
        if not processor.do_center_crop and not pad:
            largest = max(size[0] * size[1], made.shape[-1] * made.shape[-2])
            assert wide * high <= 1.05 * largest


def test_an_extent_is_bounded_before_its_windows_are_laid_out(qwen):
    ours = Processor.from_folder(qwen.folder, qwen.config, max_image_pixels=2_000)
    with pytest.raises(PromptError, match=r"30x30 pixels\) is resized to .* budget of 2000"):
        ours.batch([[picture(30, 30)]], ["hi"])
