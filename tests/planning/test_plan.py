"""Plans for host devices, which need nothing that is not there; others are in test_absent.py."""

import dataclasses
import json

import pytest

import vlm_jax
from tests.planning.conftest import CONFIG
from tests.released import CONFIGS
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import AnswersError, ConfigError, UserError
from vlm_jax.families import parse_config
from vlm_jax.jobs import plan as job
from vlm_jax.planning import HardwarePlan, PlanSettings
from vlm_jax.planning.chips import CHIPS
from vlm_jax.planning.compiled import CompiledProgram, compile_program
from vlm_jax.planning.inputs import PromptSizes, cutter
from vlm_jax.planning.planner import Planner, acting
from vlm_jax.planning.sizes import fewest_chips, param_bytes, token_bytes, weight_bytes
from vlm_jax.planning.topologies import SLICES, parse, topology
from vlm_jax.study.request import Request


def request_of(folder, workdir, **changes):
    from vlm_jax.cli import configs

    named = {"batch_size": "2", "max_new_tokens": "8", "plan.topology": "cpu:1", **changes}
    return Request(configs.read("base", list(named.items())), source=folder, workdir=workdir)


def test_a_job_keeps_each_program_and_goes_on(folder, tmp_path, capsys):
    job.run(request_of(folder, tmp_path, **{"plan.programs": "decode"}))
    first = json.loads((tmp_path / "plan.json").read_text())
    assert list(first["programs"]) == ["decode"]
    decode = first["programs"]["decode"]
    assert decode["fits"]
    assert decode["argument_bytes"] > 2 * 64 * 256  # the head at least
    assert decode["flops"] > 2 * 2 * 64 * 256  # two rows through it
    assert decode["collectives"] == {}
    first["programs"]["decode"]["flops"] = 1.0
    (tmp_path / "plan.json").write_text(json.dumps(first))
    job.run(request_of(folder, tmp_path, **{"plan.programs": "decode,edit"}))
    second = json.loads((tmp_path / "plan.json").read_text())
    assert list(second["programs"]) == ["decode", "edit"]
    assert second["programs"]["decode"]["flops"] == 1.0, "it is not compiled again"
    shown = capsys.readouterr().out
    assert "2 rows of 80 tokens (16 of images), 8 new" in shown
    with pytest.raises(AnswersError, match="rows was 2 and is 4"):
        job.run(request_of(folder, tmp_path, batch_size="4"))


def test_a_plan_tells_bytes_by_kind_where_asked(folder, tmp_path, capsys):
    asked = {"plan.programs": "decode", "plan.by_kind": "True"}
    job.run(request_of(folder, tmp_path, **asked))
    decode = json.loads((tmp_path / "plan.json").read_text())["programs"]["decode"]
    for name, whole in (("accessed", "bytes_accessed"), ("moved", "moved_bytes")):
        assert sum(one[name] for one in decode["by_kind"].values()) == decode[whole]
    assert decode["by_kind"]["products"]["moved"] > 2 * 64 * 256
    assert "products" in capsys.readouterr().out
    job.run(request_of(folder, tmp_path, **asked))
    assert "products" in capsys.readouterr().out, "of the plan that was kept"


def test_python_plans_what_prompts_share(folder):
    found = vlm_jax.plan(
        folder,
        topology="cpu:1",
        programs=("read_images", "shared_decode"),
        prefixes=2,
        generation={"batch_size": 4, "max_new_tokens": 4},
        method={"method": "air", "heads": "all"},
    )
    assert list(found.programs) == ["read_images", "shared_decode"]
    assert found.fits
    assert found.suggestion is None, "nothing is known of a CPU's peaks"
    assert (
        found.programs["read_images"].argument_bytes
        < found.programs["shared_decode"].argument_bytes
    )
    images, decode = found.programs["read_images"], found.programs["shared_decode"]
    weights = param_bytes(parse_config(CONFIG), 1)
    of_decoder = sum(size for path, size in weights.items() if path.startswith("decoder/"))
    assert images.idle_bytes >= of_decoder, "and the tower's last layer, which LLaVA leaves out"
    assert decode.idle_bytes >= sum(weights.values()) - of_decoder
    for program in (images, decode):
        assert program.peak_bytes >= program.argument_bytes + program.idle_bytes
    assert "<table>" in found._repr_html_()


