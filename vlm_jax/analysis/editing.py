"""What policies of gains should do to a token, by what each head gives it (minimal editing).

With v the direction in which a token's log-probability grows at the output of attention and O_h
what head h adds there, u_h = <O_h, v> is what the token takes from the head, and U(S) the sum over
a set. Gains gamma change the token by sum (gamma_h - 1) u_h before the next norm: exactly along v,
to first order in log-probability (arXiv 2510.10285, appendix, equations 6 to 15). A gate's
gradient is <O_h, v>, so u is minus the signed contribution (`contribution`).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from vlm_jax.steering.methods.policy import POLICIES, policy_gains


@dataclasses.dataclass(frozen=True)
class Utilities:
    """What m tokens take from heads.

    Attributes:
        by_head_mln: u of each token and head, in nats.
    """

    by_head_mln: Float[np.ndarray, "m L N"]

    def of(self, heads_ln: Bool[np.ndarray, "L N"]) -> Float[np.ndarray, " m"]:
        """Returns U of a set, a token each."""
        return self.by_head_mln[:, heads_ln].sum(-1)

    def change(
        self,
        policy: str,
        enhanced_ln: Bool[np.ndarray, "L N"],
        attenuated_ln: Bool[np.ndarray, "L N"],
        alpha: float,
        beta: float,
    ) -> Float[np.ndarray, " m"]:
        """Returns Delta of a policy, a token each: sum (gamma_h - 1) u_h.

        Args:
            policy: a key of `POLICIES`.
            enhanced_ln, attenuated_ln: disjoint sets of heads.
            alpha, beta: their gains, alpha > 1 > beta.
        """
        gain_ln = policy_gains(policy, enhanced_ln, attenuated_ln, alpha, beta)
        return ((gain_ln - 1) * self.by_head_mln).sum((1, 2))

    def changes(
        self,
        enhanced_ln: Bool[np.ndarray, "L N"],
        attenuated_ln: Bool[np.ndarray, "L N"],
        alpha: float,
        beta: float,
    ) -> dict[str, Float[np.ndarray, " m"]]:
        """Returns Delta of every policy; see `change`."""
        sets = enhanced_ln, attenuated_ln, alpha, beta
        return {policy: self.change(policy, *sets) for policy in POLICIES}
