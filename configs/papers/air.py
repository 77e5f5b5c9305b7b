"""AIR's comparison on CHAIR, as published, with its numbers beside ours.

`papers/air` is 256 new tokens and LLaVA-1.5-7B; `papers/air:64`, `papers/air:256,minigpt-4` and
`papers/air:testbed` are other budgets, models and the shipped ones. Prompt "Please describe this
image in detail.", greedy, CHAIR's words in variant A, captions scored as they are cut off.

The paper's 500 images are a sample with seed 42 of COCO's caption file, which needs that file's
order: name images and list by benchmarks.chair.images, .truth (captions and instances of val2014)
and .questions. Scores differ by points between lists. FarSight, HALC and OPERA are published rows
that are not run here. AIR of the paper is `air`, of the released code `air_star`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import chair, testbed

ROWS = ("unedited", "FarSight", "vcd", "dola", "HALC", "OPERA", "adhh", "air", "air_star")
_SETS = {
    "llava-1.5-7b": "51.8/13.7 43.9/12.5 59.4/16.0 54.0/14.2 51.4/13.1 44.1/12.8 35.2/8.8 28.8/8.6 "
    "21.6/7.9",
    "minigpt-4": "43.0/13.4 39.2/12.4 40.0/14.6 42.0/13.5 37.4/12.1 37.3/13.5 32.8/11.5 21.3/ "
    "16.0/8.2",
    "instructblip": "54.7/20.2 48.3/18.7 50.1/19.4 52.8/19.1 48.0/15.3 48.2/14.3 36.0/10.3 30.1/ "
    "22.6/7.9",
    "shikra": "55.4/15.2 51.6/12.2 54.9/15.1 55.7/14.8 47.2/14.5 38.2/14.2 36.9/13.7 30.3/ "
    "22.7/8.5",
    **{
        model: f"{greedy} / / / / / / {air} /"
        for model, greedy, air in (
            ("llava-next-7b", "31.2/8.6", "22.5/6.1"),
            ("qwen2.5-vl-7b", "38.0/9.4", "29.3/8.8"),
            ("internvl3.5-8b", "32.9/9.0", "25.1/8.3"),
            ("deepseek-vl2-4.5b", "42.4/11.6", "25.8/6.9"),
            ("llava-1.5-13b", "46.3/12.5", "31.0/9.0"),
            ("llava-next-34b", "25.7/6.1", "23.2/6.0"),
        )
    },
}
_SHORT = {
    "llava-1.5-7b": "20.8/6.2 18.6/5.9 22.8/7.1 22.2/6.7 21.2/6.6 17.8/6.5 15.6/5.7 / 12.0/4.1",
    "minigpt-4": "28.8/11.4 22.5/8.9 28.0/11.3 28.6/11.5 24.2/9.7 26.6/10.4 22.0/8.5 / 13.9/6.0",
    "instructblip": "29.8/14.2 20.2/9.6 34.1/15.8 28.1/14.2 24.2/14.1 18.4/8.7 19.6/8.5 / 13.2/6.5",
    "shikra": "22.3/8.2 15.4/7.6 23.5/8.3 20.2/9.6 14.4/7.8 14.6/7.4 13.8/7.0 / 10.5/5.6",
}
PUBLISHED = {256: _SETS, 64: _SHORT}


def published(budget: int, model: str) -> dict[str, dict[str, float]]:
    """Arm -> metric -> percent, of what the paper and its repository say."""
    found = {}
    for arm, pair in zip(ROWS, PUBLISHED[budget][model].split(), strict=True):
        values = zip(("C_S", "C_I"), pair.split("/"))
        found[arm] = {metric: float(text) for metric, text in values if text}
    return {arm: values for arm, values in found.items() if values}


def get_config(argument: str = "256") -> ConfigDict:
    budget, _, model = argument.replace("testbed", "256").partition(",")
    model = model or "llava-1.5-7b"
    if not budget.isdigit() or model not in PUBLISHED.get(int(budget), ()):
        raise ValueError(
            f"papers/air takes 256 or 64, possibly with a model ({', '.join(_SETS)}; of 64 the "
            f"first four), or testbed, not {argument!r}."
        )
    config: Any = chair.get_config()
    config.max_new_tokens = int(budget)
    heads = model if model in ("llava-1.5-7b", "llava-1.5-13b", "minigpt-4") else "identified"
    config.arms = ConfigDict(
        {
            "vcd": {"method": "vcd"},
            "dola": {"method": "dola"},
            "adhh": {"method": "adhh", "heads": heads, "threshold": 0.5},
            "air": {"method": "air", "heads": heads},
            "air_star": {"method": "air_star", "heads": heads},
        }
    )
    config.published = ConfigDict(
        {
            "source": f"AIR and its repository, {model}, {budget} tokens; another list of images.",
            "values": {"chair": published(int(budget), model)},
        }
    )
    return testbed.shrunk(config) if argument == "testbed" else config
