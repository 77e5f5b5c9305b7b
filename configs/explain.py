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
                "contribution": "value",  # what imbalance compares with; or "uniform", "erasure"
                "maps": (),  # steps of an answer whose rows of these heads are kept whole, with
                # the box of the picture that each image token covers
            },
            # What answers take from sets of heads; what policies A to D should do.
            "editing": {
                "answers": 16,
                "max_new_tokens": 64,
                "sets": "sensitivity",  # of heads.json; or "classes"
                "alpha": 1.2,
                "beta": 0.8,
                "scope": "row",
                "ablate": True,  # zero heads too, to hold first order against
                "rows": 8,
                "draws": 2000,
                "seed": 0,
            },
            # Mass on the image where a caption benchmark's objects are named.
            "evidence": {"answers": 100, "max_new_tokens": 128, "draws": 2000, "seed": 0},
            # How alike the heads of two models attend.
            "patterns": {
                "other": "",  # a folder or a name; "" is the model without its images, and the
                # folder of the language model that it was made of reads without them too
                "answers": 16,
                "max_new_tokens": 64,
                "count": 8,  # heads of each set
                "seed": 0,
            },
            # Singular modes of query-key products.
            "spectra": {
                "layers": placeholder(tuple),  # first and last; all by default
                "modes": 4,  # of the strongest, how many are told about
            },
            # What an edit costs the language model: the loss of text files.
            "text_nll": {
                "texts": (),  # files of UTF-8 text
                "length": 128,  # of a passage, in tokens
                "passages": 32,  # at most
                "edit": {"k": 4, "strength": 0.5, "band": (0.36, 0.61)},  # fields of config.edit
                "controls": ("R1", "R3"),
                "control_draws": 19,
                "rows": 4,  # passages in a batch
                "draws": 2000,  # resamples over passages
                "seed": 0,
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
