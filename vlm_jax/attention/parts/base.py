"""Base class of the parts of a steering, and what a layer's attention hands to them.

    @part
    class Damp(Part):
        '''Factor on the output of heads, at decode rows; 1 is the identity.'''

        gain: Values

        identity = {"gain": 1}

        def acts(self):
            return self.gain != 1

        def output(self, out_b1nh, row):
            return out_b1nh * self.gain[:, None, :, None]

A part is a file here and a field of `Steering`, which is its place in the order; all else is read
off it. A part of another package is a file there: `follows` says behind which of ours it acts, and
`Steering(others=(Damp(gain),))` has it. Its leaves are float32 [b, L, N], or [b, N] once a layer is
picked, b = 1 or the batch; fields marked `choice` are part of the program. Methods that it does not
define compile to nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.attention.blockwise import Read, Tap
from vlm_jax.attention.segment import Segment, Visibility, kinds_of
from vlm_jax.batch import Kind

T = TypeVar("T", bound=type)

Values = Any  # float32 [b, L, N], or [b, N] once a layer is picked

State = dict[str, Any]
"""What parts remember of a layer from call to call, by the part's name."""


def choice(*, default: Any, words: tuple[str, ...] = ()) -> Any:
    """Returns a field that is part of the program, with the words that it may be."""
    return dataclasses.field(default=default, metadata={"static": True, "words": words})


@dataclass_transform(field_specifiers=(choice, dataclasses.field), frozen_default=True)
def part(cls: T) -> T:
    """Makes a subclass of `Part` a frozen dataclass whose leaves are traced."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Part:
    """One change of attention: arrays of strengths, and the steps at which they act.

    Attributes:
        follows: of a part of another package, the field of `Steering` behind which it acts.
        identity: for each leaf, the value that changes nothing.
        endless: for each leaf that may be infinite, what inf means.
        flags: fields of `Readings` that it sets; the decode loop counts them at every step.
        dims: what the leaves' last two dims are, in the package's letters.
        attends: False for parts that act on the residual stream.
    """

    follows: ClassVar[str] = "registers"
    identity: ClassVar[Mapping[str, float]] = {}
    endless: ClassVar[Mapping[str, str]] = {}
    flags: ClassVar[tuple[str, ...]] = ()
    dims: ClassVar[str] = "LN"
    attends: ClassVar[bool] = True

    # What it is, asked on the host.

    def acts(self) -> Any:
        """Returns bool, True at heads that it changes, in the shape of its leaves; NumPy."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ConfigError where leaves contradict one another."""

    @property
    def on_prefix(self) -> bool:
        """Whether it acts on rows up to a prompt's last image token, or counts rows there."""
        return False

    @property
    def whole_prompts(self) -> str | None:
        """The reason why prompts must be read in one call, if they must; None otherwise."""
        return None

    @property
    def touches_row(self) -> bool:
        """Whether decode rows need more than the weights of plain attention."""
        return False

    @property
    def collectives(self) -> Mapping[str, int]:
        """Collectives that it adds to a read of a layer: kind -> how many.

        They are between devices that share a layer's heads, or the batch; none where heads and
        samples are independent.
        """
        return {}

    @property
    def keeps_rows(self) -> str | None:
        """The reason why tokens cannot be withdrawn, and the remedy; None where they can."""
        return None

    @property
    def mixes_examples(self) -> str | None:
        """The reason why a sample must be one row of the batch, and the remedy; None otherwise."""
        return None

    # What it does to all rows of a prompt.

    def queries(self, q_btnh: Float[Array, "B T N H"], prompt: "Prompt") -> Array:
        """Returns the queries of a prompt, changed before attention reads them."""
        return q_btnh

    def tap(self, prompt: "Prompt") -> Tap | None:
        """Returns what the tiles of a prompt do for it: scaled logits, sums to keep."""
        return None

    def prompt_rows(
        self, out_btnh: Float[Array, "B T N H"], prompt: "Prompt", state: State
    ) -> Array:
        """Returns the output of a prompt's rows, before that of the last row is put in."""
        return out_btnh

    def prompt_end(
        self, out_btnh: Float[Array, "B T N H"], prompt: "Prompt", row: "DecodeRow"
    ) -> Array:
        """Returns the output of a prompt's rows, the last row (`row`) in its place."""
        return out_btnh

    # What it does to a decode row; the last row of a prompt is one.

    def logits(self, logits_bns: Float[Array, "B N S"], row: "DecodeRow") -> Array:
        """Returns the row's logits; heads that it changes go to `DecodeRow.change`."""
        return logits_bns

    def weights(self, weights_bns: Float[Array, "B N S"], row: "DecodeRow") -> Array:
        """Returns the row's weights; heads that it changes go to `DecodeRow.change`."""
        return weights_bns

    def output(self, out_b1nh: Float[Array, "B 1 N H"], row: "DecodeRow") -> Array:
        """Returns the heads' output of a generated row."""
        return out_b1nh

    # What it does to the residual stream.

    def residual(self, x_btd: Float[Array, "B T D"], rows: "Rows | None") -> Array:
        """Returns what the next layer reads; `rows` says what a prompt's rows are."""
        return x_btd


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What each query row of a prefill is; decode rows have None in its place.

    Attributes:
        after_image_bt: text rows after the sample's last image token.
        real_bt: rows that are not padding.
        last_b: index of the last prompt row; None where prompts go on in another call.
        kinds_bt: `Kind` of each row; None where nobody asks.
    """

    after_image_bt: Bool[Array, "B T"]
    real_bt: Bool[Array, "B T"]
    last_b: Int[Array, " B"] | None
    kinds_bt: Any = None


@dataclasses.dataclass
class Prompt:
    """The rows of prompts as a layer's attention reads them, which parts are given.

    Attributes:
        q_btnh: queries.
        segments: the keys; the last ones are the queries' own, those before were read earlier.
        queries: order of the queries.
        rows: what the rows are.
        scale: factor on the logits; H ** -0.5 when None.
        before: what parts kept from the calls that read the earlier keys; None: there are none.
        reads: the attention to each segment.
        lse_btn: log-sum-exp over all segments.
    """

    q_btnh: Array
    segments: Sequence[Segment]
    queries: Visibility
    rows: Rows
    scale: float | None
    before: State | None
    reads: Sequence[Read] = ()
    lse_btn: Any = None

    @property
    def masses(self) -> list[Array]:
        """The share of each segment in each row, [B, T, N]."""
        return [jnp.exp(read.lse_btn - self.lse_btn) for read in self.reads]

    @property
    def is_last_bt1(self) -> Array:
        """Which row is a prompt's last."""
        last_b = self.rows.last_b
        assert last_b is not None
        return (jnp.arange(self.q_btnh.shape[1]) == last_b[:, None])[..., None]


