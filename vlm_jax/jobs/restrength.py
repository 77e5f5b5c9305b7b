"""Makes the edit of an edited folder at another strength, as if from the original weights."""

from vlm_jax import checkpoint
from vlm_jax.checkpoint import CERTIFICATE
from vlm_jax.edits.qk.certificate import sentence
from vlm_jax.edits.qk.folder import restrength_folder
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number
from vlm_jax.study.request import Request


def run(request: Request) -> None:
    """Writes `--source`, edited already, to `--target` at the strength `config.restrength`.

    Raises:
        ConfigError: the strength is not set.
    """
    given = request.config.get("restrength", None)
    if given is None:
        raise ConfigError("Set config.restrength, the strength that the edit gets.")
    strength = number("config.restrength", given)
    source, target = checkpoint.open_folder(request.need("source")), request.need("target")
    made = sentence(restrength_folder(source, target, strength))
    print(f"{made}\nEdited model: {target} (certificate: {CERTIFICATE})")
