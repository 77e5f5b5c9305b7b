"""Whatever one file of a model folder holds: a model or one error, nothing outside the target.

Drawn in a fixed order, so that a failure comes again.
"""

import json
import pathlib
import shutil
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convert
from convert.safetensors_io import read_header
from convert.table import bind
from tests import tiny
from tests.families import test_kimi_vl, tiny_deepseek
from tests.floor.hostile import broken_bytes, broken_json, snapshot
from tests.matching import conftest as matching
from tests.processing.conftest import picture
from tests.released import CONFIGS
from vlm_jax import checkpoint
from vlm_jax.errors import UserError
from vlm_jax.families import parse_config
from vlm_jax.foreign import parse_json
from vlm_jax.matching import open_matcher
from vlm_jax.processing import Processor
from vlm_jax.processing.templates import TemplateError, renderer

SECONDS = 60  # that no input may take


def examples(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def family(request, tmp_path_factory):
    """A Hugging Face folder, the same converted, and a place to write."""
    root = tmp_path_factory.mktemp(request.param)
    make = getattr(tiny, request.param)
    hf = make(root / "hf", shards=2) if request.param == "qwen2_5_vl" else make(root / "hf")
    convert.import_hf(hf, root / "ours", progress=False)
    return root


def one_error(work, *args):
    """Runs work, which may fail by one line only; returns what it made."""
    start = time.monotonic()
    try:
        return work(*args)
    except UserError as error:
        said = str(error)
    finally:
        assert time.monotonic() - start < SECONDS
    assert said
    assert "\n" not in said.strip(), "an error of more than a line"
    return None


class Changed:
    """A folder with a file that is changed, and put back in the end."""

    def __init__(self, folder: pathlib.Path, name: str, content: bytes):
        self.path, self.content = folder / name, content
        self.before = self.path.read_bytes() if self.path.exists() else None

    def __enter__(self):
        self.path.write_bytes(self.content)

    def __exit__(self, *_):
        if self.before is None:
            self.path.unlink()
        else:
            self.path.write_bytes(self.before)


def converted_and_exported(root: pathlib.Path, source: pathlib.Path) -> None:
    """Runs the jobs on a folder; all that they may leave is the target, whole."""
    before = snapshot(root)
    target = root / "target"
    one_error(convert.export_hf, source, target) if source.name == "ours" else one_error(
        lambda: convert.import_hf(source, target, progress=False)
    )
    if target.exists():
        shutil.rmtree(target)
    for left in root.glob(".target*"):
        shutil.rmtree(left)
    assert snapshot(root) == before


def processed(folder: pathlib.Path) -> None:
    ours = one_error(Processor.from_folder, folder)
    if ours is not None:
        one_error(ours.batch, [[picture(30, 40)]], ["hi"])


@examples(150)
@given(data=st.data())
def test_config(family, data):
    source = json.loads((family / "hf" / "config.json").read_text())
    with Changed(family / "hf", "config.json", data.draw(broken_json(source))):
        one_error(checkpoint.open_folder, family / "hf")


OF_FAMILIES = {str(fields["model_type"]): fields for fields in CONFIGS.values()}


@pytest.mark.parametrize("family", sorted(OF_FAMILIES))
@examples(20)
@given(data=st.data())
def test_config_of_every_family(family, data):
    content = data.draw(broken_json(OF_FAMILIES[family]))
    config = one_error(lambda: parse_config(parse_json(content, dict, "config.json")))
    if config is not None:
        one_error(bind, config)


@examples(40)
@given(data=st.data())
def test_header(family, data):
    path = sorted((family / "hf").glob("*.safetensors"))[0]
    header = read_header(path)
    rest = path.read_bytes()[header.data_start :]
    text = data.draw(broken_json(json.loads(header.text)))
    with Changed(family / "hf", path.name, struct.pack("<Q", len(text)) + text + rest):
        one_error(checkpoint.open_folder, family / "hf")
    with Changed(family / "hf", path.name, data.draw(broken_bytes(path.read_bytes()[:200]))):
        one_error(checkpoint.open_folder, family / "hf")


@examples(15)
@given(data=st.data())
def test_index(family, data):
    path = family / "hf" / "model.safetensors.index.json"
    if path.exists():
        with Changed(path.parent, path.name, data.draw(broken_json(json.loads(path.read_text())))):
            converted_and_exported(family, family / "hf")


@examples(25)
@given(data=st.data())
def test_what_conversion_keeps(family, data):
    name = data.draw(st.sampled_from(["source_layout.json", "vlm_jax.json", "params/index.jsonl"]))
    content = (family / "ours" / name).read_bytes()
    source = json.loads(content.splitlines()[0] if name.endswith("l") else content)
    with Changed(family / "ours", name, data.draw(broken_json(source))):
        converted_and_exported(family, family / "ours")


NAMES = (
    "../x.safetensors", "./../x.safetensors", "/tmp/x.safetensors", "config.json",
    "a/b.safetensors",
    ".x.safetensors", "", ".", "..", "x", "model.safetensors.index.json", "x\0.safetensors",
    "tokenizer.json", "MODEL.SAFETENSORS", "x\n.safetensors", "~/x.safetensors",
    "\u202e.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_that_would_be_written(family, name):
    path = family / "ours" / "source_layout.json"
    fields = json.loads(path.read_text())
    first = next(iter(fields["files"]))
    for files in (
        {name if file == first else file: text for file, text in fields["files"].items()},
        fields["files"] | {name: '{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'},
    ):
        with Changed(path.parent, path.name, json.dumps(fields | {"files": files}).encode()):
            before = snapshot(family)
            with pytest.raises(UserError, match=r"source_layout\.json"):
                convert.export_hf(family / "ours", family / "target", progress=False)
            assert snapshot(family) == before


@examples(30)
@given(data=st.data())
def test_settings_of_words_and_pictures(family, data):
    folder = family / "hf"
    name = data.draw(
        st.sampled_from(
            ["preprocessor_config.json"] * 3
            + ["tokenizer_config.json", "generation_config.json", "processor_config.json"]
        )
    )
    source = {"image_processor": {"size": 3}, "chat_template": "x", "eos_token_id": [1]}
    if (folder / name).exists():
        source = json.loads((folder / name).read_text())
    with Changed(folder, name, data.draw(broken_json(source))):
        processed(folder)


@examples(15)
@given(data=st.data())
def test_tokenizer(family, data):
    source = json.loads((family / "hf" / "tokenizer.json").read_text())
    shallow = source | {"model": source["model"] | {"merges": [], "vocab": {"a": 0}}}
    with Changed(family / "hf", "tokenizer.json", data.draw(broken_json(shallow))):
        processed(family / "hf")


FAMILIES = ("qwen3_vl", "llava_next", "internvl_chat", "instructblip", "deepseek_vl2", "kimi_vl")
MATCHERS = ("clip", "siglip", "blip")


@pytest.fixture(
    scope="module",
    params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MATCHERS)],
)
def other(request, tmp_path_factory):
    """A folder of another family, or of a model that matches texts and images."""
    root, name = tmp_path_factory.mktemp(request.param), request.param
    if name in MATCHERS:
        return matching.make(root / "hf", name)
    if name == "internvl_chat":
        return tiny.internvl_chat(tiny.internvl(root / "source"), root / "hf")
    rooms = {"deepseek_vl2": tiny_deepseek, "kimi_vl": test_kimi_vl}
    return getattr(rooms.get(name, tiny), name)(root / "hf")


