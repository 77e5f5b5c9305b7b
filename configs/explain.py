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
