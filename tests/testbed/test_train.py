import dataclasses
import json
import types

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from configs import train_llava, train_qwen2_5_vl
from vlm_jax import checkpoint, models
from vlm_jax.errors import CheckpointError, ConfigError, UserError
from vlm_jax.files import alone_in
from vlm_jax.jobs import train as train_job
from vlm_jax.processing import Processor
from vlm_jax.study.request import Request
from vlm_jax.testbed import architecture, language, packing, pixels
from vlm_jax.testbed.companions import write_companions
from vlm_jax.testbed.recipe import Recipe, StageRecipe
from vlm_jax.testbed.scenes import SceneRules, draw_scenes
from vlm_jax.testbed.train import _Losses, steps_left, train

FAMILIES = sorted(name for name, each in architecture.FAMILIES.items() if not each.released)


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    """One layer a tower: the same programs, compiled in a fraction of the time."""
    for name, build in list(architecture._CONFIGS.items()):

        def shallow(family, build=build):
            config = build(family)
            config["text_config"]["num_hidden_layers"] = 1
            vision = config["vision_config"]
            vision["depth" if "depth" in vision else "num_hidden_layers"] = 1
            if "fullatt_block_indexes" in vision:
                vision["fullatt_block_indexes"] = [0]
            return config

        monkeypatch.setitem(architecture._CONFIGS, name, shallow)


def tiny(family="llava", **changes):
    recipe = Recipe(
        family=family,
        vision=StageRecipe(steps=4, batch=4, learning_rate=1e-3, warmup=1),
        text=StageRecipe(steps=3, batch=2, learning_rate=1e-3, warmup=1),
        language=StageRecipe(steps=5, batch=2, learning_rate=1e-3, warmup=1),
        scenes=SceneRules(size=architecture.get_family(family).image_size),
        checkpoint_every=2,
    )
    return dataclasses.replace(recipe, **changes)


def make(folder):
    folder.mkdir()
    return folder


class Killed(Exception):
    pass


def kill_at(stage, step):
    def report(name, done, taken, loss):
        if (name, done) == (stage, step):
            raise Killed

    return report


def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(tmp_path):
    recipe = tiny()
    start = models.init(architecture.model_config(recipe.family), 1)
    whole = train(recipe, 1, make(tmp_path / "whole")).params
    with pytest.raises(Killed):
        train(recipe, 1, make(tmp_path / "killed"), kill_at("language", 4), report_every=1)
    assert steps_left(recipe, 1, tmp_path / "whole") == 0
    assert steps_left(recipe, 1, tmp_path / "killed") == 3
    taken = []
    resumed = train(recipe, 1, tmp_path / "killed", lambda *told: taken.append(told[2])).params
    assert sum(taken) == 3
    assert resumed.keys() == whole.keys() == start.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    idle = {"vision/post_norm_bias_d"}  # checkpoints carry it, features do not pass it
    still = {name for name in start if np.array_equal(whole[name], start[name])}
    assert still <= idle


