"""What every job that runs a model needs: the model, the compile cache, settings, provenance."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from vlm_jax.api import VLM
from vlm_jax.checkpoint import ModelFolder
from vlm_jax.decoding import DecodeSettings
from vlm_jax.evals.base import Example
from vlm_jax.evals.protocol import parts_of
from vlm_jax.evals.results import package_versions
from vlm_jax.evals.runner import Share
from vlm_jax.files import cache_folder
from vlm_jax.loading import load
from vlm_jax.parallel import make_mesh, processes
from vlm_jax.processing.images import pixel_limit
from vlm_jax.settings import read, setting, whole
from vlm_jax.study.request import Request

_log = logging.getLogger(__name__)

PACKAGES = ("vlm_jax", "jax", "jaxlib", "flax", "transformers", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """What `config.mesh` says.

    Attributes:
        data: replicas of the model; -1 is as many as there are devices for.
        model: devices of a replica.
    """

    data: int = setting(-1, whole, low=-1)
    model: int = setting(1, whole, low=1)


def load_model(request: Request, source: ModelFolder) -> VLM:
    """Loads the job's source on the config's mesh, with compiled programs kept between runs."""
    config = request.config
    enable_compile_cache(config.compile_cache)
    asked = read(MeshSettings, config.mesh, "config.mesh")
    mesh = make_mesh(asked.data, asked.model)
    return load(
        source,
        dtype=config.dtype or None,
        mesh=mesh,
        max_image_pixels=pixel_limit("config.max_image_pixels", config.max_image_pixels),
        max_tiles=whole("config.max_tiles", config.max_tiles, low=0),
        min_pixels=whole("config.min_pixels", config.min_pixels, low=0),
        max_pixels=whole("config.max_pixels", config.max_pixels, low=0),
    )


def enable_compile_cache(folder: str) -> None:
    """Keeps compiled programs in a folder: "" is the user's cache folder, "off" is none.

    A folder that cannot be had is none either, and the log says so.
    """
    if folder == "off":
        return
    if not folder:
        own = cache_folder()
        if own is None:
            _not_kept("the user has no home folder")
            return
        folder = str(own / "compiled")
    try:
        if "://" not in folder:  # as of a bucket
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _not_kept(f"{folder} cannot be made ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _not_kept(why: str) -> None:
    _log.warning("compiled programs are not kept: %s; name another config.compile_cache.", why)


def share(config: Any) -> Share:
    """This process's part of a run's answers; processes that share a replica have one together."""
    team = processes.replica_team(read(MeshSettings, config.mesh, "config.mesh").model)
    size = len(team.members)
    return Share(
        processes.index() // size,
        processes.count() // size,
        processes.agree,
        team.in_step,
        writes=team.leads,
    )


def generation_settings(config: Any, model: VLM, examples: Iterable[Example]) -> DecodeSettings:
    """Returns how a config wants examples answered, with room behind all prompts (`VLM.room`)."""
    settings, asked = DecodeSettings.of_config(config), list(examples)
    images, prompts = [list(one.images) for one in asked], [one.prompt for one in asked]
    room = model.room(images, prompts, settings.max_new_tokens)
    return settings.replace(max_new_tokens=room)


def generation_identity(config: Any, model: VLM) -> dict[str, Any]:
    """Returns what besides the weights makes an answer what it is, as JSON values."""
    dtype = str(next(iter(model.params.values())).dtype)
    settings = DecodeSettings.of_config(config).following(model.processor.generation)
    return {**settings.identity, "dtype": dtype, **parts_of(model.processor.identity)}


def provenance(config: Any) -> dict[str, Any]:
    """Returns what every result file carries: settings, versions, seeds, device."""
    device = jax.local_devices()[0]
    kind = device.device_kind if device.platform != "cpu" else "CPU"
    return {
        "config": config.to_dict(),
        "versions": package_versions(PACKAGES),
        "seeds": {"run": config.seed},
        "device": f"{jax.device_count()} x {kind}",
    }
