"""Turns a command line into one call of a job; a user's error is one line."""

import _thread
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

# Before anything imports these: BLAS threads fight XLA's, and transformers reports that it cannot
# run models, which it is not here for.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import flags
from ml_collections import ConfigDict

from vlm_jax import __version__
from vlm_jax.cli import configs, listing, logs
from vlm_jax.cli.listing import Job
from vlm_jax.errors import UserError
from vlm_jax.files import expanded
from vlm_jax.settings import nearest
from vlm_jax.terminal import printable

if TYPE_CHECKING:
    from vlm_jax.study.request import Request

_CONFIG = re.compile(r"--?config(?P<setting>\.[^=]*)?(?:=(?P<value>.*))?", re.DOTALL)
_INTERRUPTED = 130  # exit codes, as of a program that the signal ended
_UNREAD = 141
_LONGEST = 2000  # characters of a message
_HELP = ("-h", "--help", "-help", "--helpshort")


def main(argv: Sequence[str] | None = None) -> None:
    """The command: runs what the words say, and exits with 1 and one line where they are wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
    for stream in (sys.stdout, sys.stderr):  # what the locale cannot show is shown as its number
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    before = signal.signal(signal.SIGINT, _leave), sys.unraisablehook
    sys.unraisablehook = _interrupt_again
    try:
        _run(words)
    except UserError as error:
        sys.exit(f"error: {_one_line(str(error))}")
    except BrokenPipeError:  # as in `vlm-jax --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_UNREAD)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({_one_line(str(error.filename))})" if error.filename else ""
        if not os.path.isdir("."):
            where = ": the working folder is gone; cd to one that is there"
        sys.exit(f"error: {error.strerror}{where}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        if _others_wait():
            os._exit(_INTERRUPTED)
        sys.exit(_INTERRUPTED)
    except Exception:  # a fault of ours
        if _others_wait():
            traceback.print_exc()
            os._exit(1)
        raise
    finally:
        signal.signal(signal.SIGINT, before[0])
        if sys.unraisablehook is _interrupt_again:  # and not somebody's since
            sys.unraisablehook = before[1]


def _open_closed() -> None:
    """Opens to nobody what a shell closed by `2>&-`.

    The next file to be opened would else be number 2, and libraries would print into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nobody = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        setattr(sys, name, open(nobody, "w" if number else "r", closefd=False))  # noqa: SIM115


def _others_wait() -> bool:
    """Whether others wait for this process, which then ends at once: JAX would wait for them."""
    parallel = sys.modules.get("vlm_jax.parallel.processes")
    return parallel is not None and parallel.count() > 1


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeats an interrupt that came while garbage was collected, where Python ignores errors."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


def _one_line(text: str) -> str:
    """A message on one line: control characters shown, and what is very long cut in the middle."""
    line = printable(text.replace("\n", " "))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} [...] {line[-300:]}"


def _leave(signal_number: int, frame: object) -> None:
    """Ends the process at once: an import that is interrupted may print, or fail in its own way."""
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(_INTERRUPTED)


def _run(words: list[str]) -> None:
    if "--version" in words or "-version" in words:
        print(f"vlm_jax {__version__}")
        return
    words = ["--help", *words[1:]] if words[:1] == ["help"] else words
    full = "--helpfull" in words
    if full or not words or any(word in _HELP for word in words):
        from vlm_jax.cli import help

        logs.start(-1)
        words = [word for word in words if word not in (*_HELP, "--helpfull")]
        named, changes, _ = _split(words)
        help.show(own_flags(), _read_config(named, changes, _named_job(words)) if full else None)
        return
    named, changes, rest = _split(words)
    given = _parse(rest)
    job = _job(given.job)
    _check_folders(given)
    # At once: configs and jobs import JAX, which takes a while.
    print(_opening(job, named, given.source), file=sys.stderr, flush=True)
    if not job.alone:
        _import_jax()
    config = _read_config(named, changes, job)
    # Warnings alone: the checkpoint library reports every read.
    logs.start(-1 if given.verbosity is None else given.verbosity)
    names = [name for name, _ in changes]
    work = lambda: _work(job, given, config, names, named)
    if job.alone:
        work()
    else:
        _work_together(job, given, work)


def own_flags() -> dict[str, str]:
    """The flags of this command, and what they are for."""
    known = _flags()
    return {name: known[name].help or "" for name in known if name != "?"}