def test_a_state_of_another_run_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tiny(), 0, tmp_path, kill_at("vision", 3), report_every=1)
    with pytest.raises(ConfigError, match="another recipe or seed"):
        train(tiny(), 1, tmp_path)
    with pytest.raises(ConfigError, match="another recipe or seed"):
        train(tiny(question_pairs=2), 0, tmp_path)
    state = tmp_path / "training.safetensors"
    whole = state.read_bytes()
    flipped, place = bytearray(whole), bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    place[whole.index(b'"stage') + 9] ^= 1
    for content in (whole[:50], b"", bytes(len(whole)), bytes(flipped), bytes(place)):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable training state"):
            train(tiny(), 0, tmp_path)
    state.unlink()
    state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"training\.safetensors: it is a link"):
        train(tiny(), 0, tmp_path, report_every=1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_that_diverges_says_so():
    stage = types.SimpleNamespace(name="text", recipe=tiny().text)
    with pytest.raises(ConfigError, match=r"stage text is nan at step 2; lower recipe\.text"):
        _Losses(stage, None, every=2).add(2, np.float32("nan"))


def test_recipes_survive_json_and_refuse_misspellings():
    recipe = tiny()
    assert Recipe.from_mapping(recipe.to_json()) == recipe
    with pytest.raises(ConfigError, match="recipe has no setting 'question_pair'"):
        Recipe.from_mapping({"question_pair": 1})
    with pytest.raises(ConfigError, match=r"recipe\.vision has no setting 'lr'"):
        Recipe.from_mapping({"vision": {"lr": 1}})
    with pytest.raises(ConfigError, match=r"Set recipe\.vision\.batch"):
        Recipe.from_mapping({"vision": {"steps": 1}})
    stage = {"steps": 1, "batch": 1, "learning_rate": 1}
    wrong: dict[str, Any] = {
        "steps": 0,
        "batch": 2.5,
        "learning_rate": 0,
        "warmup": "x",
        "b2": float("nan"),
    }
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"config\.recipe\.text\.{name} must be a "):
            Recipe.from_mapping({"text": {**stage, name: value}}, "config.recipe")
    rules = {
        "size": "56",
        "pair_weights": [0.5, 0.2, 0.2],
        "noise": 2,
        "p_co": None,
        "min_object": 0,
    }
    for name, value in rules.items():
        with pytest.raises(ConfigError, match=rf"recipe\.scenes.*{name}"):
            Recipe.from_mapping({"scenes": {name: value}})
    with pytest.raises(ConfigError, match=r"recipe\.scenes must be a mapping"):
        Recipe.from_mapping({"scenes": 3})
    with pytest.raises(ConfigError, match="scenes are 64 pixels wide"):
        Recipe(scenes=SceneRules(size=64))
    with pytest.raises(ConfigError, match="seed must be 0 or more"):
        train(recipe, -1, ".")


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_turns_give_the_logits_of_each_turn_alone(name, tmp_path):
    family, config = architecture.get_family(name), architecture.model_config(name)
    write_companions(tmp_path, family)
    processor = Processor.from_folder(tmp_path)
    drawn = draw_scenes("normal", "dev", 0, np.arange(2), SceneRules(size=family.image_size))
    pictures = [PIL.Image.fromarray(image) for image in drawn.images]
    prompts = [language.CAPTION_PROMPT, language.question(3)]
    rows = [[(prompt, "yes", 1.0) for prompt in prompts]] * 2
    prefix = packing.PackedPrefix.read(processor, family, pictures[0])
    turns = packing.pack_turns(processor.tokenizer, family, rows, 30)
    graphdef, _ = models.abstract(config)
    params = models.init(config, 0)

    @jax.jit
    def packed(params, images):
        vlm = models.merge(graphdef, params)
        hidden = packing.turn_hidden(vlm, prefix, turns, packing.image_features(vlm, images))
        return vlm.decoder.logits(hidden)

    logits = np.asarray(packed(params, pixels.cut_images(drawn.images, config)[0]))
    forward = jax.jit(lambda params, batch: models.merge(graphdef, params).forward(batch))
    for number, prompt in enumerate(prompts):
        batch, _ = processor.batch_answers([[p] for p in pictures], [prompt] * 2, ["yes"] * 2)
        alone = np.asarray(forward(params, batch))
        end = int(batch.lengths_b[0])
        in_turn = turns.turns_bu[0] == number
        start = end - int(in_turn.sum())
        np.testing.assert_allclose(logits[:, in_turn], alone[:, start:end], atol=2e-5)


def test_the_loss_is_the_weighted_mean_over_answers():
    logits = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32)
    turns = packing.Turns(
        tokens_bu=np.zeros((1, 3), np.int32),
        turns_bu=np.zeros((1, 3), np.int32),
        offsets_bu=np.arange(3)[None],
        targets_bu=np.array([[1, 2, 3]]),
        weights_bu=np.array([[0.0, 3.0, 1.0]], np.float32),
    )
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(3 * log_probs[0, 1, 2] + log_probs[0, 2, 3]) / 4
    vlm = types.SimpleNamespace(decoder=types.SimpleNamespace(logits=lambda hidden: hidden))
    for answered in (0, 2, 3):
        loss = packing.weighted_loss(vlm, logits, turns, answered)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def request(target, recipe, **settings):
    config = train_llava.get_config()
    config.recipe = ConfigDict(recipe.to_json())
    config.compile_cache = jax.config.jax_compilation_cache_dir
    config.measure = 0
    config.update(settings)
    return Request(config=config, target=target)


def test_the_job_writes_a_folder_that_says_how_it_was_made(tmp_path, capsys):
    target = tmp_path / "model"
    train_job.run(request(target, tiny(), seed=3))
    assert "Trained model" in capsys.readouterr().out
    opened = checkpoint.open_folder(target)
    facts = json.loads((target / "recipe.json").read_text())
    assert Recipe.from_mapping(facts["recipe"]) == tiny()
    assert facts["seed"] == 3
    assert set(facts["losses"]) == {"vision", "text", "language"}
    state = train(tiny(), 3, tmp_path / "model.training").params
    for name, value in opened.load().items():
        np.testing.assert_array_equal(value, state[name].astype(np.float16), err_msg=name)
    with pytest.raises(CheckpointError, match="exists already"):
        train_job.run(request(target, tiny()))


def test_a_second_run_on_one_state_is_refused(tmp_path):
    state = tmp_path / "model.training"
    with alone_in(state), pytest.raises(UserError, match=r"another run is writing .*\.training"):
        train_job.run(request(tmp_path / "model", tiny()))
    assert not any(state.iterdir())
    (tmp_path / "other.training").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*other\.training: File exists"):
        train_job.run(request(tmp_path / "other", tiny()))


def test_the_config_is_the_recipe_and_mistakes_in_it_are_errors(tmp_path):
    config = train_llava.get_config()
    assert Recipe.from_mapping(config.recipe.to_dict()) == Recipe()
    other = train_qwen2_5_vl.get_config()
    assert Recipe.from_mapping(other.recipe.to_dict()).family == "qwen2_5_vl"
    asked = request(tmp_path / "model", tiny())
    del asked.config["recipe"]
    with pytest.raises(ConfigError, match="has no recipe"):
        train_job.run(asked)
    assert not any(tmp_path.iterdir())
