"""What documents show is what happens: every block of code is run, or known not to be runnable.

Real checkpoints and data are replaced by shipped models and drawn pictures of the same names, so
that a command is run as it is written, with fewer items where a job takes long.
"""

import contextlib
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.docs.commands import ROOT, blocks, commands, documented, pages
from tests.docs.tutorials import TUTORIALS
from vlm_jax import hub
from vlm_jax.cli import configs, listing, main
from vlm_jax.cli.main import _flags, _split
from vlm_jax.decoding.rerankers import Continuation
from vlm_jax.families import Family, read_config
from vlm_jax.testbed.scenes import CLASSES, draw_scenes

# Programs of others, which set up machines; nothing of ours is in a line of theirs, or it is found.
OTHERS = (
    "pip", "python -m venv", "python3.11 -m venv", "source", "python -c", "make", "docker", "git",
    "cp", "export", "gcloud", "on_all", "srun", "#", "/shared/venv/bin/python -c",
    "/shared/venv/bin/pip",
    "/shared/venv/bin/python -m benchmarks", ".venv/bin/python docs/figures.py",
)  # fmt: skip
# Jobs that take long even on shipped models, and what makes them short.
SHORT = {
    "plan": ["--config.plan.topology=cpu:1", "--config.plan.programs=decode"],
    "train": ["--config.measure=2"],
    "evaluate": ["--config.control_draws=1", "--config.bootstrap_draws=20"],
    "sweep": ["--config.control_draws=1", "--config.bootstrap_draws=20"],
    "identify": ["--config.identify.chunk=4"],
}
LONG = ("train", "sweep", "identify")
# Each method of these compiles programs of its own for each family.
ALL_METHODS = "--config=configs/testbed_methods.py"
# A page that needs more of a model than every shipped one has: classes of heads are in this one's.
SOURCES = {"configs/fold.py": "qwen2_5_vl-0"}
FEW = 4  # pictures of a benchmark of files
SANDBOX = ("photo.jpg", "val2014", "instances_val2014.json", "captions_val2014.json",
           "train2014", "instances_train2014.json", "coco_pope_adversarial.json",
           "captions.jsonl", "pairs.jsonl", "dev.jsonl", "test.jsonl")  # fmt: skip

