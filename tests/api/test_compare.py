"""Models and settings side by side: the same answers as one by one, shown whole and escaped."""

import pytest

import vlm_jax
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.side_by_side import SideBySide
from vlm_jax.sweeping import grid
from vlm_jax.testbed.suites.testbed_chair import TestbedChair

PROMPT = "Please describe this image in detail."
AIR = {"heads": "identified", "text_gain": 0.5}
SHORT = {"max_new_tokens": 16}


@pytest.fixture(scope="module")
def arms(shipped_llava):
    """Two treated models."""
    return {"air": shipped_llava.apply("air", **AIR), "qk": shipped_llava.apply("qk", k=4)}


@pytest.fixture(scope="module")
def scored(shipped_llava, arms):
    """Both compared on three scenes, beside two draws of their controls."""
    return vlm_jax.compare(
        shipped_llava, arms, TestbedChair(count=3), draws=2, bootstrap_draws=50, **SHORT
    )


def test_answers_are_those_of_each_model(shipped_llava, arms, scenes):
    models = {"plain": shipped_llava, **arms}
    both = vlm_jax.compare(models, scenes[:2], PROMPT, **SHORT)
    for name, model in models.items():
        assert both.answers[name] == model.generate(scenes[:2], PROMPT, **SHORT)
    assert both["air"] == both.answers["air"]
    assert both.prompts == [PROMPT] * 2
    changed = [n for n in range(2) if both["air"][n] != both["plain"][n]]
    assert both.changed("air") == changed
    shown = " ".join(both.table().split())
    assert all(text.split()[0] in shown for texts in both.answers.values() for text in texts)
    assert both._repr_html_().count('src="data:image/png;base64,') == 2


@pytest.mark.parametrize(
    ("models", "message"),
    [({}, "models by name"), ([1], "models by name.*not list"), ({"a": 1}, "'a' must be a model")],
)
def test_what_is_no_model_is_refused(models, message):
    with pytest.raises(ConfigError, match=message):
        vlm_jax.compare(models, None, "Hello")


def test_texts_of_models_are_never_markup():
    bad = "<script>alert(1)</script> & a cup"
    both = SideBySide({bad: [bad], "b": ["a cup"]}, [bad], None, {})
    page = both._repr_html_()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "a cup" in page


def test_words_that_changed_are_marked():
    page = SideBySide({"a": ["a cup and a fork"], "b": ["a cup and a dog"]}, ["p"])._repr_html_()
    assert "a cup and a <mark>dog</mark>" in page
    assert page.count("<mark>") == 1


def test_rows_of_a_data_frame(shipped_llava, scored):
    pandas = pytest.importorskip("pandas")
    frame = scored.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    row = frame[(frame.arm == "air") & (frame.metric == "recall")].iloc[0]
    arm = scored.comparison.arms[1]
    assert row.value == arm.levels["chair_normal"]["recall"].value
    assert row.change == arm.changes["chair_normal"]["recall"].value


def test_scores_are_those_of_the_answers(shipped_llava, arms, scored):
    benchmark = TestbedChair(count=3)
    names = [arm.name for arm in scored.comparison.arms]
    assert names == ["plain", "air", "air, random", "qk", "qk, random"]
    for name, model in {"plain": shipped_llava, **arms}.items():
        asked = list(benchmark.examples())
        texts = model.generate([e.images for e in asked], [e.prompt for e in asked], **SHORT)
        totals = dict.fromkeys(benchmark.judge(asked[0], texts[0]).counts, 0)
        for example, text in zip(asked, texts):
            for key, count in benchmark.judge(example, text).counts.items():
                totals[key] += count
        level = next(arm for arm in scored.comparison.arms if arm.name == name).levels
        assert level["chair_normal"]["recall"].value == pytest.approx(
            benchmark.report(totals)["recall"]
        )


def test_controls_are_drawn_and_shown(scored):
    drawn = scored.answers["air, random"]["chair_normal"]
    assert len(drawn) == 2
    text = scored.table()
    for part in ("Arms beside their controls", "air - air, random (2 draws)", "What was changed",
                 "What the methods did"):  # fmt: skip
        assert part in text
    assert "<td" in scored._repr_html_()
    matched = next(table for table in scored.tables if table.title == "What was changed")
    assert [row[0] for row in matched.rows] == ["qk", "qk, random"]


def test_arms_without_a_random_control_are_compared_and_named(shipped_llava):
    arms = {
        "random": shipped_llava.apply("air", **AIR, control="random"),
        "all": shipped_llava.apply("adhh", heads="all"),
    }
    found = vlm_jax.compare(
        shipped_llava, arms, TestbedChair(count=3), draws=2, bootstrap_draws=20, **SHORT
    )
    assert [arm.name for arm in found.comparison.arms] == ["plain", *arms]
    first, second = found.tables[0].notes[-2:]
    assert first == "random has no random control: air is a control itself (random)."
    assert second.startswith("all has no random control: method 'adhh': control='random'")


def test_answers_that_are_kept_are_not_made_again(shipped_llava, arms, tmp_path, monkeypatch):
    ask = lambda: vlm_jax.compare(
        shipped_llava, {"air": arms["air"]}, TestbedChair(count=2), workdir=tmp_path,
        bootstrap_draws=20, **SHORT,
    )  # fmt: skip
    first = ask()
    monkeypatch.setattr(vlm_jax.VLM, "answer", lambda *_, **__: pytest.fail("asked again"))
    assert ask().table() == first.table()


