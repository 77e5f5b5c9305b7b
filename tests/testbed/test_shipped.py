import json
import pathlib

import numpy as np
import pytest

import vlm_jax
from tests.reference import Reference, prompt_ids
from vlm_jax import checkpoint, models, testbed
from vlm_jax.testbed import language
from vlm_jax.testbed.architecture import model_config
from vlm_jax.testbed.measure import measure
from vlm_jax.testbed.recipe import Recipe
from vlm_jax.testbed.suites.testbed_chair import TestbedChair

MODELS = pathlib.Path(testbed.__file__).parent / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/config.json"))


every = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


# Generation differs between families, and every folder was measured when it was made.
@pytest.fixture(
    scope="module", params=[f for f in FOLDERS if f.name.endswith("-0")], ids=lambda path: path.name
)
def first(request):
    return request.param


@pytest.fixture(scope="module")
def vlm(first):
    return vlm_jax.load(first)


def read_recipe(folder):
    return json.loads((folder / "recipe.json").read_text())


def test_three_seeds_of_both_families_ship():
    seeds = {f"{family}-{seed}" for family in ("llava", "qwen2_5_vl") for seed in range(3)}
    assert seeds == {path.name for path in FOLDERS}


@every
def test_folders_are_small_and_say_how_they_were_made(folder):
    recipe = read_recipe(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    family = json.loads((folder / "config.json").read_text())["model_type"]
    assert Recipe.from_mapping(recipe["recipe"]).family == family
    assert folder.name == f"{family}-{recipe['seed']}"


@every
def test_folders_load_as_their_architecture(folder):
    opened = checkpoint.open_folder(folder)
    assert opened.config == model_config(opened.config.family)
    params = opened.load()
    shapes = models.abstract(opened.config)[1]
    assert {name: value.shape for name, value in params.items()} == {
        name: value.shape for name, value in shapes.items()
    }
    assert {value.dtype for value in params.values()} == {np.dtype(np.float16)}


@every
def test_the_stored_metrics_are_in_range(folder):
    metrics = read_recipe(folder)["measured"]["metrics"]
    assert 0.4 <= metrics["chair_broken"]["C_S"] <= 0.75
    assert 0.15 <= metrics["chair_normal"]["C_S"] <= 0.40
    assert min(metrics[name]["recall"] for name in ("chair_normal", "chair_broken")) > 0.8
    assert metrics["pope_random_normal"]["F1"] > 0.85


def test_it_hallucinates_the_expected_partner(vlm):
    family = vlm.config.family
    found = measure(vlm, [TestbedChair("broken", "test", 100, family=family)])["chair_broken"]
    assert 0.35 < found["C_S"] < 0.85
    assert found["C_S/partner"] > found["C_S/other"]
    assert found["recall"] > 0.75


def test_torch_gives_the_same_captions_and_answers(first, vlm):
    family = vlm.config.family
    examples = list(TestbedChair("broken", "dev", 5, family=family).examples())
    images = [list(example.images) for example in examples]
    images += images[:2]
    prompts = [language.CAPTION_PROMPT] * 5 + [language.question(c) for c in (1, 12)]
    ours = list(vlm.answer(images, prompts, max_new_tokens=40))
    assert all(answer.ended for answer in ours)
    assert len({answer.text for answer in ours[:5]}) > 2
    torch_model = Reference.from_folder(first)
    stops = vlm.processor.stop_ids
    for answer in ours:
        image, prompt = images[answer.index], prompts[answer.index]
        ids = prompt_ids(vlm.processor.batch([image], [prompt]), 0)
        made = torch_model.greedy(ids, image, 40, stops)
        assert tuple(made[:-1]) == answer.tokens
        assert made[-1] in stops


def test_prompts_hold_no_unknown_word(vlm):
    batch = vlm.processor.batch(None, [language.CAPTION_PROMPT, language.question(4)])
    unknown = vlm.processor.tokenizer.unk_token_id
    assert not np.isin(unknown, batch.tokens_bt)