# Pages that a page reads as text.
TEXTS = ("guide.md", "serving.md", "tpu_pods.md", "tutorials/evaluate.md", "tutorials/heads.md")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> pathlib.Path:
    """A folder where the files that pages speak of exist."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("kitchen.png", *TEXTS):
        target = folder / "docs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "docs" / name, target)
    drawn = draw_scenes("broken", "test", 0, np.arange(FEW))
    scenes = drawn.images
    PIL.Image.fromarray(scenes[0]).save(folder / "photo.jpg")
    (folder / "val2014").mkdir()
    names = [f"COCO_val2014_{number:012}.jpg" for number in range(1, FEW + 1)]
    for name, scene in zip(names, scenes):
        PIL.Image.fromarray(scene).save(folder / "val2014" / name)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names, 1)]
    write = lambda name, value: (folder / name).write_text(json.dumps(value), encoding="utf-8")
    write(
        "instances_val2014.json",
        {
            "images": images,
            "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
            "annotations": [
                {"id": n, "image_id": int(image) + 1, "category_id": int(of), "bbox": [0, 0, 9, 9]}
                for n, (image, of) in enumerate(np.argwhere(drawn.present))
            ],
        },
    )
    write(
        "captions_val2014.json",
        {
            "images": images,
            "annotations": [
                {"id": i["id"], "image_id": i["id"], "caption": "A chair and an oven."}
                for i in images
            ],
        },
    )
    for name in ("{}2014", "instances_{}2014.json"):
        (folder / name.format("train")).symlink_to(folder / name.format("val"))
    questions = [
        {
            "question_id": n,
            "image": name,
            "text": f"Is there a {what} in the image?",
            "label": label,
        }
        for n, (name, what, label) in enumerate(
            [(names[0], "oven", "yes"), (names[1], "cat", "no"), (names[2], "cup", "yes")], 1
        )
    ]
    rows = lambda values: "".join(json.dumps(row) + "\n" for row in values)
    (folder / "coco_pope_adversarial.json").write_text(rows(questions), encoding="utf-8")
    for split, chosen in (("dev", names[: FEW // 2]), ("test", names[FEW // 2 :])):
        (folder / f"{split}.jsonl").write_text(rows([{"image": name} for name in chosen]))
    pair = {"prompt": "Describe.", "positive": "an oven .", "negative": "a dog ."}
    (folder / "pairs.jsonl").write_text(rows([{**pair, "image": "photo.jpg"}]), encoding="utf-8")
    captions = [{"image_id": i["id"], "caption": "An oven and a dog."} for i in images]
    (folder / "captions.jsonl").write_text(rows(captions), encoding="utf-8")
    return folder


def stand_in(words: list[str], folder: pathlib.Path) -> list[str]:
    """A command with what is not here replaced by what is.

    ["--source=/shared/qwen", "--workdir=/shared/pope"] ->
    ["--source=qwen2_5_vl-0", "--workdir=shared/pope"]
    """
    made = []
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--coordinator", "--num_processes", "--process_id", "--config.mesh.model"):
            continue
        if flag in ("--config.compile_cache",):
            continue
        parts = [part.strip() for part in value.split(",")]
        if flag == "--source":
            parts = [part if _is_here(part, folder) else _shipped(part) for part in parts]
        elif flag in ("--target", "--workdir", "--baseline"):
            parts = [part.lstrip("/") for part in parts]
        elif any(pathlib.PurePath(part).name in SANDBOX for part in parts):
            parts = [pathlib.PurePath(part).name for part in parts]
        else:
            made.append(word)
            continue
        made.append(f"{flag}={','.join(parts)}")
    return [*made, "--num_processes=1"]


def _is_here(name: str, folder: pathlib.Path) -> bool:
    return (folder / name).is_dir() or name in hub.shipped()


def _shipped(name: str) -> str:
    """A shipped model by the end of its path, or of the family that a name speaks of."""
    last = pathlib.PurePath(name).name
    if last in hub.shipped():
        return last
    return "qwen2_5_vl-0" if "qwen" in name.lower() else "llava-0"


def job_of(words: list[str]) -> str:
    """The job that a command names."""
    return next(word.split("=")[1] for word in words if word.startswith("--job="))


def few_models(words: list[str]) -> list[str]:
    """A command on shipped models of several families, on one of each, or on two of one."""
    given = next((word for word in words if word.startswith("--source=")), "")
    names = given.removeprefix("--source=").split(",")
    firsts = {name.rpartition("-")[0]: name for name in reversed(names)}
    if len(firsts) < 2 or not set(names) <= set(hub.shipped()):
        return words
    every = any(word.startswith(ALL_METHODS) for word in words)
    few = names[:2] if every else reversed(firsts.values())
    return [f"--source={','.join(few)}" if word == given else word for word in words]


def shortened(words: list[str]) -> list[str]:
    """A command of a job that takes long, on few items."""
    job = listing.jobs()[job_of(words)]
    named, changes, _ = _split(words)
    config: Any = configs.read(named or job.config, changes)
    short = list(SHORT.get(job.name, []))
    for section in ("benchmarks", "test"):
        for name, benchmark in config.get(section, {}).items():
            if "n" in benchmark:
                short.append(f"--config.{section}.{name}.n={FEW // 2}")
    if job.name in ("evaluate", "generate", "sweep"):
        short.append("--config.max_new_tokens=8")
    if job.name in ("evaluate", "sweep") and config.frontier.biases:
        short.append("--config.frontier.biases=(1.0,)")
    if job.name == "sweep":
        short += [
            f"--config.sweep.{key}={v[:1]!r}" for key, v in config.sweep.items() if len(v) > 1
        ]
    given = {word.partition("=")[0] for word in short}
    return [word for word in words if word.partition("=")[0] not in given] + short


def run(words: list[str], folder: pathlib.Path) -> str:
    """Runs a command in a folder; what it prints."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        main(words)
    return said.getvalue()


