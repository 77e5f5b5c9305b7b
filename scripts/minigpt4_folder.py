"""Makes one folder of MiniGPT-4's parts, which were released as pickles.

    python scripts/minigpt4_folder.py eva_vit_g.pth blip2_pretrained_flant5xxl.pth \
        pretrained_minigpt4_7b.pth vicuna-7b minigpt4-7b

In this order: tower, Q-Former, linear map, a merged Vicuna v0 folder, the folder to write. Of the
tower's 40 blocks the last is left out, as the model leaves it out.
"""

import re
import sys

from parts import read_config, read_tensors, write_folder

MEAN = [0.48145466, 0.4578275, 0.40821073]
DEVIATION = [0.26862954, 0.26130258, 0.27577711]
UNUSED = re.compile(
    r"^(head|fc_norm|norm|mask_token|rel_pos_bias)\b|rope|"
    r"^Qformer\.cls|\.bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)|"
    r"\.layer\.\d+\.(intermediate|output)\.|^(t5|visual_encoder|temp|itm_head|vision_proj|text_proj)"
)


def main(tower: str, former: str, projection: str, vicuna: str, target: str) -> None:
    """Reads the parts and writes the folder."""
    text = read_config(vicuna)
    blip = {n: v for n, v in read_tensors(former).items() if not UNUSED.search(n)}
    queries = blip["query_tokens"]
    eva = {n: v for n, v in read_tensors(tower).items() if not UNUSED.search(n)}
    blocks = sorted({int(n.split(".")[1]) for n in eva if n.startswith("blocks.")})
    eva = {n: v for n, v in eva.items() if not n.startswith(f"blocks.{blocks[-1]}.")}
    width = eva["patch_embed.proj.weight"].shape
    layers = {int(n.split(".")[4]) for n in blip if n.startswith("Qformer.bert.encoder.layer.")}
    config = {
        "model_type": "minigpt4",
        "num_query_tokens": queries.shape[1],
        "text_config": {name: text[name] for name in text if name != "architectures"},
        "vision_config": {
            "hidden_size": width[0],
            "image_size": round((eva["pos_embed"].shape[1] - 1) ** 0.5) * width[-1],
            "intermediate_size": eva["blocks.0.mlp.fc1.weight"].shape[0],
            "num_attention_heads": max(1, width[0] // 88),
            "num_hidden_layers": len(blocks) - 1,
            "patch_size": width[-1],
        },
        "qformer_config": {
            "encoder_hidden_size": width[0],
            "hidden_size": queries.shape[2],
            "intermediate_size": blip[
                "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"
            ].shape[0],
            "num_attention_heads": max(1, queries.shape[2] // 64),
            "num_hidden_layers": len(layers),
        },
    }
    language = {n: v for n, v in read_tensors(vicuna).items() if "rotary_emb" not in n}
    tensors = (
        {f"visual_encoder.{name}": value for name, value in eva.items()}
        | blip
        | {n: v for n, v in read_tensors(projection).items() if n.startswith("llama_proj.")}
        | {f"llama_model.{name}": value for name, value in language.items()}
    )
    size = config["vision_config"]["image_size"]
    preprocessor = {
        "image_processor_type": "BlipImageProcessor",
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "size": {"height": size, "width": size},
    }
    write_folder(target, tensors, config, preprocessor, vicuna)


if __name__ == "__main__":
    main(*sys.argv[1:])
