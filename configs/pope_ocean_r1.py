"""POPE answers of Ocean-R1-7B under its published setting of functional heads (arXiv 2510.10285).

The question asks for thoughts and answer tags as in the model's own evaluation, answers have the
1024 tokens of it, and the verdict is read behind the thoughts. Settings else are configs/pope.py's.
"""

from ml_collections import ConfigDict

from configs import pope

THINK = (
    "\nYou FIRST think about the reasoning process as an internal monologue and then provide the "
    "final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final "
    "answer MUST BE in <answer> </answer> tags."
)


def get_config(preset: str = "ocean-r1") -> ConfigDict:
    config = pope.get_config()
    config.max_new_tokens = 1024
    config.update({"benchmarks": {"pope": {"suffix": THINK, "parser": "reasoning"}}})
    gains = {"method": "functional_heads", "preset": preset}
    config.arms = ConfigDict({"gains": gains, "gains_random": {**gains, "control": "random"}})
    return config
