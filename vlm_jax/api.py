"""The Python interface: load a model, apply methods to it, generate answers.

`apply` returns a copy of the model with a method added, which is used as the model itself is:

    vlm = vlm_jax.load("llava-0")
    vlm.generate("photo.jpg", "Describe the image.")
    vlm.apply("air", heads="identified", text_gain=0.5).generate("photo.jpg", "Describe the image.")
    vlm.apply("qk", k=4, strength=0.5).save("edited")
"""

import copy
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax import asking, checkpoint, saving
from vlm_jax.answering import Answer, Asking, DeviceStore, Failure
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.calls import ImagesOf, read_call
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import DecodeSettings, Generator
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.edits import Certificate
from vlm_jax.errors import ConfigError
from vlm_jax.listing import html_table
from vlm_jax.masses import read_masses, refuse_two_passes
from vlm_jax.methods import settings_of, treat
from vlm_jax.models import Params, Prefix
from vlm_jax.parallel import lay_out, put
from vlm_jax.processing import ImageSource, Processor
from vlm_jax.progress import Progress
from vlm_jax.side_by_side import SideBySide
from vlm_jax.sweeping import sweep
from vlm_jax.treatments import Edited, Treatment, steering_of

_OPTIONS = set(DecodeSettings.defaults())


class VLM:
    """A vision-language model on a mesh, with its processor and the methods applied to it.

    Args:
        config: the architecture.
        params: parameters by path, on the mesh.
        processor: the folder's tokenizer and image processor.
        mesh: (`data`, `model`) mesh.
        generator: compiled programs to share.
        folder: where the parameters are from; edits and `save` need it.

    Attributes:
        treatments: what `apply` has added, in order.
        steering: what they do to attention together, leaves [1, L, N]; None: nothing.
        generator: the compiled programs, shared by treated copies and by models of the same
            architecture on the same mesh that `vlm_jax.load` returned.
        prefixes: prompts through their last image that earlier calls have read; none are kept
            until `keep_prefixes` gives them room.
        images: the features of these prompts' images, likewise, shared with copies whose decoder
            alone was edited.
        buckets: static sizes that calls have met so far; each has its programs.
    """

    def __init__(
        self,
        config: VLMConfig,
        params: Params,
        processor: Processor,
        mesh: Mesh,
        generator: Generator | None = None,
        folder: checkpoint.ModelFolder | None = None,
    ):
        self.config, self.params, self.processor, self.mesh = config, params, processor, mesh
        self.generator = generator or Generator(config, mesh)
        self.folder = folder
        self.treatments: tuple[Treatment, ...] = ()
        self.steering: Steering | None = None
        self.prefixes: DeviceStore[Prefix] = DeviceStore()
        self.images: DeviceStore[Batch] = DeviceStore()
        self.buckets: set[Hashable] = set()
        self._given_params = False  # not the folder's, nor those of an edit of it

    @property
    def name(self) -> str:
        """The folder's name, or the family where there is none."""
        return self.config.family if self.folder is None else self.folder.path.resolve().name

    @property
    def certificate(self) -> Certificate | None:
        """What the last edit did to the weights, or the one that made the folder; None: none."""
        edits = [one for one in self.treatments if isinstance(one, Edited)]
        if edits:
            return edits[-1].certificate
        found = None if self.folder is None else self.folder.certificate
        return None if found is None else Certificate(found.path.read_bytes())

    def keep_prefixes(self, limit_bytes: int) -> None:
        """Keeps what is read of prompts through their last image for later calls.

        Calls that differ in their questions, logit biases or in steering of the rows behind an
        image then decode and read each image once. Copies of the model whose decoder was edited
        read those rows anew, from what the tower made of the images here.

        Args:
            limit_bytes: device memory that these rows' keys and values may take, and the images'
                features as well; a copy takes it for keys and values again.
        """
        self.prefixes, self.images = DeviceStore(limit_bytes), DeviceStore(limit_bytes)

    def apply(self, method: str | Callable[..., Any], /, **settings: Any) -> "VLM":
        """Returns the model with a method applied; this one stays as it is.

        `vlm_jax.methods()` lists the methods and their settings. Methods add up:
        `vlm.apply("qk", k=4).apply("air", heads="identified")` steers the edited model. Nothing is
        compiled before the first answer, and an edit compiles nothing at all.

        Args:
            method: its name; or a function of the model's config and of settings that returns a
                `Steering`, as attention methods are: `vlm.apply(mine, gain=1.2)`.
            settings: what it takes. heads="identified" is the model folder's `heads.json`, which
                the shipped models have and `--job=identify` makes.

        Raises:
            ConfigError: there is no such method or setting, a value cannot be, or an earlier
                method sets the same part.
            EditError: an edit does not fit the model.
        """
        return treat(method, self, settings).apply(self)

    def treated(
        self,
        treatment: Treatment,
        replace: Mapping[str, Callable[[], np.ndarray]] | None = None,
    ) -> "VLM":
        """Returns a copy with one more treatment; `apply` says it by name.

        Args:
            treatment: what is added.
            replace: our path -> function that gives the parameter in its stored dtype.

        Raises:
            ConfigError: another treatment sets the same part of attention.
        """
        treatments = (*self.treatments, treatment)
        steering = steering_of(treatments)
        other = copy.copy(self)
        if replace:
            params = dict(self.params)
            folder = self.source_folder("an edit of its weights")
            with Progress(len(replace), "tensors", treatment.method, brief=True) as progress:
                for path, make in replace.items():
                    old = params[path]
                    # Rounded to the stored dtype first: that is what an edited folder holds.
                    array = folder.replacement(path, make)
                    params[path] = put(array.astype(old.dtype), old.sharding)
                    progress.advance()
            other = self._with_params(params)
        other.treatments, other.steering = treatments, steering
        return other

    def untreated(self) -> "VLM":
        """Returns the model as it was loaded, without its treatments.

        Raises:
            ConfigError: its weights were edited and it has no folder to read them from again.
        """
        other = copy.copy(self)
        edits = [one for one in self.treatments if isinstance(one, Edited)]
        if edits:
            folder, params = self.source_folder("untreated"), dict(self.params)
            for path, array in folder.stream(path for edit in edits for path in edit.made.replace):
                old = params[path]
                params[path] = put(array.astype(old.dtype), old.sharding)
            other = self._with_params(params)
        other.treatments, other.steering = (), None
        return other

    def sweep(
        self,
        method: str | Callable[..., Any],
        /,
        *,
        images: Any = None,
        prompts: Any = None,
        **settings: Any,
    ) -> SideBySide:
        """Returns the answers to some questions with a method at many settings.

            vlm.sweep("air", heads="identified", text_gain=[0.1, 0.5, 1.0],
                      images=["a.jpg", "b.jpg"], prompts="Describe.")

        Settings of attention share batches, row by row, and one compiled program; edits of weights
        compile nothing.

        Args:
            method: its name, or a function; see `apply`.
            images, prompts: as for `generate`.
            settings: of the method, where a list is several values and a tuple one; several lists
                are all of their combinations. What is no setting of the method is one of
                `generate`.

        Raises:
            ConfigError: no setting lists values, or one is wrong.
            PromptError: see `generate`.
        """
        call = read_call(images, prompts)
        own = set(settings_of(method))
        options = {name: settings.pop(name) for name in set(settings) & _OPTIONS - own}
        limit = self.room(call.images, call.prompts, _changed(None, options).max_new_tokens)
        return sweep(self, method, settings, call, {**options, "max_new_tokens": limit})

    def attention(
        self,
        images: ImagesOf | None = None,
        prompts: str | Sequence[str] | None = None,
        *,
        max_new_tokens: int = 64,
    ) -> Any:
        """Returns where each head looks while the model writes its greedy answer.

            vlm.attention("photo.jpg", "Describe.").image    # [tokens, layers, heads]

        Args:
            images, prompts, max_new_tokens: as for `generate`.

        Returns:
            `Masses`: how much of each head's attention goes to the image, to text behind it and to
            what comes before, for every token of the answer; one, or a list as for `generate`.

        Raises:
            PromptError: see `generate`.
            ConfigError: the model classifies heads in a pass of its own.
        """
        refuse_two_passes(self)
        call = read_call(images, prompts)
        limit = _changed(None, {"max_new_tokens": max_new_tokens}).max_new_tokens
        options = {"max_new_tokens": self.room(call.images, call.prompts, limit)}
        reading = asking.all_steering(self, asking.reading_masses(self))
        assert reading is not None
        answers = self.ask(call.images, call.prompts, options)
        groups = call.images or [[] for _ in call.prompts]
        found = [
            read_masses(self, answer, images, prompt, reading)
            for answer, images, prompt in zip(answers, groups, call.prompts)
        ]
        return found[0] if call.single else found

    def with_params(self, params: Params) -> "VLM":
        """Returns the same model with other weights; nothing is compiled again."""
        other = self._with_params(params)
        other._given_params = True
        return other

    def _with_params(self, params: Params) -> "VLM":
        other = copy.copy(self)
        # Arithmetic on arrays may spell an equal sharding differently, which jit would recompile.
        other.params = {
            path: jax.device_put(params[path], a.sharding) for path, a in self.params.items()
        }
        lay_out(other.params)
        other.keep_prefixes(self.prefixes.limit_bytes)
        if all(params[path] is a or path.startswith("decoder/") for path, a in self.params.items()):
            other.images = self.images
        return other

    def source_folder(self, what: str) -> checkpoint.ModelFolder:
        """Returns the folder that the weights are from.

        Args:
            what: needs it, for the error.

        Raises:
            ConfigError: the model has none, or its weights were replaced since.
        """
        if self.folder is None or self._given_params:
            why = "was made of arrays" if self.folder is None else "has weights of with_params"
            raise ConfigError(
                f"This model {why}, and {what} needs the folder that weights are from; use a model "
                "of vlm_jax.load."
            )
        return self.folder

    def save(self, target: str | os.PathLike[str]) -> None:
        """Writes the model as a folder of the source's format: its edits, or a plain copy.

        An edited folder carries its certificate and, of the query-key edit, the sidecar that takes
        it back, as `--job=edit` writes them.

        Args:
            target: the new folder; must not exist.

        Raises:
            ConfigError: the model is steered, which no weights can hold.
            CheckpointError: the target exists or cannot be written.
        """
        saving.save(self, target)

    def generate(
        self,
        images: ImagesOf | None = None,
        prompts: str | Sequence[str] | None = None,
        *,
        settings: DecodeSettings | None = None,
        return_readings: bool = False,
        **changes: Any,
    ) -> Any:
        """Answers prompts about images.

            vlm.generate("photo.jpg", "Describe.")                    # a text
            vlm.generate(["a.jpg", "b.jpg"], "Describe.")             # two texts, one an image
            vlm.generate("a.jpg", ["Is there a cat?", "A dog?"])      # two texts about one image
            vlm.generate([["a.jpg", "b.jpg"], "c.jpg"], ["Compare.", "Describe."])
            vlm.generate(prompts="What is a cup for?")                # no image
            vlm.generate("a.jpg", [["A cat?", "Yes.", "What colour?"]])   # one sample, three turns

        Args:
            images: one image (a path, a PIL image, or uint8 pixels [height, width, 3] or [height,
                width]), or a list with an entry a sample: an image, a list of images that go
                together, or None. `vlm_jax.calls` has the table. Paths are turned by their EXIF
                orientation, PIL images are taken as they are.
            prompts: the user's turn, through the folder's chat template; one, or a list, whose
                entries may be lists of turns.
            settings: of decoding; greedy by default. A `max_new_tokens` of more than half of the
                model's positions is cut to what the longest prompt leaves, which is logged.
            return_readings: gives `Answer`s, with tokens and with what attention did
                (`Answer.readings`), in place of texts.
            changes: single settings, such as `max_new_tokens=64` or `temperature=0.7`; see
                `vlm_jax.decoding.DecodeSettings` for all.

        Returns:
            The answer as text where one prompt was asked of one image or of none, and a list of
            answers elsewhere; without special tokens.

        Raises:
            PromptError: the call could mean several things, or a sample cannot be read: the message
                names it, and the file where one is to blame.
            ConfigError: a setting is unknown or out of range.
        """
        call = read_call(images, prompts)
        settings = _changed(settings, changes)
        room = self.room(call.images, call.prompts, settings.max_new_tokens)
        options = {"settings": settings.replace(max_new_tokens=room)}
        steering = asking.reading_masses(self) if return_readings else None
        answers = self.ask(call.images, call.prompts, options, steering=steering)
        results = answers if return_readings else [answer.text for answer in answers]
        return results[0] if call.single else results

    def ask(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        **others: Any,
    ) -> list[Answer]:
        """Returns the answers of `answer` in the order of the prompts.

        Args:
            images, prompts, others: see `answer`.
            options: settings of decoding, as for `generate`.
        """
        found = self.answer(images, prompts, **options, **others)
        answers = {made.index: made for made in found if isinstance(made, Answer)}
        return [answers[index] for index in range(len(prompts))]

    def room(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        asked: int,
    ) -> int:
        """Returns how many tokens answers may have: what was asked, or what there is room for.

        A model of 256 positions, asked for 256 tokens after prompts of 61 and 70 tokens, has room
        for 186. What is cut is logged. Samples that cannot be read, or leave no room at all, fail
        on their own later.

        Args:
            images, prompts: see `answer`.
            asked: `max_new_tokens`; half of the model's positions are never cut.
        """
        return asking.room(self, images, prompts, asked)

    def answer(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        *,
        settings: DecodeSettings | None = None,
        logit_bias: np.ndarray | None = None,
        steering: Steering | None = None,
        strategy: Strategy | Search | None = None,
        share_prefix: bool = True,
        on_error: Literal["raise", "yield"] = "raise",
        streams: Sequence[int] | None = None,
        told: Callable[[int, str], None] | None = None,
        **changes: Any,
    ) -> Iterator[Answer | Failure]:
        """As `generate`, yielding each `Answer` as its batch is done, in any order, for long runs.

        Args:
            settings, changes: see `generate`.
            logit_bias: float32 [V], added to the logits at every step.
            steering: what to do to attention besides the model's own treatments: leaves [1, L, N],
                the same for all samples, or [samples, L, N].
            strategy: further views of each sample whose logits change its own, or a search, such as
                `read_named("vcd", {"alpha": 1.0})` of `vlm_jax.decoding.named`.
            share_prefix: read what questions begin with, through their last image, once for all
                questions on it. Greedy answers to equal questions are made once in any case.
            on_error: "raise" stops at a sample that cannot be read; "yield" gives a `Failure` in
                place of its answer.
            streams: what seeds each sample's random stream; its index by default. Samples keep
                their draws when a part of a longer list is asked.
            told: called with a sample's index and its text so far, every few tokens, where nothing
                reads a sample in several rows (strategies, beams, rankings).
        """
        settings = _changed(settings, changes)
        asked = Asking(
            settings, logit_bias, steering, strategy, share_prefix, on_error, streams, told
        )
        return asking.answer(self, images, prompts, asked)

    def _about(self) -> dict[str, str]:
        """What a model is, in words."""
        decoder = self.config.decoder
        dtype = next(iter(self.params.values())).dtype
        about = {
            "family": self.config.family,
            "decoder": f"{decoder.num_layers} layers of {decoder.num_heads} heads",
            "dtype": str(dtype),
        }
        if self.folder is not None:
            about["folder"] = str(self.folder.path)
        return about | {"treated by": ", ".join(map(str, self.treatments)) or "nothing"}

    def __repr__(self) -> str:
        about = self._about()
        treated = f", {about['treated by']}" if self.treatments else ""
        return (
            f"<VLM {self.name}: {about['family']}, {about['decoder']}, {about['dtype']}{treated}>"
        )

    def _repr_html_(self) -> str:
        return html_table(["model", self.name], list(self._about().items()))

    def logits(
        self, images: Sequence[Sequence[ImageSource]] | None, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads prompts without generating; images and prompts as for `answer`.

        Returns:
            Float32 logits [B, T, V], T the longest prompt's length (what lies beyond a shorter
            prompt means nothing), and the int32 lengths [B].
        """
        return asking.logits(self, images, prompts)


def _changed(settings: DecodeSettings | None, changes: Mapping[str, Any]) -> DecodeSettings:
    """Returns settings of decoding, or the defaults, with some changed.

    Raises:
        ConfigError: they are of another type, or a change is unknown or out of range.
    """
    if not isinstance(settings, DecodeSettings | None):
        raise ConfigError(
            f"settings must be a vlm_jax.decoding.DecodeSettings, not {type(settings).__name__}; "
            "single settings are arguments, such as max_new_tokens=64."
        )
    return (settings or DecodeSettings()).replace(**changes)
