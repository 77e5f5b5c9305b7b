"""Where answers come from: every token's support by heads that read the system prompt, the image,
the question and the answer so far.

--job=explain --source=<folder> --workdir=<folder> \\
    --config.images="('photo.jpg',)" --config.prompt="Please describe this image in detail."

or `config.requests`, or one benchmark in `config.benchmarks`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.prompt = "Please describe this image in detail."
    config.contributions = ConfigDict(
        {
            "scope": "row",  # gates where a token is predicted; or at "all" rows
            "rows": 8,  # tokens in a batch
            "answers": 16,  # at most
        }
    )
    return config