def test_topologies_are_named(monkeypatch):
    assert parse("v5e:4x4") == ("v5e", (4, 4))
    assert parse("V5P:2x2x1") == ("v5p", (2, 2, 1))
    assert parse("h100:8") == ("h100", (8,))
    for name, said in {
        "v7:2x2": "There is no topology",
        "v5e": "write v5e:2x4",
        "v5e:2x2x2": "write v5e:2x4",
        "v5p:4": "write v5p:2x2x1",
        "h100:0": "write h100:8",
        "cpu:4096": "XLA_FLAGS=--xla_force_host_platform_device_count=4096",
    }.items():
        with pytest.raises(ConfigError, match=said):
            topology(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vlm_jax\[plan-tpu\]'"):
        topology("v5e:2x2")
    with pytest.raises(ConfigError, match=r"pip install 'vlm_jax\[plan-gpu\]'"):
        topology("h100:1")


def test_slices_are_names_that_grow():
    for generation, shapes in SLICES.items():
        chips = [1] * len(shapes)
        for at, shape in enumerate(shapes):
            for side in parse(f"{generation}:{shape}")[1]:
                chips[at] *= side
        assert chips == sorted(set(chips)), generation


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"topology": 3}, "must be text"),
        ({"programs": ("prefil",)}, "prefill"),
        ({"programs": ()}, "must list 1 value"),
        ({"image_size": (640,)}, "must list 2 values"),
        ({"text_tokens": 0}, "text_tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, setting, said):
    with pytest.raises(ConfigError, match=said):
        vlm_jax.plan(folder, **{"topology": "cpu:1", **setting})


TOKENS = {
    "Qwen2.5-VL-7B": 391, "LLaVA-1.5-7B": 576, "LLaVA-NeXT-7B-vicuna": 2340, "InternVL3.5-8B": 3328,
    "InstructBLIP-7B": 32, "Qwen3-VL-8B": 300, "Kimi-VL-A3B": 414,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_says_what_a_prompt_is(name, tmp_path):
    """Image tokens of 640 x 480 pixels, from config.json alone, of every released size."""
    config = parse_config(CONFIGS[name])
    sizes = PromptSizes.of(config, cutter(tmp_path, config), 1, (640, 480), 64, 16)
    assert sizes.image_tokens == TOKENS.get(name, sizes.image_tokens)
    assert sizes.image_tokens > 16
    assert sizes.length >= sizes.image_tokens + 64
    assert sizes.groups >= 1
    assert (sizes.words > 0) == (config.qformer is not None and config.qformer.reads_text)


def test_fewest_chips_hold_weights_and_caches():
    config = parse_config(CONFIGS["Qwen2.5-VL-7B"])
    chip = CHIPS["TPU v5e"]
    assert weight_bytes(config, 1) == pytest.approx(16.58e9, rel=0.001)
    assert token_bytes(config.decoder, 1) == 56 * 1024
    eight = token_bytes(config.decoder, 8)
    assert eight == token_bytes(config.decoder, 1), "4 key heads do not divide by 8"
    assert fewest_chips(config, chip, 8, 2048) == 2
    assert fewest_chips(config, chip, 8, 2048, beside=9e9) == 4
    assert fewest_chips(config, chip, 8, 2048, beside=16.9e9) is None
    latent = parse_config(CONFIGS["DeepSeek-VL2-Small"])
    assert token_bytes(latent.decoder, 4) == 2 * 27 * (512 + 64), "every chip holds the latents"


@dataclasses.dataclass
class Said:
    """A compiler that says something."""

    text: str

    def compile(self):
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.42G of 15.75G hbm. Exceeded hbm capacity by 1.67G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (17.42G) exceeds available HBM (15.75G). HLO module: jit_prefill.",
    ],
)
def test_a_program_that_does_not_fit_says_by_how_much(text):
    found = compile_program(Said(text), CHIPS["TPU v5e"])
    assert not found.fits
    assert found.peak_bytes == int(17.42 * 2**30)
    assert found.reason == "18.7 GB of 16.9"
    with pytest.raises(RuntimeError, match="a bug"):
        compile_program(Said("a bug"), None)


SIZES = PromptSizes(391, 512, 432, 64, 12, 0)


def planner(name: str, model: int, chips: int) -> Planner:
    """A plan on so many imagined TPU v5e."""
    config = parse_config(CONFIGS[name])
    mesh = type("Mesh", (), {"shape": {"data": chips // model, "model": model}})()
    devices = type("Devices", (), {"chip": CHIPS["TPU v5e"], "generation": "v5e"})()
    decoding = DecodeSettings(batch_size=8, max_new_tokens=64)
    settings = PlanSettings()
    return Planner(name, config, None, None, SIZES, settings, decoding, devices, mesh, "bfloat16")


def test_the_smallest_slice_is_suggested():
    large = CompiledProgram(False, peak_bytes=int(17.4e9), reason="17.4 GB of 16.9")
    found = planner("Qwen2.5-VL-7B", 1, 1).suggestion({"prefill": large})
    assert (found.topology, found.data, found.model, found.compiled) == ("v5e:2x2", 2, 2, False)
    fits = CompiledProgram(True, peak_bytes=int(9.6e9))
    found = planner("Qwen2.5-VL-7B", 2, 4).suggestion({"prefill": fits})
    assert (found.topology, found.model, found.compiled) == ("v5e:2x2", 2, True)
    roomy = CompiledProgram(True, peak_bytes=int(6e9))
    found = planner("Qwen2.5-VL-7B", 4, 4).suggestion({"prefill": roomy})
    assert (found.model, found.compiled) == (2, False)
    alone = CompiledProgram(True, peak_bytes=int(1e9))  # without caches
    found = planner("InternVL3.5-8B", 2, 2).suggestion({"read_images": alone})
    assert found.model == 2, "17.1 GB of weights do not fit 16.9"
    plan = HardwarePlan(
        {"source": "m", "topology": "v5e:1x1", "mesh": {"data": 1, "model": 1}, "rows": 8,
         "sizes": dataclasses.asdict(SIZES), "new_tokens": 4},
        {"prefill": large},
        found,
    )  # fmt: skip
    assert not plan.fits
    assert "Does not fit: prefill: 17.4 GB of 16.9." in str(plan)
    assert "Smallest: v5e:2x2 with --config.mesh.model=2 (2 replicas of 2 chips;" in str(plan)


def test_methods_are_part_of_programs_but_edits_are_not(folder):
    config = parse_config(CONFIG)
    assert acting(None, config, folder) == (None, None)
    assert acting({"k": 2}, config, folder) == (None, None)
    assert acting("qk", config, folder) == (None, None)
    steering, strategy = acting([{"method": "air", "heads": "all"}, "vcd"], config, folder)
    assert steering.reallocation is not None
    assert strategy.width == 2
    with pytest.raises(UserError, match=r"heads\.json"):
        acting({"method": "air", "heads": "identified"}, config, folder)
