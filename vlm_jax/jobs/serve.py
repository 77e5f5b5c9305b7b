"""Serves a model and the arms of a config by OpenAI's chat API, for harnesses of others."""

import dataclasses
import signal
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.decoding import DecodeSettings
from vlm_jax.edits.qk import METHODS as EDIT_METHODS
from vlm_jax.errors import ConfigError
from vlm_jax.methods import methods
from vlm_jax.serving.batcher import Arms, Batcher
from vlm_jax.serving.chat import refuse_files
from vlm_jax.settings import number, plain, read, secret, setting, text, whole
from vlm_jax.study.arms import ArmReader, plan_edits
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import load_model
from vlm_jax.study.treated import EDIT, treated

_MOST_METHODS = 16  # of one request


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What `config.serve` says.

    Attributes:
        host: address to listen at; other machines reach one that is not the loopback's.
        port: 0 is any free one.
        api_key_variable: the environment variable that holds the key which clients must give; a
            variable that is not set asks for none.
        max_megabytes: of a request, its images included.
        batch: requests answered at once at most.
        wait_ms: how long the first request of a batch waits for others.
        max_waiting: requests that may wait; more are told to come again.
    """

    host: str = setting("127.0.0.1", text)
    port: int = setting(8000, whole, low=0, high=65535)
    api_key_variable: str = setting("VLM_JAX_API_KEY", text)
    max_megabytes: float = setting(32, number, low=0.001, high=4096)
    batch: int = setting(64, whole, low=1, high=4096)
    wait_ms: float = setting(10, number, low=0, high=10_000)
    max_waiting: int = setting(1024, whole, low=1)


def run(request: Request) -> None:
    """Serves `--source` as "unedited" and the config's arms by name, until it is told to end.

    Images come as data URLs. SIGTERM and Ctrl-C end it once what was asked is answered.

    Raises:
        ConfigError: a setting cannot be, an address is open to others without a key, or starlette
            and uvicorn are not installed.
    """
    chosen = read(ServeSettings, plain(request.config.get("serve", {})), "config.serve")
    key = secret(chosen.api_key_variable)
    if not key and chosen.host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"config.serve.host={chosen.host!r} is open to others: set the environment variable "
            f"{chosen.api_key_variable or '(name one by config.serve.api_key_variable)'} to a key."
        )
    try:
        import uvicorn

        from vlm_jax.serving.app import make_app
    except ImportError:
        raise ConfigError(
            "--job=serve needs starlette and uvicorn: pip install 'vlm_jax[serve]'."
        ) from None
    arms = read_arms(request)
    batcher = Batcher(chosen.batch, chosen.wait_ms / 1000)
    app = make_app(
        arms,
        batcher,
        DecodeSettings.of_config(request.config),
        treat=lambda model, method: treat_request(model, method, request.config),
        api_key=key,
        max_bytes=int(chosen.max_megabytes * 2**20),
        max_waiting=chosen.max_waiting,
    )
    server = uvicorn.Server(
        uvicorn.Config(app, host=chosen.host, port=chosen.port, log_level="warning")
    )
    print(f"Serving {', '.join(arms)} at http://{chosen.host}:{chosen.port}/v1", flush=True)
    # uvicorn raises the signal that ended it once more when all is answered; it did its work.
    ends = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda number, frame: None) for one in ends}
    try:
        server.run()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    print(f"Ended; {sum(batcher.batches)} requests in {len(batcher.batches)} batches.")


def read_arms(request: Request) -> Arms:
    """The loaded model as "unedited", and as each arm of the config; a random arm's first draw."""
    source = checkpoint.open_folder(request.need("source"))
    listed = ArmReader.of(request.config, source).arms(request.config.arms)
    model = load_model(request, source)
    model.keep_prefixes(int(request.config.prefix_cache_mb * 2**20))
    planned = plan_edits(source, (arm.draws[0].edit for arm in listed if arm.draws[0].edit))
    return {arm.name: arm.draws[0].apply(model, planned) for arm in listed}


def treat_request(model: VLM, method: Any, config: Any) -> VLM:
    """Returns an arm with the methods that a request names in `extra_body`.

    Raises:
        UserError: a method or a setting is unknown, names a file, or edits weights.
    """
    listed = method if isinstance(method, list) else [method]
    if len(listed) > _MOST_METHODS:
        raise ConfigError(f"method lists {len(listed)} methods; {_MOST_METHODS} can act together.")
    entries = [{"method": one} if isinstance(one, str) else one for one in listed]
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
            raise ConfigError("method must be a name, {'method': name, ...}, or a list of such.")
        if entry["method"] in (EDIT, *EDIT_METHODS) or _edits(entry["method"]):
            raise ConfigError(
                f"method {entry['method']!r} edits weights; name it as an arm in config.arms."
            )
        refuse_files(entry)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.method = entries
    return treated(model, config)


def _edits(method: str) -> bool:
    """Whether a known method makes other weights."""
    known = methods().get(method)
    return known is not None and known.kind == "weights"