@dataclasses.dataclass(frozen=True)
class RowKeys:
    """What the keys of a row are, bool [B, 1, S]; a key that the row does not see is of no kind."""

    visible_b1s: Array
    image_b1s: Array
    text_b1s: Array
    system_b1s: Array

    @classmethod
    def of(cls, segments: Sequence[Segment], queries: Visibility) -> "RowKeys":
        """Reads kinds and orders of all segments."""
        visible = _visible(segments, queries)
        kinds = jnp.concatenate([kinds_of(segment) for segment in segments], axis=-1)[:, None]
        return cls(
            visible, *(visible & (kinds == kind) for kind in (Kind.IMAGE, Kind.TEXT, Kind.SYSTEM))
        )

    @property
    def has_image_b(self) -> Array:
        """Rows that see an image key."""
        return jnp.any(self.image_b1s, axis=(1, 2))

    @property
    def count_b(self) -> Array:
        """How many keys a row sees."""
        return jnp.sum(self.visible_b1s, axis=(1, 2))


@dataclasses.dataclass
class DecodeRow:
    """One decode row a sample as a layer's attention reads it, which parts are given and change.

    Attributes:
        segments, queries: the keys, and the row's order.
        keys: which keys are image, text, system and visible.
        state: what parts keep from row to row; they change it in place.
        prompt: the prompt whose last row this is; None for a generated row.
        changed_bn: heads whose weights are not those of plain attention.
        lse_bn: log-sum-exp of the logits, as parts left them.
        image_bn, text_bn, system_bn: masses on keys of these kinds.
        flags: what parts report, by the names of `Readings` without their dims.
    """

    segments: Sequence[Segment]
    queries: Visibility
    keys: RowKeys
    state: State
    prompt: Prompt | None = None
    changed_bn: Any = False
    lse_bn: Any = None
    image_bn: Any = None
    text_bn: Any = None
    system_bn: Any = None
    flags: dict[str, Array] = dataclasses.field(default_factory=dict)

    def change(self, heads_bn: Any) -> None:
        """Notes heads whose weights were changed."""
        self.changed_bn = self.changed_bn | heads_bn


def host(leaf: Any) -> np.ndarray:
    """Returns a leaf on the host."""
    return np.asarray(leaf)


def _visible(segments: Sequence[Segment], queries: Visibility) -> Array:
    """Which keys the row sees, [B, 1, S]."""
    pieces = []
    for segment in segments:
        visible = queries.sees(segment.keys)
        every = jnp.ones_like(kinds_of(segment), bool)[:, None]
        pieces.append(every if visible is None else visible)
    return jnp.concatenate(pieces, axis=-1)
