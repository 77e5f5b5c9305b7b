"""Functional heads (arXiv 2510.10285, appendix G): five benchmarks, one of its three models.

`papers/functional_heads:ocean-r1`, `:r1-onevision` and `:kimi-vl` have the gains of its Table 3;
`:testbed` is the shipped models. Set the five benchmarks' images and truth
(`--config.benchmarks.mathvista.truth=testmini.json`; "embedded" images are in the file).

The paper gives no prompt, token budget, split or parser. Ours: each benchmark's own prompt, 2,048
tokens, all 1,129 questions of HallusionBench, the reasoning parser. Its weighted F1 is
`weighted_F1` where answers have labels; of MathVista and MathVision, which it calls F1 too, the
accuracy.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base, testbed

# l_reas, tau_reas, g_reas, l_perc, tau_perc, g_perc
GAINS = {
    "kimi-vl": (5, 0.01, 1.40, 10, 0.27, 1.20),
    "ocean-r1": (3, 0.01, 1.30, 7, 0.22, 1.16),
    "r1-onevision": (3, 0.01, 1.30, 7, 0.30, 1.20),
}
_FIELDS = (
    *("reasoning_first_layer", "reasoning_to", "reasoning_gain"),
    *("perception_last_layer", "perception_from", "perception_gain"),
)
METRICS = {
    "mathvista": "accuracy",
    "mathvision": "accuracy",
    "hallusionbench": "weighted_F1",
    "mmstar": "weighted_F1",
    "seedbench": "weighted_F1",
}
PUBLISHED = {
    "kimi-vl": {
        "unedited": (63.48, 56.24, 64.76, 59.76, 66.26),
        "vcd": (63.51, 56.14, 65.68, 59.48, 66.52),
        "AGLA": (67.32, 58.88, 61.36, 63.76, 69.27),
        "gains": (69.78, 60.54, 68.19, 66.49, 69.74),
    },
    "ocean-r1": {
        "unedited": (54.58, 20.05, 49.41, 45.24, 59.76),
        "gains": (59.32, 26.01, 53.64, 50.77, 66.51),
    },
    "r1-onevision": {
        "unedited": (59.92, 33.54, 58.26, 56.26, 68.48),
        "gains": (60.09, 39.12, 60.77, 58.02, 69.52),
    },
}


def get_config(model: str = "ocean-r1") -> ConfigDict:
    small, model = model == "testbed", "ocean-r1" if model == "testbed" else model
    if model not in GAINS:
        raise ValueError(
            f"papers/functional_heads takes {', '.join(GAINS)} or testbed, not {model!r}."
        )
    config: Any = base.get_config()
    config.max_new_tokens = 2048
    gains = {"method": "functional_heads", **dict(zip(_FIELDS, GAINS[model], strict=True))}
    random = {**gains, "heads": "identified", "control": "random"}
    config.arms = ConfigDict({"vcd": {"method": "vcd"}, "gains": gains, "gains_random": random})
    for name in METRICS:
        config.benchmarks[name] = ConfigDict(
            {"kind": name, "images": "", "truth": ("",), "parser": "reasoning", "limit": 0}
        )
    values = {
        name: {arm: {metric: row[place]} for arm, row in PUBLISHED[model].items()}
        for place, (name, metric) in enumerate(METRICS.items())
    }
    source = f"arXiv 2510.10285, {model}; its prompts, budgets and parsers are not published."
    config.published = ConfigDict({"source": source, "values": values})
    if small:  # one of them, of a metric that the testbed's questions have
        config.benchmarks = ConfigDict({"mathvista": config.benchmarks["mathvista"]})
        return testbed.shrunk(config)
    return config
