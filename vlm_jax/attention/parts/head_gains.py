"""Fixed factors on head outputs."""

from collections.abc import Mapping
from typing import ClassVar

from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, Values, host, part


@part
class HeadGains(Part):
    """Factors on head outputs, at all rows; 1 is the identity."""

    gain: Values

    identity: ClassVar[Mapping[str, float]] = {"gain": 1}

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return True

    def acts(self):
        """See `Part.acts`."""
        return host(self.gain) != 1

    def prompt_rows(self, out_btnh, prompt: Prompt, state):
        """See `Part.prompt_rows`; gains of prompts that end here come after all else."""
        return self._scaled(out_btnh) if prompt.rows.last_b is None else out_btnh

    def prompt_end(self, out_btnh, prompt: Prompt, row: DecodeRow):
        """See `Part.prompt_end`."""
        return self._scaled(out_btnh)

    def output(self, out_b1nh, row: DecodeRow):
        """See `Part.output`."""
        return self._scaled(out_b1nh)

    def _scaled(self, out_btnh):
        return out_btnh * self.gain[:, None, :, None]
