"""Prompts, answers, decoding and buckets."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest

from tests.processing.conftest import picture, row
from vlm_jax.batch import Kind
from vlm_jax.errors import CheckpointError, PromptError
from vlm_jax.families import read_config
from vlm_jax.processing import Processor, bucket


def test_buckets_hold_their_size_and_are_few():
    for multiple in (1, 8, 16):
        edges = {bucket(n, multiple) for n in range(1, 4097)}
        assert all(edge % multiple == 0 for edge in edges)
        assert all(
            n <= bucket(n, multiple) <= max(1.25 * n + multiple, multiple) for n in range(1, 4097)
        )
        assert all(bucket(edge, multiple) == edge for edge in edges)
    assert len({bucket(n) for n in range(1, 4097)}) <= 24
    assert [bucket(n) for n in (0, 1, 16, 17, 81)] == [0, 16, 16, 32, 112]
    assert [bucket(n, 1) for n in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_answers_follow_their_prompts(request, family):
    pair = request.getfixturevalue(family)
    images, prompts = [[picture(60, 60)], []], ["what is it?", "say more than one word"]
    answers = ["the cat", pair.ours.tokenizer.encode("a dog and more", add_special_tokens=False)]
    plain = pair.ours.batch(images, prompts)
    batch, starts = pair.ours.batch_answers(images, prompts, answers)
    np.testing.assert_array_equal(starts, plain.lengths_b)
    for index, answer in enumerate(("the cat", "a dog and more")):
        before, after = row(plain, index), row(batch, index)
        start = starts[index]
        np.testing.assert_array_equal(after["tokens"][:start], before["tokens"])
        np.testing.assert_array_equal(after["positions"][:start], before["positions"])
        np.testing.assert_array_equal(after["positions"][start], np.full(3, before["next"]))
        assert (after["kinds"][start:] == Kind.TEXT).all()
        assert pair.ours.decode([after["tokens"][start:]]) == [answer]
    with pytest.raises(PromptError, match="1 answers for 2 prompts"):
        pair.ours.batch_answers(images, prompts, ["one"])


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_decoding_equals_batch_decode_and_stops_at_a_stop_id(request, family):
    pair = request.getfixturevalue(family)
    tokenizer, stop = pair.ours.tokenizer, pair.ours.stop_ids[0]
    words = ["the cat in the hat", "naïve 🙂 café", " two  blanks ", ""]
    rows = [tokenizer.encode(w, add_special_tokens=False) for w in words]
    expected = tokenizer.batch_decode(rows, skip_special_tokens=True)
    width = max(map(len, rows)) + 3
    junk = tokenizer.encode("x", add_special_tokens=False)[-1]
    padded = np.array([[*r, stop, *[junk] * (width - len(r))] for r in rows])
    assert pair.ours.decode(padded) == expected
    assert pair.ours.decode(padded, np.array([len(r) for r in rows])) == expected
    assert pair.ours.decode(padded, np.array([len(r) + 1 for r in rows])) == expected


def test_the_bucket_stops_at_the_longest_prompt_the_model_allows(llava):
    length = llava.ours.batch(None, ["word " * 20]).lengths_b[0]
    batch = llava.ours.batch(None, ["word " * 20], max_length=int(length) + 1)
    assert batch.tokens_bt.shape[1] == length + 1
    with pytest.raises(
        PromptError, match=f"Sample 1: its prompt is {length} tokens long, more than"
    ):
        llava.ours.batch(None, ["hi", "word " * 20], max_length=int(length) - 1)
    with pytest.raises(PromptError, match=rf"Sample 1.*{length} tokens.*length of 32"):
        llava.ours.batch(None, ["hi", "word " * 20], length=32)


def test_a_prompt_beyond_the_positions_of_the_model_is_refused(qwen):
    assert qwen.config.decoder.max_positions == 4096
    with pytest.raises(PromptError, match=r"Sample 0.*1 image\(s\) included.*more than the 4096"):
        qwen.ours.batch([[picture(60, 60)]], ["word " * 2000])


MISTAKES = {
    "no prompts": (dict(images=[], prompts=[]), "batch is empty"),
    "one string": (dict(images=None, prompts="hi"), "must be a list"),
    "blank prompt": (dict(images=[[], []], prompts=["hi", " \n"]), "Sample 1: its prompt is empty"),
    "no string": (dict(images=None, prompts=[3]), "Sample 0: its prompt must be a string"),
    "no image": (dict(images=[[]], prompts=["<image> what?"]), r"Sample 0.*1 .*0 image\(s\)"),
    "too few images": (
        dict(images=[[], ["a.png"]], prompts=["hi", "<image> or <image>"]),
        r"Sample 1.*2 <image> placeholder\(s\) but 1 image\(s\)",
    ),
    "image lists": (dict(images=[["a.png"]], prompts=["hi", "ho"]), "1 samples but 2 prompts"),
    "unnested": (dict(images=["a.png"], prompts=["hi"]), "Sample 0: its images must be a list"),
    "one image": (dict(images="a.png", prompts=["hi"]), "not one image"),
    "picture": (dict(images=[picture(5, 5)], prompts=["hi"]), "Sample 0: its images must be"),
    "groups": (
        dict(images=[[picture(9, 9)] * 3], prompts=["hi"], groups=2),
        "3 groups of patches, more than the 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_clear_error(llava, mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(PromptError, match=message) as caught:
        llava.ours.batch(**arguments)
    assert "\n" not in str(caught.value)


def test_errors_count_samples_from_where_the_caller_says(llava):
    calls = [
        dict(images=None, prompts=["hi", ""]),
        dict(images=None, prompts=["hi", "<image>"]),
        dict(images=[[], ["nowhere.png"]], prompts=["hi", "ho"]),
        dict(images=[[], 3], prompts=["hi", "ho"]),
        dict(images=None, prompts=["hi", "word " * 20], length=32),
    ]
    for arguments in calls:
        with pytest.raises(PromptError, match=r"^Sample 41"):
            llava.ours.batch(**arguments, first_sample=40)


def test_a_prompt_with_fewer_placeholders_than_images_is_refused(llava):
    with pytest.raises(PromptError, match=r"Sample 0: its prompt has 1 <image>.* but 2 image"):
        llava.ours.batch([[picture(9, 9)] * 2], ["<image> hi"])


def _copy(pair, tmp_path):
    return shutil.copytree(pair.folder, tmp_path / "folder")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "has no tokenizer"),
        ("preprocessor_config.json", r"has no preprocessor_config\.json"),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_folder_without_a_file_says_which(request, tmp_path, family, missing, message):
    pair = request.getfixturevalue(family)
    folder = _copy(pair, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        Processor.from_folder(folder, pair.config)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_broken_file_is_a_checkpoint_error(llava, tmp_path, name):
    folder = _copy(llava, tmp_path)
    for content, message in (
        ('{"half": ', "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "Expected `object`"),
        ('{"model": {"type": "WordLevel", "vocab": 3}, "size": -1}', name.split(".")[0]),
    ):
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Processor.from_folder(folder, llava.config)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        Processor.from_folder(folder, llava.config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", {"shortest_edge": -1}), ("size", {"shortest_edge": 1e400}), ("size", "large"),
        ("crop_size", {"height": 0}), ("image_std", [0.0, 1, 1]), ("image_mean", [float("nan")]),
        ("rescale_factor", float("inf")), ("resample", 99), ("do_resize", 1), ("image_mean", {}),
        ("crop_size", {"height": 10**12, "width": 3}), ("image_processor_type", 3),
    ],
)  # fmt: skip
def test_settings_of_images_that_make_no_sense_are_refused(llava, tmp_path, field, value):
    folder = _copy(llava, tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        Processor.from_folder(folder, llava.config)


@pytest.mark.parametrize("value", ["512", {}, True])
def test_a_length_of_words_that_is_none_is_refused(llava, tmp_path, value):
    folder = _copy(llava, tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": value}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: Expected"):
        Processor.from_folder(folder, llava.config)


@pytest.mark.parametrize("value", ["2", -1, 2.5, [1, None], {"a": 1}, 1 << 40, True])
def test_stop_ids_that_are_none_are_refused(llava, tmp_path, value):
    folder = _copy(llava, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: Expected"):
        Processor.from_folder(folder, llava.config)


def with_tokenizer(source, target, **changes):
    """A copy of a folder whose tokenizer.json has other fields."""
    shutil.copytree(source, target)
    fields = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(fields | changes))
    return target


def test_a_pattern_that_explodes_on_a_prompt_is_that_prompts_error(llava, tmp_path, capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    split["invert"] = False
    ours = Processor.from_folder(with_tokenizer(llava.folder, tmp_path / "f", pre_tokenizer=split))
    with pytest.raises(PromptError, match="characters is not read by the folder's tokenizer: Onig"):
        ours.batch(None, ["a" * 4000 + "b"])
    capfd.readouterr()  # its core prints where it is
    assert ours.batch(None, ["b"]).tokens_bt.size


@pytest.mark.parametrize(("content", "count"), [("x" * 1000, 2), ("xx", 60)])
def test_a_tokenizer_that_makes_gigabytes_of_a_word_is_refused(llava, tmp_path, content, count):
    rule = {"type": "Replace", "pattern": {"Regex": "."}, "content": content}
    rules = {"type": "Sequence", "normalizers": [rule] * count}
    folder = with_tokenizer(llava.folder, tmp_path / "f", normalizer=rules)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: what its normalizers put"):
        Processor.from_folder(folder)


@pytest.mark.parametrize("prompt", ["a\ud800", "\udcff"])
def test_half_a_surrogate_pair_is_no_prompt(llava, prompt):
    with pytest.raises(PromptError, match=r"Sample 0: its prompt holds .* half of a surrogate"):
        llava.ours.batch(None, [prompt])


def test_a_folder_without_a_template_asks_for_one(llava, tmp_path):
    folder = _copy(llava, tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        Processor.from_folder(folder).batch(None, ["hi"])


def test_the_template_of_an_older_folder_is_found(llava, tmp_path):
    folder = _copy(llava, tmp_path)
    (folder / "chat_template.jinja").rename(tmp_path / "kept")
    template = (tmp_path / "kept").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Processor.from_folder(folder).template("hi", 1) == llava.ours.template("hi", 1)


def test_config_and_tokenizer_of_different_models_are_refused(llava, tmp_path):
    folder = _copy(llava, tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["image_token_index"] = 32000
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="image_token_id 32000"):
        Processor.from_folder(folder)


def test_an_image_processor_of_another_model_is_refused(llava, qwen, tmp_path):
    folder = _copy(qwen, tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["patch_size"] = 16
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="patch_size = 16"):
        Processor.from_folder(folder)

    other = _copy(llava, tmp_path / "llava")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["crop_size"] = {"height": 42, "width": 42}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"shape \(3, 42, 42\).*takes \(3, 56, 56\)"):
        Processor.from_folder(other).batch([[picture(60, 60)]], ["hi"])


def test_code_in_a_folder_is_never_run(llava, tmp_path):
    folder = _copy(llava, tmp_path)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    path.write_text(json.dumps(content))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with contextlib.suppress(CheckpointError):
        Processor.from_folder(folder, read_config(folder))
    assert not (tmp_path / "ran").exists()


def test_placeholders_of_other_families_are_plain_text(llava, qwen):
    for pair, other in ((qwen, "<image>"), (llava, "<|image_pad|>")):
        token = pair.config.image_token_id
        assert token not in pair.ours.encode(pair.ours.template(f"see {other} here"))
        ids = pair.ours.encode(pair.ours.template(f"see {other} here", 1))
        assert ids.count(token) == 1
        with pytest.raises(PromptError, match=r"has 1 .* placeholder\(s\) but 0 image"):
            pair.ours.template(f"see {pair.ours.image_token}", 0)