def _flags() -> flags.FlagValues:
    """The flags beside the config's."""
    known = flags.FlagValues()
    text = lambda name, help: flags.DEFINE_string(name, None, help, flag_values=known)
    texts = lambda name, help: flags.DEFINE_list(name, [], help, flag_values=known)
    number = lambda name, help: flags.DEFINE_integer(name, None, help, flag_values=known)
    text("job", "What to do.")
    texts(
        "source", "Model to read: folder, hub name or shipped model; evaluate reads several: a,b."
    )
    text("target", "Folder to write; must not exist.")
    text("workdir", "Folder for answers and results.")
    text("answers", "score: JSONL of captions or answers.")
    texts("truth", "score: object tables, COCO annotations or POPE questions.")
    text("baseline", "score: answers to take paired differences from.")
    text("coordinator", "Several processes: host:port of the first.")
    number("num_processes", "Several processes: how many; 1 is alone.")
    number("process_id", "Several processes: which one this is, from 0.")
    number("verbosity", "What is logged: -1 warnings (the default), 0 information, 1 more.")
    return known


def _split(words: Sequence[str]) -> tuple[str | None, configs.Changes, list[str]]:
    """Divides a command's words.

    ["--job=edit", "--config", "edit", "--config.edit.k=2"] ->
    ("edit", [("edit.k", "2")], ["--job=edit"])

    Returns:
        The config named, settings changed (name, text), and the words that are neither.

    Raises:
        UserError: a setting has no value, or the config is named twice.
    """
    named: str | None = None
    changes: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        found = _CONFIG.fullmatch(word)
        if found is None:
            rest.append(word)
            continue
        value = found["value"] if found["value"] is not None else next(waiting, "--")
        if found["value"] is None and value.startswith("--"):
            raise UserError(f"{word} has no value; write {word}=<value>.")
        if found["setting"]:
            changes.append((found["setting"][1:], value))
        elif named is None:
            named = value
        else:
            raise UserError(f"--config is given twice: {named!r} and {value!r}; name one.")
    return named, changes, rest


def _parse(words: Sequence[str]) -> flags.FlagValues:
    """Returns the flags with the values that the words give.

    ["verify", "a", "b"] means ["--job=verify", "--source=a,b"].

    Raises:
        UserError: one is unknown (the nearest is named) or has a wrong value, or a word is no flag.
    """
    known = _flags()
    known.set_gnu_getopt(True)
    try:
        extra = known(["vlm-jax", *words])[1:]
    except flags.UnrecognizedFlagError as error:
        settings = [name for name, _ in configs.settings(configs.read("base"))]
        meant = [name for name in settings if name.endswith(f".{error.flagname}")]
        hint = nearest(error.flagname, ["config", *known])
        hint = f" (did you mean --{min(meant, key=len)}?)" if meant else hint
        raise UserError(f"There is no flag --{error.flagname}{hint}; see --help.") from None
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if extra and known.job is None:
        known.job = extra.pop(0)
    if extra and not known.source:
        known.source, extra = [part for word in extra for part in word.split(",")], []
    if extra:
        raise UserError(f"Unexpected word {extra[0]!r}: settings are flags, see --help.")
    for name in known:
        value = known[name].value
        if value == "" or str(value).startswith("--"):  # as of --workdir=$UNSET
            raise UserError(f"--{name} has no value; write --{name}=<value>.")
        if isinstance(value, str):
            known[name].value = expanded(value)
        elif isinstance(value, list):
            known[name].value = [expanded(one) for one in value]
    return known


def _job(name: str | None) -> Job:
    """The job of a name.

    Raises:
        UserError: there is none; names the nearest.
    """
    known = listing.jobs()
    if name is None:
        raise UserError(f"--job is missing: one of {', '.join(known)}; see --help.")
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"There is no job {name!r}{hint}: one of {', '.join(known)}.")
    return known[name]


def _named_job(words: Sequence[str]) -> Job | None:
    """The job that the words name, if they do."""
    found = re.search(r"(?:^|--?job[= ])(\w\S*)", " ".join(words))
    return _job(found[1]) if found else None


def _read_config(
    named: str | None, changes: Sequence[tuple[str, str]], job: Job | None
) -> ConfigDict:
    return configs.read(named or (job.config if job else "base"), changes)


