"""Compiles what a job would run for accelerators that are not there, and says what fits."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax import hub
from vlm_jax.answering import batch_rows
from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import DecodeSettings, Generator
from vlm_jax.decoding import named as decoding_methods
from vlm_jax.decoding.rerankers import HostMethod
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.edits.qk.factor import lower_factoring
from vlm_jax.errors import ConfigError
from vlm_jax.families import read_config
from vlm_jax.methods import find_method
from vlm_jax.parallel import make_mesh
from vlm_jax.planning.chips import CHIPS
from vlm_jax.planning.compiled import CompiledProgram, compile_program
from vlm_jax.planning.inputs import PromptSizes, batch_shapes, cutter, param_shapes, result_shapes
from vlm_jax.planning.result import HardwarePlan, Suggestion
from vlm_jax.planning.sizes import fewest_chips, held_bytes
from vlm_jax.planning.topologies import GENERATIONS, SLICES, Topology, parse, topology
from vlm_jax.processing.cutters import Cutter
from vlm_jax.settings import listed, one_of, read, setting, switch, text, whole
from vlm_jax.steering.config import entries, read_method
from vlm_jax.steering.named import identified

PROGRAMS = ("prefill", "decode", "read_images", "read_prefix", "logits", "edit")
SHARED = ("shared_prefill", "shared_decode")
HEAD = "head"
"""What `logits` is followed by where they are made of some places at a time."""

ANSWERING = ("prefill", "decode", "read_images", "read_prefix", *SHARED)

ROWS = 32
"""Of a batch on an accelerator, where the settings name none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What `config.plan` says.

    Attributes:
        topology: that programs are compiled for, see `vlm_jax.planning.topologies`; "": the
            smallest slice of TPU v5e that weights and caches fit by their sizes, with its mesh.
        programs: which. `prefill` and `decode` answer whole prompts; `read_images`, `read_prefix`,
            `shared_prefill` and `shared_decode` answer prompts that share images; `logits` reads
            prompts alone; `edit` factors the heads of a few layers for the QK edit.
        images: of a prompt.
        image_size: width and height of each in pixels.
        text_tokens: of a prompt, besides its images'.
        prefixes: images that the rows of a batch share, in the shared programs.
        joint: whether the edit decomposes channels (`symmetric` and the like) or the plain product.
        by_kind: whether bytes are told by kind of instruction, too.
    """

    topology: str = setting("", text)
    programs: tuple[str, ...] = setting(
        PROGRAMS, listed, each=one_of, known=(*PROGRAMS, *SHARED), least=1, alone=True
    )
    images: int = setting(1, whole, low=0, high=1 << 10)
    image_size: tuple[int, int] = setting(
        (640, 480), listed, each=whole, least=2, most=2, low=1, high=1 << 16
    )
    text_tokens: int = setting(64, whole, low=1, high=1 << 20)
    prefixes: int = setting(8, whole, low=1, high=1 << 16)
    joint: bool = setting(False, switch)
    by_kind: bool = setting(False, switch)


@dataclasses.dataclass(frozen=True)
class Planner:
    """A model's programs on a mesh, ready to be compiled.

    Attributes:
        source: what the model is called.
        config: its architecture.
        folder: may hold head sets.
        cut: what cuts its images.
        sizes: static sizes of the prompts.
        settings: what is planned.
        decoding: settings of decoding.
        devices: what it is planned for.
        mesh: of a machine's devices, or of those of a replica.
        dtype: of weights and activations.
        method: what is done to the model, as `config.method` says it.
    """

    source: str
    config: VLMConfig
    folder: pathlib.Path
    cut: Cutter
    sizes: PromptSizes
    settings: PlanSettings
    decoding: DecodeSettings
    devices: Topology
    mesh: Mesh
    dtype: str
    method: Any = None

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str],
        settings: PlanSettings,
        decoding: DecodeSettings,
        *,
        data: int = -1,
        model: int | None = None,
        dtype: str = "",
        method: Any = None,
    ) -> "Planner":
        """Returns what is to be planned.

        Args:
            source: a folder with a `config.json`, a shipped model or one of the hub.
            settings, decoding: of the plan and of answers.
            data, model: the mesh; `model` None is what the sizes say where no topology is named,
                and 1 elsewhere.
            dtype: "" is bfloat16.
            method: a method's name, a mapping of `method` and its settings, or a list of such.

        Raises:
            ConfigError: the topology is unknown, or what compiles for it is not installed.
        """
        folder = hub.resolve(source, weights=False)
        config = read_config(folder)
        named, cut = settings.topology, cutter(folder, config)
        sizes = PromptSizes.of(
            config, cut, settings.images, settings.image_size, settings.text_tokens,
            decoding.max_new_tokens,
        )  # fmt: skip
        if not named:
            context = sizes.length + decoding.max_new_tokens
            chip, rows = CHIPS[GENERATIONS["v5e"]], decoding.batch_size or ROWS
            fewest = fewest_chips(config, chip, rows, context)
            if fewest is None:
                raise ConfigError(
                    f"{source}: no slice of TPU v5e holds {rows} rows of {context} tokens on one "
                    "replica; set config.batch_size lower, or name config.plan.topology."
                )
            named, model = _slice("v5e", fewest), model or fewest
            settings = dataclasses.replace(settings, topology=named)
        devices = topology(named)
        model = model or 1
        mesh = make_mesh(data, model, devices=devices.of_replica(model))
        return cls(
            str(source), config, folder, cut, sizes, settings, decoding, devices, mesh,
            dtype or "bfloat16", method,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of a batch on the mesh."""
        most = self.decoding.batch_size or ROWS
        return batch_rows(most, most, self.mesh.shape["data"])

    @property
    def identity(self) -> dict[str, Any]:
        """What is planned, as JSON values; programs are left out, so that more can be added."""
        named = dataclasses.asdict(self.settings)
        named = {key: value for key, value in named.items() if key != "programs"}
        return {
            "source": self.source,
            "architecture": repr(self.config),
            "topology": self.devices.name,
            "mesh": dict(self.mesh.shape),
            "rows": self.rows,
            "new_tokens": self.decoding.max_new_tokens,
            "decoding": sorted(self.decoding.traced()),
            "sizes": dataclasses.asdict(self.sizes),
            "dtype": self.dtype,
            "method": repr(self.method) if self.method else "",
            "plan": named,
            "jax": jax.__version__,
        }

    def run(
        self,
        known: Mapping[str, CompiledProgram] | None = None,
        done: Callable[[str, HardwarePlan], None] = lambda name, plan: None,
    ) -> HardwarePlan:
        """Compiles the programs.

        Args:
            known: those that were compiled before, which are left out.
            done: called with each program's name and the plan so far.
        """
        recorder = _Recorder(self, dict(known or {}), done)
        wanted = set(self.settings.programs)
        if wanted & {"prefill", "decode"}:
            recorder.answers(shared=False)
        if wanted & {"read_images", "read_prefix", *SHARED} and self.settings.images:
            recorder.answers(shared=True)
        if "logits" in wanted:
            recorder.logits()
        if "edit" in wanted and self.config.decoder.latent is None:
            recorder.edit()
        return recorder.plan()

    def suggestion(self, programs: Mapping[str, CompiledProgram]) -> Suggestion | None:
        """Returns the least that holds programs that took so much here.

        What they take besides weights and caches is supposed to be the same on other meshes; where
        no program holds both, a share of the memory is kept for it.
        """
        chip, model, data = self.devices.chip, self.mesh.shape["model"], self.mesh.shape["data"]
        peaks = [one.peak_bytes for one in programs.values() if one.peak_bytes is not None]
        if chip is None or not peaks:
            return None
        fits = all(one.fits for one in programs.values())
        rows, context = self.rows // data, self.sizes.length + self.decoding.max_new_tokens
        beside = max(peaks) - held_bytes(self.config, model, rows, context)
        fewest = fewest_chips(self.config, chip, rows, context, beside if beside > 0 else None)
        if fits and (fewest is None or fewest > model):
            fewest = model  # what is there is proven
        if fewest is None:
            return None
        named = _slice(self.devices.generation, fewest)
        chips = math.prod(parse(named)[1])
        return Suggestion(named, chips // fewest, fewest, compiled=fits and fewest == model)


def _slice(generation: str, chips: int) -> str:
    """Returns the smallest slice of so many chips at least, or the largest."""
    named = [f"{generation}:{shape}" for shape in SLICES[generation]]
    return next((one for one in named if math.prod(parse(one)[1]) >= chips), named[-1])


class _Recorder:
    """Compiles programs one by one; goes on with shapes where one is not wanted, or too large."""

    def __init__(
        self,
        planner: Planner,
        programs: dict[str, CompiledProgram],
        done: Callable[[str, HardwarePlan], None],
    ):
        self.planner, self.programs, self.done = planner, programs, done
        self.generator = Generator(planner.config, planner.mesh)
        self.params = param_shapes(planner.config, planner.mesh, planner.dtype)
        self.steering, self.strategy = acting(planner.method, planner.config, planner.folder)

    def plan(self) -> HardwarePlan:
        """Returns what is known so far."""
        order = [name for name in (*PROGRAMS, HEAD, *SHARED) if name in self.programs]
        programs = {name: self.programs[name] for name in order}
        return HardwarePlan(self.planner.identity, programs, self.planner.suggestion(programs))

    def answers(self, shared: bool) -> None:
        """Compiles what answers whole prompts, or prompts that share images."""
        planner, sizes = self.planner, self.planner.sizes
        names = {"prefill": "shared_prefill", "decode": "shared_decode"} if shared else {}
        last = max(
            (at for at, name in enumerate(ANSWERING) if name in planner.settings.programs
             and (name in ANSWERING[2:]) == shared),
        )  # fmt: skip
        ends = ANSWERING[last]

        def compile(name: str, program: Any, *args: Any, **static: Any) -> Any:
            name = names.get(name, name)
            self._compile(name, lambda: program.lower(*args, **static), args)
            if name == ends:
                raise _Enough
            return result_shapes(program, args, static, planner.config, planner.mesh)

        width = 1 if not isinstance(self.strategy, Strategy) else self.strategy.width
        rows, image_rows = planner.rows, planner.settings.prefixes
        sharing = max(rows // image_rows, 1)
        before: dict[str, Any] = {}
        if shared:
            before = {
                "prefix": batch_shapes(image_rows, sizes.prefix, sizes, planner.cut, images=True),
                "owner_b": np.arange(rows) // sharing % image_rows,
                "sharing": sharing if rows % sharing == 0 else None,
            }
        length = sizes.suffix if shared else sizes.length
        whole_length = length + (sizes.prefix if shared else 0)
        try:
            self.generator.warm(
                self.params,
                batch_shapes(rows * width, length, sizes, planner.cut, images=not shared),
                planner.decoding,
                **before,
                images_apart=shared,
                stop_ids=planner.config.eos_ids,
                prompts=np.zeros((rows, whole_length), np.int32),
                steering=self.steering,
                strategy=self.strategy,
                compile=compile,
            )
        except _Enough:
            return

    def logits(self) -> None:
        """Compiles what reads prompts without answering, in two where there are many logits."""
        planner, sizes = self.planner, self.planner.sizes

        def compile(name: str, program: Any, *args: Any, **static: Any) -> Any:
            self._compile(name, lambda: program.lower(*args, **static), args)
            return result_shapes(program, args, static, planner.config, planner.mesh)

        batch = batch_shapes(planner.rows, sizes.length, sizes, planner.cut, images=True)
        self.generator.warm_logits(self.params, batch, self.steering, compile=compile)

    def edit(self) -> None:
        """Compiles what factors the heads of a few layers."""
        decoder, devices = self.planner.config.decoder, list(self.planner.mesh.devices.flat)
        shape = decoder.hidden_size, decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
        joint = self.planner.settings.joint
        self._compile("edit", lambda: lower_factoring(*shape, devices, joint=joint))

    def _compile(self, name: str, lower: Callable[[], Any], given: Any = ()) -> None:
        asked = {HEAD: "logits"}.get(name, name)
        if asked not in self.planner.settings.programs or name in self.programs:
            return
        self.programs[name] = compile_program(
            lower(), self.planner.devices.chip, given, by_kind=self.planner.settings.by_kind
        )
        self.done(name, self.plan())


class _Enough(Exception):
    """No further program is wanted."""


def acting(
    section: Any, config: VLMConfig, folder: pathlib.Path
) -> tuple[Steering | None, Strategy | Search | None]:
    """Returns what a config's `method` makes part of programs; edits of weights make nothing.

    Raises:
        ConfigError: a method or setting is unknown, or a value cannot be.
    """
    if not section:
        return None, None
    attention, strategy = [], None
    for given in entries(section):
        if "method" not in given:
            continue  # config.edit with some settings changed
        name = given.pop("method")
        kind = find_method(name).kind
        if kind == "attention":
            attention.append({"method": name, **identified(given, folder)})
        elif kind == "decoding":
            found = decoding_methods.read_named(name, given)
            if isinstance(found, HostMethod):
                raise ConfigError(
                    f"method {name!r} puts answers together of segments; plan the model without it."
                )
            strategy = found
    return read_method(attention, config) if attention else None, strategy


def plan(
    source: str | os.PathLike[str],
    *,
    topology: str = "",
    data: int = -1,
    model: int | None = None,
    dtype: str = "",
    method: Any = None,
    generation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> HardwarePlan:
    """Returns what some hardware makes of a model's programs, without weights or accelerators.

        vlm_jax.plan("Qwen/Qwen2.5-VL-7B-Instruct", topology="v5e:2x2", model=4)

    Args:
        source: a folder with a `config.json`, a shipped model or one of the hub, of which nothing
            but small files is downloaded.
        topology: such as "v5e:4x4", "v5p:2x2x1", "h100:8"; "": the smallest slice of TPU v5e that
            weights and caches fit.
        data, model: the mesh; as `config.mesh`.
        dtype: of weights and activations; "" is bfloat16.
        method: what is done to the model: a name, a mapping of `method` and its settings, or a
            list.
        generation: settings of decoding (`DecodeSettings`): batch_size, max_new_tokens, ...
        settings: of `PlanSettings`.

    Raises:
        ConfigError: the topology is unknown, or what compiles for it is not installed.
    """
    chosen = read(PlanSettings, {"topology": topology, **settings}, "plan")
    decoding = read(DecodeSettings, dict(generation or {}), "generation")
    planner = Planner.of(
        source, chosen, decoding, data=data, model=model, dtype=dtype, method=method
    )
    return planner.run()
