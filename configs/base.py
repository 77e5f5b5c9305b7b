"""Every setting that a job reads, with its default. Other configs start from this one."""

from ml_collections import ConfigDict, config_dict

from vlm_jax.decoding.settings import DecodeSettings


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of whatever is random: draws of tokens and of controls
    config.dtype = ""  # of weights and activations; "" is float32 on CPU, bfloat16 elsewhere
    # Replicas of the model, and devices of each; one larger than a process takes all devices of
    # several. -1: all devices that are left.
    config.mesh = ConfigDict({"data": -1, "model": 1})
    config.compile_cache = ""  # folder of compiled programs; "" is the user's cache, "off" is none

    # MiB of device memory for what arms share: prompts read through their last image, and as much
    # for what the tower made of the images; 0 keeps none.
    config.prefix_cache_mb = 1024

    # Items whose image or prompt cannot be read are recorded and left out; a run stops at more of
    # them than this: a number, or below 1 a share of a benchmark's items (of one at least).
    config.max_failures = 0.01

    # Images of more pixels than this, as they are or once resized, cannot be read.
    config.max_image_pixels = 89_478_485
    # Tiles of an image's grid at most, of models that have one (InternVL); 0: as the model says.
    config.max_tiles = 0
    # Fewest and most pixels that images are resized to, of models that take images of any shape
    # (Qwen2.5-VL, Qwen3-VL); 0: as the model says.
    config.min_pixels = 0
    config.max_pixels = 0

    # Generation: all settings of vlm_jax.decoding.DecodeSettings, which says what each means, such
    # as config.temperature, config.top_k, config.batch_size.
    config.update(DecodeSettings.defaults())
    config.max_new_tokens = 64

    # The QK product edit (vlm_jax.edits.qk.QKEdit says what each field means).
    config.edit = ConfigDict(
        {
            "method": "plain",
            "k": 4,
            "strength": 0.5,
            "band": (0.36, 0.61),  # floats are relative depths, integers are layers
            "heads": "all",
            "bias": "weights",
            "control": "",
        }
    )

    # What `generate` is asked: a JSONL file of {"id", "prompt", "image" or "images"}, or one prompt
    # about images, all of which are shown together and get one answer.
    config.requests = ""
    config.prompt = ""
    config.images = ()
    # What `generate` does to the model first: a method's name, {"method": "air", "heads":
    # "identified"}, {"k": 2} for config.edit with k changed, or a list of such that act together.
    config.method = config_dict.placeholder(object)

    # What `export` writes: `names` of tensors "as_source", as the "hub" has them (which serving
    # stacks read), or as transformers 5 calls those of a model that was made in it ("saved"); with
    # `plugin` also steering.py and steering.json: what `method` above does, for users of torch.
    config.export = ConfigDict({"names": "as_source", "plugin": False})

    # What `evaluate` asks (kinds: vlm_jax/evals/suites).
    config.benchmarks = ConfigDict()
    # What it compares with the source as it is: name -> arm. An arm is one entry, or a list of
    # entries that act together. An entry whose `method` is an attention method
    # (a file of vlm_jax/steering/methods) or a decoding strategy (a file of
    # vlm_jax/decoding/strategies) gives that method's settings; any other entry is config.edit with
    # some keys changed, {} as it stands, at most one an arm. `control` makes an arm the control
    # of the arm without it; a random one may say how many `draws` it has.
    #   {"edited": {}, "mild": {"method": "air", "heads": "identified", "text_gain": 0.5},
    #    "both": [{"k": 2}, {"method": "air", "heads": "identified"}]}
    config.arms = ConfigDict()
    # What heads="identified" stands for: head sets by --job=identify; {source} is the model folder.
    config.heads = "{source}/heads.json"
    config.control_draws = 19  # seeds of a random control that does not say; 19 allow a p of .05
    config.bootstrap_draws = 2000

    # Layouts of other harnesses in which `evaluate` and `score` write the answers too, each in a
    # folder of its name beside items.jsonl: lmms_eval, vlmevalkit.
    config.layouts = ()

    # What a report looks like, and what it shows besides: vlm_jax.report.written.ReportSettings.
    config.report = ConfigDict({"format": "html", "attention": 0, "maps": 8})

    # What a paper reports, beside ours in a table: benchmark -> arm -> metric -> percent (or the
    # metric's unit) in `values`, and where they are from in `source`.
    config.published = ConfigDict()

    # The say-less frontier: biases on the logits of tokens that end a caption; no bias is none.
    # Tokens are words of one token each; "<stop>" stands for the ids that end an answer.
    config.frontier = ConfigDict({"biases": (), "tokens": ("<stop>",)})

    # How `score` judges. `suite` is a kind of benchmark (vlm_jax/evals/suites); "" tells it by the
    # form of the truth. Fields of the answers are known by their usual names, or named by
    # `image_key` and `text_key`. Settings of the benchmark's own go here too: of CHAIR `synonyms`
    # (a published synonyms.txt), `double_words` (its two-word rules as JSON) and `surface_forms`
    # (WordNet lemmas as JSON: CHAIR's variant C); of questions the `parser`.
    config.score = ConfigDict(
        {
            "suite": "",
            "image_key": "",
            "text_key": "",
            "allow_missing": False,
            "allow_extra": False,  # answers without truth are left out instead of refused
            "revised": (),  # files of revised truth to score by besides, such as RePOPE's
            # A greater share of answers without a verdict, or of captions without an object, is
            # refused.
            "max_unparsable": 0.95,
            "synonyms": "",
            "double_words": "",
            "surface_forms": "",
            "parser": "",
            "grades": "",  # of MM-Vet: a judge's file, such as --job=judge writes
            "judge": "",  # and what the judge is called
        }
    )

    # Who grades by --job=judge (vlm_jax.evals.judge.JudgeSettings says more): any server with
    # OpenAI's chat API. The key is in the environment variable OPENAI_API_KEY, where it needs one.
    config.judge = ConfigDict(
        {
            "url": "",
            "model": "",
            "key_variable": "OPENAI_API_KEY",
            "prompt": "",
            "runs": 1,
            "temperature": 0.0,
            "max_tokens": 16,
            "parallel": 8,
            "retries": 4,
            "wait_s": 1.0,
            "timeout_s": 120.0,
            "max_characters": 8000,
        }
    )

    # Where `serve` listens and what it lets in (vlm_jax.jobs.serve.ServeSettings says more).
    # Clients give the key that is in the environment variable VLM_JAX_API_KEY, where it is set.
    config.serve = ConfigDict(
        {
            "host": "127.0.0.1",
            "port": 8000,
            "api_key_variable": "VLM_JAX_API_KEY",
            "max_megabytes": 32.0,
            "batch": 64,
            "wait_ms": 10.0,
            "max_waiting": 1024,
        }
    )

    # What `plan` compiles (vlm_jax.planning.PlanSettings says more): for which hardware ("v5e:4x4",
    # "v5p:2x2x1", "h100:8"; "": the smallest slice of TPU v5e that holds the weights), which
    # programs, and prompts of what size. Rows are config.batch_size, the mesh is config.mesh.
    config.plan = ConfigDict(
        {
            "topology": "",
            "programs": ("prefill", "decode", "read_images", "read_prefix", "logits", "edit"),
            "images": 1,
            "image_size": (640, 480),  # pixels
            "text_tokens": 64,  # of a prompt, besides its images'
            "prefixes": 8,  # images that the rows of a batch share
            "joint": False,  # whether the edit decomposes channels
            "by_kind": False,  # whether bytes are told by kind of instruction, too
        }
    )

    # What `sweep` varies (see vlm_jax/study/grids.py): field of config.edit -> values; or, where
    # `method` lists attention methods, field of theirs -> values.
    config.sweep = ConfigDict()
    # The setting with the least `metric` (or the greatest, where more is better) among those that
    # lose at most `max_recall_drop` is reported on the test split, beside its controls.
    config.choose = ConfigDict(
        {"metric": "C_S", "max_recall_drop": 0.01, "controls": ("R1", "R3", "R4")}
    )
    # Benchmark -> what the test split changes of config.benchmarks, such as {"split": "test"}.
    config.test = ConfigDict()
    return config
