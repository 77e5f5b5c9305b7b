"""Base class of model families."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vlm_jax.config import VLMConfig

if TYPE_CHECKING:  # an architecture is read without Flax, JAX or transformers
    from flax import nnx

    from vlm_jax.processing.cutters import Cutter, Layout

Token = Callable[[int | None, str], str]
"""(id, its name in config.json) -> its text; raises `CheckpointError` where there is no such id."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a family, or one a layer.

    Attributes:
        name: its name on the hub, with `{i}` for the layer number, and `{x}` for the number of an
            expert, of which ours holds a layer's in one array.
        path: our parameter path, likewise; without `{x}`.
        pattern: einops pattern from the checkpoint's dims to ours: "f d -> x f d" for one of x.
        when: whether a config has it, in a layer; None for always.
        alias: a second name of `path` that a checkpoint may carry or leave out.
    """

    name: str
    path: str
    pattern: str
    when: Callable[[VLMConfig, int], bool] | None = None
    alias: bool = False


class Family:
    """A family of models: architecture, names on disk, images and words.

    Attributes:
        name: as in `VLMConfig.family` and in the manifests of converted folders.
        model_types: values of `model_type` in `config.json` that mean it.
        line: what it is, in one line.
        rows: its tensors.
        spellings: (regex, replacement) rules, of which the first that matches turns a name of any
            checkpoint generation into the hub's.
        saved: rules that turn a name of the hub into what transformers 5 calls it in a folder of a
            model that was made in it; none where it is the same.
        buffers: regexes of names that are no parameters; carried along, never read.
        image_token: text of the placeholder, where config.json does not say its id.
        question_tokenizer: folder, within a model's, of the tokenizer of questions, for a Q-Former
            that reads them; "" without one.
        most_images: images that a sample may have; None for any number.
        bounds_pixels: whether images keep their shape and are resized to between a fewest and a
            most number of pixels.
        stops: texts that end an answer, beside the ids that do.
    """

    name: str
    model_types: tuple[str, ...]
    line: str
    rows: tuple[Row, ...]
    spellings: tuple[tuple[str, str], ...] = ()
    saved: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    image_token: str = ""
    question_tokenizer: str = ""
    most_images: int | None = None
    bounds_pixels: bool = False
    stops: tuple[str, ...] = ()

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Returns the architecture that a `config.json` describes.

        Args:
            root: the JSON object.
            where: what to call it in errors.

        Raises:
            ConfigError: a field is missing or out of range, naming it and what it may be.
        """
        raise NotImplementedError

    def tower(self, config: VLMConfig, rngs: "nnx.Rngs") -> "nnx.Module":
        """Returns the vision tower: `Images` to features [B, groups, rows of a group, E]."""
        raise NotImplementedError

    def connector(self, config: VLMConfig, rngs: "nnx.Rngs") -> "nnx.Module":
        """Returns what makes image tokens [B, M, D] of the tower's features."""
        raise NotImplementedError

    def tokenizer(self, folder: pathlib.Path) -> Any:
        """Returns the tokenizer of a model folder.

        Raises:
            CheckpointError: it has none, or a broken one.
        """
        from vlm_jax.processing.folder import read_tokenizer

        return read_tokenizer(folder)

    def image_processor(self, folder: pathlib.Path) -> Any:
        """Returns the image processor of a model folder, which `cutter` takes.

        Raises:
            CheckpointError: it has none, or a broken one.
        """
        from vlm_jax.processing.folder import read_image_processor

        return read_image_processor(folder)

    def cutter(self, config: VLMConfig, image_processor: Any) -> "Cutter":
        """Returns what cuts images into the tower's groups of patches.

        Raises:
            CheckpointError: the folder's image processor is of another tower.
        """
        raise NotImplementedError

    def template(self, found: str | None) -> str | None:
        """Returns the chat template to use, of a folder that has `found` (None: no template)."""
        return found

    def written(self, text: str, image: str) -> str:
        """Returns a templated text as the model reads it.

        Args:
            text: holds a placeholder for each image.
            image: text of the placeholder.
        """
        return text

    def placeholder(self, config: VLMConfig, tokenizer: Any) -> tuple[str, int] | None:
        """Returns text and id of an image's placeholder, where they are no token of the tokenizer;
        None where they are."""
        return None

    def encode(self, tokenizer: Any, text: str, image: str, image_id: int) -> list[int]:
        """Returns the ids of a text as `written` gives it, with one placeholder for each image.

        The beginning of sequence is added unless the text begins with it.

        Args:
            tokenizer: the folder's.
            text: templated, with a placeholder for each image.
            image, image_id: text and id of the placeholder.
        """
        bos = tokenizer.bos_token
        special = bos is None or not text.startswith(bos)
        return tokenizer.encode(text, add_special_tokens=special)

    def layout(self, config: VLMConfig, rows: int, cols: int) -> "Layout":
        """Returns the places of the patches of one image of `rows` x `cols` patches."""
        raise NotImplementedError

    def image_grid(self, config: VLMConfig) -> tuple[int, int]:
        """Returns rows and columns of the tokens of an image of usual size, 640 x 480 pixels.

        Averages over rotary offsets are taken there. Tokens without rows are one row; 24 x 24 is
        LLaVA-1.5's, and about Qwen2.5-VL's.
        """
        return 24, 24

    def image_text(self, config: VLMConfig, image: str, token: Token) -> str:
        """Returns what one image looks like in a turn of plain text.

        Args:
            config: the architecture.
            image: text of the placeholder.
            token: gives the text of other ids.
        """
        raise NotImplementedError

    def letters(self, config: VLMConfig) -> dict[str, dict[str, int]]:
        """Returns, for each part ("decoder", "vision", ...), the length of each letter of the rows'
        patterns."""
        raise NotImplementedError

    def stacks(self, config: VLMConfig) -> dict[str, int]:
        """Returns how many layers each part with layers has."""
        stacks = {"decoder": config.decoder.num_layers, "vision": config.vision.num_layers}
        if config.qformer is not None:
            stacks["qformer"] = config.qformer.num_layers
        return stacks


def encode_pieces(
    tokenizer: Any, text: str, image: str, between: list[int], begins: str | None
) -> list[int]:
    """Returns the ids of a text whose pieces between images are encoded one by one.

    A Llama tokenizer marks the beginning of a text as that of a word, which it does not do behind a
    placeholder: what the authors' code encodes alone begins with that mark.

    Args:
        tokenizer: the folder's.
        text: with a placeholder for each image.
        image: text of the placeholder.
        between: ids of an image.
        begins: the token before the first piece, if the text does not begin with it.
    """
    found = []
    if begins is not None and not text.startswith(begins):
        found.append(tokenizer.convert_tokens_to_ids(begins))
    for place, piece in enumerate(text.split(image)):
        found += between if place else []
        found += tokenizer.encode(piece, add_special_tokens=False) if piece else []
    return found
