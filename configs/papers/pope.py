"""POPE by the protocol of LLaVA, VCD or RUCAIBox: list, prompt suffix, budget and parser of each.

`papers/pope:llava` (2,910 random questions; one word), `:vcd` (3,000; sampled at temperature 1) and
`:rucaibox` (3,000; bare questions), `papers/pope:testbed` the shipped models. Set
benchmarks.pope.images and name the three files of a split each, all of COCO:

  --config.benchmarks.pope.questions=coco_pope_random.json,coco_pope_popular.json,...

Published: LLaVA-1.5-7B. The parser moves F1 more than most methods do, so no protocol's numbers go
beside another's.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import pope, testbed

PROTOCOLS = {
    "llava": {
        "suffix": "\nAnswer the question using a single word or phrase.",
        "parser": "llava",
        "max_new_tokens": 128,
        "temperature": 0.0,
        "published": {"F1": 85.9},
        "source": "LLaVA's model zoo, LLaVA-1.5-7B, mean of three splits.",
    },
    "vcd": {
        "suffix": " Please answer this question with one word.",
        "parser": "vcd",
        "max_new_tokens": 1024,
        "temperature": 1.0,
        "published": {
            "accuracy/random": 83.3,
            "accuracy/popular": 81.8,
            "accuracy/adversarial": 79.0,
        },
        "source": "VCD's 'regular' rows, LLaVA-1.5-7B, sampling.",
    },
    "rucaibox": {
        "suffix": "",
        "parser": "rucaibox",
        "max_new_tokens": 128,
        "temperature": 0.0,
        "published": {},
        "source": "",
    },
}


def get_config(protocol: str = "llava") -> ConfigDict:
    small, protocol = protocol == "testbed", "llava" if protocol == "testbed" else protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"papers/pope takes {', '.join(PROTOCOLS)} or testbed, not {protocol!r}.")
    chosen = PROTOCOLS[protocol]
    config: Any = pope.get_config()
    config.max_new_tokens = chosen["max_new_tokens"]
    config.temperature = chosen["temperature"]
    config.arms = ConfigDict({"vcd": {"method": "vcd"}} if protocol == "vcd" else {})
    config.benchmarks.pope.suffix = chosen["suffix"]
    config.benchmarks.pope.parser = chosen["parser"]
    if chosen["published"]:
        values = {"pope": {"unedited": chosen["published"]}}
        config.published = ConfigDict({"source": chosen["source"], "values": values})
    return testbed.shrunk(config) if small else config
