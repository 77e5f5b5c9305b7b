"""Edits the weights of a model folder; the result is a folder of the same format.

An edited folder carries a certificate, which its weights are checked against whenever they are
read, and a sidecar, which takes the edit back or makes it at another strength without the source.
"""

from vlm_jax import checkpoint
from vlm_jax.checkpoint import CERTIFICATE
from vlm_jax.edits.qk.certificate import sentence
from vlm_jax.edits.qk.folder import edit_folder, read_edit, restrength_folder, revert_folder
from vlm_jax.errors import ConfigError
from vlm_jax.study.request import Request


def run(request: Request) -> None:
    """Edits `--source` into `--target` as `config.edit` says.

    Of a source that is edited already, `config.revert=True` does what the job `revert` does, and
    `config.restrength=a` what the job `restrength` does; any other edit of it is refused.

    Raises:
        ConfigError: the config asks for several of these, or for a fold.
    """
    source = checkpoint.open_folder(request.need("source"))
    target = request.need("target")
    revert = request.config.get("revert", False)
    strength = request.config.get("restrength", None)
    given = {
        "revert": revert,
        "restrength": strength is not None,
        "fold": request.config.get("fold"),
    }
    chosen = [f"config.{name}" for name, on in given.items() if on]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; give one of them.")
    if given["fold"]:
        raise ConfigError("config.fold is a job of its own: say --job=fold in place of --job=edit.")
    if revert:
        revert_folder(source, target)
        print(f"Original model: {target}")
        return
    if strength is not None:
        certificate = restrength_folder(source, target, strength)
    else:
        spec = read_edit(request.config.edit, seed=request.config.seed)
        certificate = edit_folder(source, target, spec)
    print(f"{sentence(certificate)}\nEdited model: {target} (certificate: {CERTIFICATE})")