def test_a_wrong_number_of_draws_is_one_line(shipped_llava, arms):
    with pytest.raises(ConfigError, match="draws must be") as caught:
        vlm_jax.compare(shipped_llava, arms, TestbedChair(count=1), draws=-1)
    assert "\n" not in str(caught.value)


def test_names_are_not_taken_twice(shipped_llava, arms):
    for named in ({"plain": arms["air"]}, {"a b": arms["air"], "a_b": arms["qk"]}):
        with pytest.raises(ConfigError, match="is taken"):
            vlm_jax.compare(shipped_llava, named, TestbedChair(count=1))


@pytest.mark.slow
def test_a_sweep_is_one_batch_and_answers_as_one_by_one(shipped_llava, scenes):
    gains = [0.1, 0.5, 1.0]
    found = shipped_llava.sweep(
        "air", heads="identified", text_gain=gains, images=scenes[:2], prompts=PROMPT, **SHORT
    )
    assert list(found.answers) == [f"text_gain={gain}" for gain in gains]
    for gain in gains:
        alone = shipped_llava.apply("air", heads="identified", text_gain=gain)
        expected = alone.generate(scenes[:2], PROMPT, **SHORT)
        assert found[f"text_gain={gain}"] == expected
        assert found.settings[f"text_gain={gain}"]["text_gain"] == gain
    before = shipped_llava.generator.compilations
    others = [0.2, 0.3, 0.9]
    shipped_llava.sweep(
        "air", heads="identified", text_gain=others, images=scenes[:2], prompts=PROMPT, **SHORT
    )
    assert shipped_llava.generator.compilations == before


def test_a_sweep_has_the_model_as_it_is_where_a_setting_changes_nothing(shipped_llava, scenes):
    heads = {"heads": "identified", "visual_gain": 1.0, "shrinkage": 0.0}
    found = shipped_llava.sweep(
        "air", **heads, text_gain=[1.0, 0.5], images=scenes[:1], prompts=PROMPT, **SHORT
    )
    assert list(found.answers) == ["text_gain=1.0", "text_gain=0.5"]
    assert found["text_gain=1.0"] == shipped_llava.generate(scenes[:1], PROMPT, **SHORT)
    steered = shipped_llava.apply("air", **heads, text_gain=0.5)
    assert found["text_gain=0.5"] == steered.generate(scenes[:1], PROMPT, **SHORT)


@pytest.mark.slow
def test_a_sweep_over_switches_and_edits(shipped_llava, scenes):
    switched = shipped_llava.sweep(
        "air", **AIR, renormalise=[False, True], images=scenes[0], prompts=PROMPT, **SHORT
    )
    for value in (False, True):
        alone = shipped_llava.apply("air", **AIR, renormalise=value)
        assert switched[f"renormalise={value}"] == [alone.generate(scenes[0], PROMPT, **SHORT)]
    edits = shipped_llava.sweep("qk", k=[1, 2], images=scenes[:1], prompts=[PROMPT], **SHORT)
    expected = shipped_llava.apply("qk", k=2).generate(scenes[:1], [PROMPT], **SHORT)
    assert edits["k=2"] == expected


def test_a_grid_holds_all_combinations():
    assert grid({"a": [1, 2], "b": (3, 4), "c": ["x"]}) == {
        "a=1, c='x'": {"a": 1, "b": (3, 4), "c": "x"},
        "a=2, c='x'": {"a": 2, "b": (3, 4), "c": "x"},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_gain": 0.5}, "needs a setting that lists values"),
        ({"text_gain": []}, "text_gain lists no value"),
        ({"text_gain": [0.5, 0.5]}, "lists text_gain=0.5 twice"),
        ({"text_gian": [0.5]}, "no setting 'text_gian'"),
        ({"text_gain": [0.5, -1.0]}, "text_gain"),
    ],
)
def test_a_wrong_sweep_is_one_line(shipped_llava, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        shipped_llava.sweep("air", heads="identified", prompts="Hello", **settings)
    assert "\n" not in str(caught.value)


def test_a_sweep_refuses_what_the_model_has_already(shipped_llava):
    with pytest.raises(ConfigError, match="'adhh' and 'air' both set reallocation"):
        shipped_llava.apply("adhh", heads="all").sweep(
            "air", heads="identified", text_gain=[0.5, 1.0], prompts="Hello"
        )
    with pytest.raises(PromptError, match="prompts is missing"):
        shipped_llava.sweep("air", heads="identified", text_gain=[0.5, 1.0])


def test_an_edited_model_can_be_untreated(shipped_llava, arms, scenes):
    for model in arms.values():
        plain = model.untreated()
        assert plain.treatments == ()
        expected = shipped_llava.generate(scenes[0], PROMPT, **SHORT)
        assert plain.generate(scenes[0], PROMPT, **SHORT) == expected


def test_benchmarks_are_made_by_name():
    listed = vlm_jax.benchmarks()
    assert {"chair", "pope", "testbed_chair"} <= set(listed)
    assert all(listed.values())
    made = vlm_jax.benchmark("testbed_chair", set="normal", split="dev", n=2)
    assert len(list(made.examples())) == 2
    with pytest.raises(ConfigError, match=r"did you mean 'pope'"):
        vlm_jax.benchmark("popee")
    with pytest.raises(ConfigError, match="has no setting 'nn'"):
        vlm_jax.benchmark("testbed_chair", set="normal", split="dev", nn=2)
