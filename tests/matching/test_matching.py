"""Scores of texts and an image, and what is relevant of it, equal transformers'."""

import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file

from tests.matching.conftest import POSITIONS, make
from tests.reference import picture
from vlm_jax.errors import CheckpointError, ConfigError, PromptError
from vlm_jax.matching import open_matcher
from vlm_jax.matching.blip import BlipMatcher, smooth

TEXTS = ["a cat.", "two dogs on a mat, and much more behind", "?"]
IMAGE = picture(90, 60, 1)


def theirs(folder, kind: str, texts) -> np.ndarray:
    """Cosines by transformers' own processor and model."""
    torch = pytest.importorskip("torch")
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt"
    )
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images=[IMAGE], return_tensors="pt"
    )["pixel_values"]
    names = {"clip": "CLIPModel", "siglip": "SiglipModel"}
    model = getattr(transformers, names[kind]).from_pretrained(folder).eval()
    with torch.no_grad():
        # SigLIP was trained with its padding seen.
        mask = {} if kind == "siglip" else {"attention_mask": words["attention_mask"]}
        out = model(input_ids=words["input_ids"], pixel_values=pixels, **mask)
    return (out.text_embeds @ out.image_embeds.T)[:, 0].numpy()


@pytest.mark.parametrize(
    ("kind", "end"),
    [("clip", None), ("siglip", None), pytest.param("clip", 2, marks=pytest.mark.slow)],
)
def test_cosines_equal_the_reference(tmp_path, kind, end):
    folder = make(tmp_path / kind, kind, end)
    matcher = open_matcher(folder)
    found = matcher(TEXTS, IMAGE)
    expected = theirs(folder, kind, TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(matcher(TEXTS[:1], IMAGE), expected[:1], atol=2e-5)
    assert not np.allclose(matcher(TEXTS, picture(60, 90, 2)), expected, atol=1e-3)
    assert matcher([], IMAGE) == []


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> BlipMatcher:
    found = open_matcher(make(tmp_path_factory.mktemp("blip") / "blip", "blip"))
    assert isinstance(found, BlipMatcher)
    return found


def test_blip_and_its_gradient_equal_the_reference(blip):
    """Cosines, logits of matching, and the map of attention times its positive gradient."""
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.BlipForImageTextRetrieval.from_pretrained(blip.folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(blip.folder, backend="pil")(
        images=[IMAGE], return_tensors="pt"
    )["pixel_values"]
    text, kept = "is there a cat?", {}
    ids = torch.tensor([blip.ids(text)])
    mask = torch.ones_like(ids)
    cosine = model(ids, pixels, use_itm_head=False, attention_mask=mask).itm_score.item()
    assert blip([text], IMAGE) == pytest.approx([cosine], abs=2e-5)

    def keep(module, args, output):
        output[1].retain_grad()
        kept["probabilities"] = output[1]

    cross = model.text_encoder.encoder.layer[1].crossattention.self
    with torch.enable_grad():
        hook = cross.register_forward_hook(keep)
        ids[:, 0] = model.config.text_config.vocab_size - 1
        out = model(ids, pixels, attention_mask=mask).itm_score[0]
        hook.remove()
        out[1].backward()
    probabilities = kept["probabilities"]
    cam = (probabilities * probabilities.grad.clamp(min=0))[0].mean(0)[1:-1, 1:].mean(0)
    logits, relevance = blip.relevance(IMAGE, text)
    np.testing.assert_allclose(logits, out.detach().numpy(), atol=5e-5)
    expected = cam.detach().numpy().reshape(relevance.shape)
    assert expected.max() > 0
    np.testing.assert_allclose(relevance / expected.max(), expected / expected.max(), atol=2e-3)


def test_a_mask_keeps_the_share_that_the_cosine_says(blip, monkeypatch):
    monkeypatch.setattr(BlipMatcher, "__call__", lambda self, texts, image: [0.5])
    mask = blip.mask(IMAGE, "A cat!")
    assert mask.shape == (IMAGE.height, IMAGE.width)
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() == pytest.approx(0.75, abs=2e-3)
    peak = smooth(np.eye(4), (40, 60))
    assert (peak.min(), peak.max()) == (0, 1)
    assert peak[5, 5] > peak[5, 50]


def test_folders_that_are_none_are_refused(tmp_path, blip):
    folder = make(tmp_path / "clip", "clip")
    config = json.loads((folder / "config.json").read_text())
    for change, error, message in (
        ({"model_type": "sigclip"}, ConfigError, "no matching model 'sigclip'"),
        ({"projection_dim": 19}, CheckpointError, "does not fit config.json"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=message):
            open_matcher(folder)
    for kind in ("clip", "siglip", "blip"):
        for field, value in (("vocab_size", 0), ("layer_norm_eps", -1.0)):
            change = {"model_type": kind, "text_config": config["text_config"] | {field: value}}
            (folder / "config.json").write_text(json.dumps(config | change))
            with pytest.raises(ConfigError, match=field):
                open_matcher(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_matcher(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_matcher(folder)


def test_a_picture_of_any_size_is_read(blip):
    assert len(blip(TEXTS, PIL.Image.new("RGB", (3, 200)))) == len(TEXTS)


def test_parts_that_do_not_fit_are_one_error(tmp_path):
    folder = make(tmp_path / "clip", "clip")
    matcher = open_matcher(folder)
    with pytest.raises(PromptError, match=r"becomes 56x16800000 = .* more than the budget"):
        matcher(TEXTS, PIL.Image.new("RGB", (1, 300_000)))
    matcher.image_processor.image_mean = [0.5, 0.5]
    with pytest.raises(PromptError, match="was refused by the image processor: mean must have 3"):
        matcher(TEXTS, IMAGE)
    assert matcher.checked(np.array([[8]]), 9).tolist() == [[8]]
    with pytest.raises(CheckpointError, match=r"makes a token 9, but config\.json"):
        matcher.checked(np.array([[8, 9]]), 9)
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight is not finite"):
        open_matcher(folder)