@pytest.mark.parametrize(
    ("place", "words"), [pytest.param(*d, id=f"{d[0]}-{n}") for n, d in enumerate(documented())]
)
def test_a_documented_command_has_words_that_are_known(place, words):
    if words in (["--help"], ["--version"], ["--helpfull"]):
        return
    named, changes, rest = _split(words)
    rest = [word for word in rest if "$" not in word]
    given = _flags()
    assert given(["vlm-jax", *rest]) == ["vlm-jax"]
    job = listing.jobs()[given.job]
    configs.read(named or job.config, changes)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_has_no_block_that_is_not_tried(page):
    for block in blocks(page) if page not in TUTORIALS else ():  # these are done as a whole
        if block.language in ("python", "text", "yaml", "mermaid", "toml", ""):
            continue
        assert block.language == "sh", f"{page.name} has a block of {block.language}"
        joined = block.text.replace("\\\n", " ")
        for line in joined.splitlines():
            ours = commands(line)
            known = line.strip().startswith(OTHERS)
            assert ours or known or not line.strip(), f"{page.name}: {line}"


def places(*, long: bool) -> list[tuple[str, list[list[str]]]]:
    """Every place that has commands of jobs, and these in their order."""
    found: dict[str, list[list[str]]] = {}
    for place, words in documented():
        if place.startswith("vlm_jax") or not any(w.startswith("--job=") for w in words):
            continue
        takes_long = job_of(words) in LONG or "testbed" in " ".join(words)
        # Training takes an hour; tests/testbed trains.
        if takes_long == long and job_of(words) != "train":
            found.setdefault(place, []).append(words)
    return list(found.items())


class Place:
    """Runs commands in a copy of the sandbox.

    A command that was run before, here or at another place, on the same model, is not run again:
    what it wrote is copied to the folder that this one names.

    Args:
        folder: the copy.
        written: the folders that commands wrote, by what was run: its words without the folder, a
            folder of a command among them as what that command was.
    """

    def __init__(self, folder: pathlib.Path, written: dict[tuple, pathlib.Path]):
        self._folder, self._written = folder, written
        self._made_by: dict[str, tuple] = {}

    def run(self, words: list[str]) -> None:
        """Runs a command, unless it was run; it must have written what it names."""
        targets = [w for w in words if w.startswith(("--target=", "--workdir="))]
        what = tuple(self._what(word) for word in words if word not in targets)
        target = "".join(targets).partition("=")[2]
        folder, before = self._folder / target, self._written.get(what)
        if before is None:
            run(words, self._folder)
            self._written[what] = folder
        elif target and self._made_by.get(target) != what:
            shutil.copytree(before, folder)
        if target:
            assert any(folder.iterdir()), words
            self._made_by[target] = what

    def _what(self, word: str) -> tuple:
        """A word, where folders of commands are what these were: of files in them too."""
        flag, _, value = word.partition("=")
        parts = []
        for part in value.split(","):
            made = next((m for m in self._made_by if part == m or part.startswith(f"{m}/")), None)
            parts.append(part if made is None else (self._made_by[made], part.removeprefix(made)))
        return (flag, *parts)


@pytest.fixture(scope="module")
def written() -> dict[tuple, pathlib.Path]:
    """What `Place` keeps from place to place."""
    return {}