def _opening(job: Job, named: str | None, sources: Sequence[str]) -> str:
    """What is about to be done, for a reader who now waits for JAX to start."""
    of = f" {', '.join(sources)}" if sources else ""
    return f"{job.name}{of} (settings: {named or job.config}) ..."


def _check_folders(given: flags.FlagValues) -> None:
    """Refuses folders that cannot be written, before any work.

    Raises:
        UserError: naming the flag and what is in the way.
    """
    for flag in ("target", "workdir"):
        text = given[flag].value
        if not text:
            continue
        path = pathlib.Path(_path(flag, text))
        if flag == "target" and (path.exists() or path.is_symlink()):
            raise UserError(f"{path} exists already; remove it or name another --target.")
        above = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
        if not above.exists():
            raise UserError(
                f"--{flag}={path} cannot be made: {above} is a link that leads nowhere."
            )
        if not above.is_dir():
            raise UserError(f"--{flag}={path} cannot be a folder: {above} is a file.")
        if not os.access(above, os.W_OK | os.X_OK):
            what = "be written to" if above == path else f"be made: {above} may not be written"
            raise UserError(f"--{flag}={path} cannot {what}.")


def _path(flag: str, text: str) -> str:
    """A path as a file system takes it; bytes that are no text are kept as they are.

    Raises:
        UserError: a character of it is NUL or half of a surrogate pair.
    """
    try:
        if b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise UserError(f"--{flag}={text!r} is no path: it holds a character that none can.")


def _import_jax() -> None:
    """Imports JAX, which reads variables of the environment.

    Raises:
        UserError: one is none that JAX can read.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UserError(f"JAX does not start: {error}. Unset that variable.") from None


def _of_devices(error: BaseException) -> bool:
    """Whether JAX raised this while it looked for its devices."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("xla_bridge.py")


def _work_together(job: Job, given: flags.FlagValues, work: Callable[[], None]) -> None:
    """Runs the job in all processes, or in process 0; an error in one is an error in all."""
    from vlm_jax.parallel import processes

    processes.start(given.coordinator, given.num_processes, given.process_id)
    if not processes.primary():  # process 0 speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    share = processes.agree if job.shared else processes.by_primary
    share(work)


def _work(
    job: Job,
    given: flags.FlagValues,
    config: ConfigDict,
    changed: Sequence[str],
    named: str | None,
) -> None:
    """Runs the job.

    Raises:
        UserError: what the job finds wrong, or no device that the environment names is there.
    """
    request = _request(given, config, changed, job.reads_weights)
    if named is None:
        _check_default(job, request)
    run = job.load()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job puts its files in order
    try:
        run(request)
    except (RuntimeError, AssertionError) as error:
        if not _of_devices(error):
            raise
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={platforms!r}: {error or 'not installed'}; "
            "unset it, or JAX_PLATFORMS=cpu."
        ) from None


def _check_default(job: Job, request: "Request") -> None:
    """Refuses a job's default settings where they ask the testbed's questions of another model.

    Its scenes and words are for models that were trained on them.

    Raises:
        UserError: naming the configs for other models.
    """
    sections = [one for one in request.config.benchmarks.values() if isinstance(one, ConfigDict)]
    if not any(str(one.get("kind", "")).startswith("testbed_") for one in sections):
        return
    for source in request.sources or filter(None, [request.source]):
        if not (source / "recipe.json").is_file():
            raise UserError(
                f"{source} was not trained on the testbed, whose scenes and words the default "
                f"settings of --job={job.name} ask about; name a config for other models: "
                f"{', '.join(f'--config={name}' for name in job.others)} (or --config={job.config} "
                "if the testbed is meant)."
            )


def _request(
    given: flags.FlagValues, config: ConfigDict, changed: Sequence[str], weights: bool = True
) -> "Request":
    """What the job is asked."""
    from vlm_jax import hub
    from vlm_jax.study.request import Request

    sources = [hub.resolve(name, weights) for name in given.source]
    path = lambda text: None if text is None else pathlib.Path(text)
    return Request(
        config=config,
        source=sources[0] if len(sources) == 1 else None,
        sources=tuple(sources) if len(sources) > 1 else (),
        target=path(given.target),
        workdir=path(given.workdir),
        answers=path(given.answers),
        truth=tuple(map(pathlib.Path, given.truth)),
        baseline=path(given.baseline),
        changed=tuple(changed),
    )
