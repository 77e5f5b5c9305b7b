"""What heads do: the analyses that `config.explain.analysis` names, one or several.

"contributions", the default, is where answers come from: every token's support by heads that read
the system prompt, the image, the question and the answer so far. `--help` lists the others.

--job=explain --source=<folder> --workdir=<folder> \\
    --config.images="('photo.jpg',)" --config.prompt="Please describe this image in detail."

or `config.requests`, or one benchmark in `config.benchmarks`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.prompt = "Please describe this image in detail."
    # Analyses, with commas between them, and the settings of single ones.
    config.explain = ConfigDict(
        {
            "analysis": "contributions",
            # Where heads look while answers are written.
            "masses": {
                "answers": 16,  # at most
                "max_new_tokens": 64,
                "heads": (),  # whose tokens' imbalance is told: "identified", a set, or pairs
                "count": 4,  # heads of a set
                "contribution": "value",  # what imbalance compares with; or "uniform"
                "maps": (),  # steps of an answer whose rows of these heads are kept whole
            },
            # Singular modes of query-key products.
            "spectra": {
                "layers": placeholder(tuple),  # first and last; all by default
                "modes": 4,  # of the strongest, how many are told about
            },
        }
    )
    config.contributions = ConfigDict(
        {
            "scope": "row",  # gates where a token is predicted; or at "all" rows
            "rows": 8,  # tokens in a batch
            "answers": 16,  # at most
        }
    )
    return config