def run_all(
    place: str,
    all_words: list[list[str]],
    sandbox: pathlib.Path,
    folder: pathlib.Path,
    written: dict[tuple, pathlib.Path],
) -> None:
    """Runs the commands of a place in a copy of the sandbox."""
    shutil.copytree(sandbox, folder)
    here = Place(folder, written)
    for number, words in enumerate(all_words):
        source = f"--source={SOURCES.get(place, 'llava-0')}"
        words = [word.replace("--source=<folder>", source) for word in words]
        words = [word.replace("=<folder>", f"=folder-{number}") for word in words]
        here.run(few_models(shortened(stand_in(words, folder))))


@pytest.mark.parametrize(("place", "all_words"), places(long=False), ids=lambda v: str(v)[:30])
def test_the_commands_of_a_place_run_in_their_order(place, all_words, sandbox, tmp_path, written):
    run_all(place, all_words, sandbox, tmp_path / "reader", written)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the testbed's page has a dozen evaluations
@pytest.mark.parametrize(("place", "all_words"), places(long=True), ids=lambda v: str(v)[:30])
def test_the_long_commands_of_a_place_run(place, all_words, sandbox, tmp_path, written):
    run_all(place, all_words, sandbox, tmp_path / "reader", written)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=str)
def test_python_of_a_page_prints_what_the_page_says(page, sandbox, tmp_path):
    folder = tmp_path / "reader"
    shutil.copytree(sandbox, folder)
    (folder / "out").mkdir()
    said = io.StringIO()
    python = [block for block in blocks(page) if block.language == "python"]
    assert python
    for block in python:
        with contextlib.chdir(folder), contextlib.redirect_stdout(said):
            exec(compile(block.text, page.name, "exec"), {})
        if block.output:
            shown = [line.rstrip() for line in said.getvalue().splitlines()]
            assert shown == block.output.splitlines()


def test_the_listings_for_contributors_are_what_the_seams_take(tmp_path):
    made: dict = {}
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.language == "python":
            exec(compile(block.text, "CONTRIBUTING.md", "exec"), made)
    config = read_config(hub.SHIPPED / "llava-0")
    steering = made["quiet_layer"](config, layer=2)
    gains = np.asarray(steering.head_gains.gain)[0]
    assert (gains[2] == 0.5).all()
    assert (np.delete(gains, 2, 0) == 1).all()
    assert isinstance(made["FAMILY"], Family)
    question = {"id": 1, "image": "a.jpg", "question": "Is the number of cups even?"}
    truth, images = tmp_path / "truth.jsonl", tmp_path / "images"
    rows = [{**question, "id": n, "label": "yes"} for n in (1, 2)]
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images.mkdir()
    PIL.Image.new("RGB", (4, 4)).save(images / "a.jpg")
    suite = made["SUITE"].read({"images": str(images), "truth": str(truth)}, "config.benchmarks.p")
    examples = list(suite.examples())
    assert [one.id for one in examples] == [1, 2]
    assert examples[0].images == (images / "a.jpg",)
    judged = [suite.judge(*pair) for pair in zip(examples, ("Yes.", "no"))]
    assert suite.report(suite.tally(judged)) == {"accuracy": 0.5}
    # Logits 3 with the image and 1 without it: 2 * 3 - 1.
    assert made["Blind"]().scores(np.array([[[3.0], [1.0]]]), None) == 5
    assert made["ranks"](np.array([[[0.1, 0.7, 0.2]]])).tolist() == [[[2, 0, 1]]]
    spread, terse = made["Spread"](spread=1.0), made["Terse"](samples=5)
    assert (spread.rows, spread.spread, terse.rows) == (4, 1.0, 10)
    assert terse.ends(["a", "cup.", "."]).tolist() == [False, True, True]
    assert terse.scores(None, ["a cup.", "a red cup."], 0) == [-2, -3]
    assert terse.rank(Continuation(scores=(-2.0, -3.0))) == -5


def test_the_scene_of_the_readme_is_the_one_that_figures_draws():
    drawn = draw_scenes("broken", "test", 0, np.array([11]))
    assert (np.asarray(PIL.Image.open(ROOT / "docs" / "kitchen.png")) == drawn.images[0]).all()
