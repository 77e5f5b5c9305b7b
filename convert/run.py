"""The conversions, and what is checked without them, as jobs of `launch.py`."""

import dataclasses

import convert as _convert
from vlm_jax.errors import ConfigError, UserError
from vlm_jax.hub import called
from vlm_jax.settings import one_of, read, setting, switch
from vlm_jax.study.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What `config.export` says; `configs/base.py` says what it means."""

    names: str = setting("as_source", one_of, known=_convert.NAMES)
    plugin: bool = setting(False, switch)


def convert(request: Request) -> None:
    """Converts `--source`, a Hugging Face folder, to `--target`."""
    target = request.need("target")
    _convert.import_hf(request.need("source"), target)
    print(f"Converted model: {target}")


def export(request: Request) -> None:
    """Exports `--source`, a converted folder, to `--target` as a Hugging Face folder.

    `config.export` says how tensors are named, and whether `config.method` goes with it, as a file
    for users of torch.

    Raises:
        ConfigError: the method is none that such a file can hold.
    """
    chosen = read(ExportSettings, request.config.get("export", {}), "config.export")
    source, target = request.need("source"), request.need("target")
    plugin = _plugin(request, source) if chosen.plugin else None
    _convert.export_hf(source, target, names=chosen.names)
    print(f"Hugging Face model: {target}")
    if plugin is not None:
        print(f"Steering for torch: {plugin.write(target)} (its first lines say how to use it)")


def _plugin(request: Request, source):
    from convert.plugin_files import Plugin
    from vlm_jax.checkpoint import open_folder
    from vlm_jax.study.arms import ArmReader

    if not request.config.get("method"):
        raise ConfigError(
            "config.export.plugin=True takes config.method along, which names none; set "
            "--config.method=air, for example."
        )
    folder = open_folder(source)
    arm = ArmReader.of(request.config, folder).arm("plugin", request.config.method, "config.method")
    draw = arm.draws[0]
    if draw.steering is None or draw.edit is not None or draw.strategy is not None:
        raise ConfigError(
            "config.export.plugin=True holds what is done to attention, and config.method does "
            "something else; edits of weights need no file: export what --job=edit made."
        )
    return Plugin(folder.config, draw.steering, draw.methods)


def verify(request: Request) -> None:
    """Holds an edited folder against its original and its certificate (`vlm-jax verify A B`).

    Raises:
        UserError: two folders are not named, or the edited one is not as certified.
    """
    if len(request.sources) != 2:
        raise UserError("verify takes two folders: vlm-jax verify <original> <edited>.")
    found = _convert.verify_hf(*request.sources)
    print(found)
    found.check()
    changed = "changed as certified and nowhere else" if found.heads else "unchanged"
    edited, original = map(called, (found.edited, found.original))
    print(f"\n{edited} is {original}, {changed}.")
