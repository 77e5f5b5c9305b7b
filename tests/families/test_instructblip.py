"""InstructBLIP: EVA, a Q-Former that reads the question, image tokens before the first word."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import vlm_jax
from convert import export_hf, import_hf
from tests import tiny
from tests.families import parity
from tests.reference import Reference, picture
from tests.tiny_tokenizers import instructblip_tokenizer
from vlm_jax.batch import Kind
from vlm_jax.errors import CheckpointError, ConfigError, PromptError
from vlm_jax.families import parse_config

IMAGES = [[picture(60, 84, 1)], [picture(140, 70, 3)], [picture(30, 170, 6)]]
PROMPTS = ["What is this thing, in some detail please?", "Hello", "Is there a dog?"]


@dataclasses.dataclass(frozen=True)
class Asked(Reference):
    """The torch model; what the Q-Former reads is read off the ids."""

    tokenizers: Any = None

    @classmethod
    def from_folder(cls, folder, dtype="float32"):
        import transformers

        made = super().from_folder(folder, dtype)
        load = transformers.AutoTokenizer.from_pretrained
        tokenizers = load(folder), load(f"{folder}/qformer_tokenizer")
        return dataclasses.replace(made, tokenizers=tokenizers)

    def inputs(self, ids, images):
        ours, theirs = self.tokenizers
        words = ours.decode([i for i in ids if i != self.image_token_id][1:])
        asked = theirs(words, return_tensors="pt")
        return super().inputs(ids, images) | {
            "qformer_input_ids": asked["input_ids"],
            "qformer_attention_mask": asked["attention_mask"],
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.instructblip(tmp_path_factory.mktemp("instructblip") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    return parity.Pair.of(folder, Asked, images=IMAGES, prompts=PROMPTS)


slow = lambda name: pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "check", ["logits", "greedy", slow("prefixes"), slow("batches"), slow("methods")]
)
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


def test_folders_travel_both_ways(tmp_path):
    source = tiny.instructblip(tmp_path / "hf", dtype="bfloat16", shards=3)
    import_hf(source, tmp_path / "ours", progress=False)
    export_hf(tmp_path / "ours", tmp_path / "back", progress=False)
    files = [p.relative_to(source) for p in source.rglob("*") if p.is_file()]
    assert any(path.parts[0] == "qformer_tokenizer" for path in files)
    for path in files:
        assert (tmp_path / "back" / path).read_bytes() == (source / path).read_bytes(), path


def test_image_tokens_come_first_of_all(pair):
    batch = pair.batch()
    ids, kinds = np.asarray(batch.tokens_bt), np.asarray(batch.kinds_bt)
    image = pair.vlm.processor.config.image_token_id
    assert (ids[:, :5] == image).all()
    assert (kinds[:, :5] == Kind.IMAGE).all()
    assert (ids[:, 5] == 2).all()  # the end of a sequence begins it
    for row, length in enumerate(batch.lengths_b):
        assert (kinds[row, 5:length] == Kind.TEXT).all()
        assert (kinds[row, length:] == Kind.PAD).all()


def test_words_and_pixels_are_the_processors(pair, folder):
    import transformers

    theirs = transformers.InstructBlipProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
        instructblip_tokenizer(image=False),  # the processor adds `<image>` itself
        transformers.AutoTokenizer.from_pretrained(folder / "qformer_tokenizer"),
        num_query_tokens=5,
    )
    batch = pair.batch()
    for row, (images, prompt) in enumerate(zip(IMAGES, PROMPTS)):
        made = theirs(images=images, text=prompt, return_tensors="np")
        length = int(batch.lengths_b[row])
        assert batch.tokens_bt[row, :length].tolist() == made["input_ids"][0].tolist()
        words = batch.images.words_bs[row]
        assert words[words >= 0].tolist() == made["qformer_input_ids"][0].tolist()
        cells = made["pixel_values"][0].reshape(3, 4, 14, 4, 14).transpose(1, 3, 0, 2, 4)
        ours = batch.images.patches_bgue[row, 0]
        np.testing.assert_array_equal(ours, cells.reshape(16, -1))


def test_questions_share_no_features(pair):
    """Nor a prefix, in one call or across calls: image tokens have read the question."""
    vlm = pair.vlm
    asked = ["What is it?", "Where is it?"]
    features = [
        np.asarray(vlm.generator.read_images(vlm.params, batch).images.features_bmd)
        for batch in (vlm.processor.batch([IMAGES[0]], [one]) for one in asked)
    ]
    assert np.abs(features[0][:, :5] - features[1][:, :5]).max() > 0.1
    drafts = vlm.processor.drafts([IMAGES[0], IMAGES[0]], asked)
    assert drafts[0].ids[:1] == drafts[1].ids[:1]
    assert drafts[0].image_keys == drafts[1].image_keys
    assert drafts[0].prefix != drafts[1].prefix

    alone = [vlm.generate([IMAGES[0]], [one], max_new_tokens=8)[0] for one in asked]
    keeping = vlm.with_params(vlm.params)
    keeping.keep_prefixes(1 << 28)
    for _ in range(2):
        assert keeping.generate([IMAGES[0]] * 2, asked, max_new_tokens=8) == alone
        assert keeping.generate([IMAGES[0]], asked[1:], max_new_tokens=8) == alone[1:]


def test_a_folder_that_names_no_image_token(pair, tmp_path):
    old = tiny.instructblip(tmp_path / "old", old=True)
    vlm = vlm_jax.load(old, dtype="float32")
    found = vlm.logits(IMAGES, PROMPTS)[0]
    expected = pair.vlm.logits(IMAGES, PROMPTS)[0]
    np.testing.assert_array_equal(found, expected)


def test_what_it_does_not_take(pair, folder, tmp_path):
    with pytest.raises(PromptError, match="has 2 images, but instructblip takes 1 a sample"):
        pair.vlm.generate([IMAGES[0] * 2], ["Which?"])
    with pytest.raises(PromptError, match="words long to the Q-Former, more than its 64 positions"):
        pair.vlm.generate([IMAGES[0]], ["Why? " * 70])
    root = json.loads((folder / "config.json").read_text())
    for text, said in ({"model_type": "opt"}, "'opt' text model"), ({}, "'opt' text model"):
        with pytest.raises(ConfigError, match=said):
            parse_config(root | {"text_config": text})
    narrow = root["qformer_config"] | {"encoder_hidden_size": 32}
    with pytest.raises(ConfigError, match="must be the hidden_size of the vision tower, 48"):
        parse_config(root | {"qformer_config": narrow})
    lost = tmp_path / "lost"
    shutil.copytree(folder, lost)
    shutil.rmtree(lost / "qformer_tokenizer")
    with pytest.raises(CheckpointError, match="qformer_tokenizer"):
        vlm_jax.load(lost)


def test_the_last_text_layer_stays_in_the_checkpoint(pair, folder):
    name = "qformer.encoder.layer.3.intermediate.dense.weight"
    assert name in load_file(folder / "model.safetensors")
    assert "qformer/layers/3/word_mlp/w_up_fd" in pair.vlm.params