@examples(60)
@given(data=st.data())
def test_what_other_folders_say(other, data):
    names = [path.name for path in sorted(other.glob("*.json")) if path.name != "tokenizer.json"]
    name = data.draw(st.sampled_from([*names, *other.glob("tiktoken.model")]))
    content = (other / name).read_bytes()
    is_json = str(name).endswith(".json")
    made = data.draw(broken_json(json.loads(content)) if is_json else broken_bytes(content))
    with Changed(other, name, made):
        if other.parent.name.startswith(MATCHERS):
            one_error(lambda: open_matcher(other)(["a cat"], picture(30, 40)))
        else:
            one_error(checkpoint.open_folder, other)
            processed(other)


FRAGMENTS = st.sampled_from(
    ["{{ messages }}", "{{ messages[0]['content'] }}", "{% for m in messages %}", "{% endfor %}",
     "{% if x %}", "{% endif %}", "{{ 9 ** 99 }}", "{{ 'x' * 10**12 }}", "{{ [0] * 10**9 }}",
     "{{ range(10**9) | list }}", "{{ messages.__class__ }}", "{% set x = messages %}",
     "{{ x ~ x }}",
     "{%", "%}", "{{", "}}", "{#", "text", "\n", "{{ 1 / 0 }}", "{{ none.a.b }}", "{{ lipsum }}",
     "{{ messages | tojson }}", "{{ 'x' | center(10**10) }}", "{% raw %}", "\ud800", "\0",
     "{{ cycler('a') }}", "{{ dict(a=1) }}", "{% macro f() %}", "{% endmacro %}", "{{ f() }}"]
)  # fmt: skip


@examples(150)
@given(st.lists(FRAGMENTS, max_size=8).map("".join))
def test_templates(template):
    values = {"messages": [{"role": "user", "content": "hi"}]}
    try:
        said = renderer.render(template, values)
    except TemplateError as error:
        said = str(error) or None
    assert isinstance(said, str)
