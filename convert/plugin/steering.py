"""Steers the attention of a transformers model as `steering.json` beside this file says.

    from transformers import AutoModelForImageTextToText
    import steering

    model = AutoModelForImageTextToText.from_pretrained(folder)
    steered = steering.apply(model)      # reads steering.json beside this file
    model.generate(**inputs)             # batches are padded on the left
    steered.remove()                     # the model is as it was, to the last bit

Needs torch and transformers 5, nothing else. The model's own attention (sdpa or flash) reads the
prompt; what is steered is one row of weights a sample, and gains of heads: no map of queries times
keys is formed. Licence: Apache-2.0.
"""

import json
import math
import pathlib

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "vlm_jax_steering"


def apply(model, path=None):
    """Steers a model from now on; returns an object whose `remove()` ends it.

    Args:
        model: of transformers, with a Llama-like decoder.
        path: of the JSON; by default `steering.json` beside this file.

    Raises:
        ValueError: the steering is of a model of another shape, or the model is steered already.
    """
    path = pathlib.Path(path or pathlib.Path(__file__).with_name("steering.json"))
    return Steered(model, json.loads(path.read_text(encoding="utf-8")))


class Steered:
    """A model that is steered; see `apply`."""

    def __init__(self, model, settings):
        self.config = model.get_decoder().config
        shape = [self.config.num_hidden_layers, self.config.num_attention_heads]
        if settings["shape"] != shape:
            raise ValueError(
                f"the steering is of {settings['shape']} layers and heads, not {shape}"
            )
        self.before = self.config._attn_implementation
        if self.before.startswith(NAME):
            raise ValueError("this model is steered already: remove() that first")
        plain = self.before if self.before in AttentionInterface._global_mapping else "sdpa"
        self.plain = AttentionInterface._global_mapping[plain]
        self.name = f"{NAME}_{id(self)}"
        AttentionInterface.register(self.name, self.attention)
        AttentionMaskInterface.register(self.name, AttentionMaskInterface._global_mapping[plain])
        self.image_id = settings["image_token_id"]
        self.parts = {
            name: {key: _tensor(value) for key, value in part.items()}
            for name, part in settings["parts"].items()
        }
        self.ids, self.kept = None, {}
        self.hook = model.register_forward_pre_hook(self.see, with_kwargs=True)
        self.config._attn_implementation = self.name

    def remove(self):
        """Gives the model its own attention back."""
        self.hook.remove()
        self.config._attn_implementation = self.before
        AttentionInterface._global_mapping.pop(self.name, None)
        AttentionMaskInterface._global_mapping.pop(self.name, None)

    def see(self, module, args, kwargs):
        """Notes what the keys are: image tokens, text behind the first of them, or before."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError(
                "a steered model needs input_ids, to know which tokens are image tokens"
            )
        mask = kwargs.get("attention_mask")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # its older name
        goes_on = cache is not None and cache.get_seq_length() > 0
        if mask is not None and mask.ndim == 2 and not bool(mask[:, -1].all()):
            raise ValueError("a steered model needs prompts that are padded on the left")
        self.ids = torch.cat([self.ids, ids], dim=1) if goes_on and self.ids is not None else ids
        image = self.ids == self.image_id
        has_image = image.any(1, keepdim=True)
        system = has_image & (image.cumsum(1) == 0)
        last = image.shape[1] - 1 - image.flip(1).int().argmax(1, keepdim=True)
        places = torch.arange(image.shape[1], device=ids.device)
        self.image, self.system, self.text = image, system, ~image & ~system
        self.after_image = has_image & (places > last)
        self.has_image = has_image[:, 0]

    def attention(self, module, query, key, value, attention_mask, **kwargs):
        """The model's own attention, with what the steering changes of it.

        Args:
            module: a layer's attention.
            query: [B, N, T, H]; the last of the T rows is a decode row.
            key, value: [B, K, S, H].
            attention_mask: as the model's own attention takes it.

        Returns:
            [B, T, N, H], and None for weights.
        """
        out, _ = self.plain(module, query, key, value, attention_mask, **kwargs)
        layer = module.layer_idx
        parts = {
            name: {k: v[layer].to(query.device) if torch.is_tensor(v) else v for k, v in p.items()}
            for name, p in self.parts.items()
        }
        wide = out.float()
        if {"reallocation", "projection", "visual_gains"} & parts.keys():
            row = _Row(self, query, key, value, attention_mask, kwargs.get("scaling"))
            if "reallocation" in parts:
                row.reallocate(**parts["reallocation"])
            if "projection" in parts:
                row.shrink(**parts["projection"])
            wide[:, -1] = torch.where(row.changed[..., None], row.output(), wide[:, -1])
        if "visual_gains" in parts:
            part = parts["visual_gains"]
            if query.shape[2] == 1 and part["mode"] == "prefill_cached":
                gain = self.kept[layer]
            else:
                ratio, known = row.image_mass, self.has_image
                if part["rows"] == "q" and query.shape[2] > 1:
                    masses = self.image_masses(module, query, key, value, attention_mask, kwargs)
                    after = self.after_image[:, -query.shape[2] :, None]
                    ratio = (masses * after).sum(1) / after.sum(1).clamp(min=1)
                    known = after.any(1)[:, 0]
                gain = self.kept[layer] = _visual_gain(ratio, known, part)
            wide = wide * gain[:, None, :, None]
        if "head_gains" in parts:
            wide = wide * parts["head_gains"]["gain"][None, None, :, None]
        return wide.to(out.dtype), None

    def image_masses(self, module, query, key, value, attention_mask, kwargs):
        """Returns the mass that each row of a prompt has on image keys, [B, T, N].

        The same attention, reading 1 from an image key and 0 from others.
        """
        image = torch.zeros(value.shape[0], value.shape[2], device=value.device, dtype=value.dtype)
        image[:, : self.image.shape[1]] = self.image
        marks = image[:, None, :, None].expand_as(value).contiguous()
        return self.plain(module, query, key, marks, attention_mask, **kwargs)[0][..., 0].float()


class _Row:
    """The last row of queries, and its weights over all keys; [B, N, S]."""

    def __init__(self, steered, query, key, value, attention_mask, scaling):
        batch, heads, _, width = query.shape
        kv_heads, length = key.shape[1:3]
        self.value = value.float()
        grouped = query[:, :, -1].float().reshape(batch, kv_heads, heads // kv_heads, width)
        logits = torch.einsum("bkgh,bksh->bkgs", grouped, key.float())
        logits = logits.reshape(batch, heads, length) * (scaling or width**-0.5)
        seen = torch.zeros(batch, length, dtype=torch.bool, device=key.device)
        seen[:, : steered.image.shape[1]] = True
        if attention_mask is not None:
            if attention_mask.ndim == 2:  # flash: 1 for a token, 0 for padding
                mask = attention_mask.bool()
            else:  # sdpa: whether a key is seen, or what is added to its logit
                mask = attention_mask[:, 0, -1]
                mask = mask if mask.dtype == torch.bool else mask == 0
            seen[:, : mask.shape[1]] &= mask[:, :length]
        spread = lambda kind: (_pad(kind, length) & seen)[:, None]
        self.seen, self.image = seen[:, None], spread(steered.image)
        self.text, self.system = spread(steered.text), spread(steered.system)
        self.has_image = self.image.any(-1)
        self.weights = torch.where(self.seen, logits, -torch.inf).softmax(-1)
        self.changed = torch.zeros(batch, heads, dtype=torch.bool, device=key.device)
        self.image_mass = self.mass(self.image)

    def mass(self, keys):
        """Returns the mass on some keys, [B, N]."""
        return (self.weights * keys).sum(-1)

    def reallocate(self, image, text, threshold, renormalise, text_includes_system):
        """Multiplies masses where the text's reaches a threshold (AIR; AD-HH)."""
        keys = self.text | self.system if text_includes_system else self.text
        fired = (self.mass(keys) >= threshold) & self.has_image & ~((image == 1) & (text == 1))
        factor = torch.where(keys, text[:, None], 1.0)
        edited = self.weights * torch.where(self.image, image[:, None], factor)
        if renormalise:
            total = edited.sum(-1, keepdim=True)
            edited = torch.where(total > 0, edited / total.clamp(min=1e-38), self.weights)
        self.weights = torch.where(fired[..., None], edited, self.weights)
        self.changed |= fired

    def shrink(self, on, beta):
        """Moves rows to their mean over the keys that they see (AIR)."""
        chosen = (on > 0) & (beta != 0)
        mean = self.weights.sum(-1, keepdim=True) / self.seen.sum(-1, keepdim=True)
        edited = (1 - beta[:, None]) * self.weights + beta[:, None] * mean * self.seen
        self.weights = torch.where(chosen[:, None], edited, self.weights)
        self.changed |= chosen

    def output(self):
        """Returns what the row reads, [B, N, H]."""
        batch, heads, length = self.weights.shape
        kv_heads = self.value.shape[1]
        grouped = self.weights.reshape(batch, kv_heads, heads // kv_heads, length)
        return torch.einsum("bkgs,bksh->bkgh", grouped, self.value).reshape(batch, heads, -1)


def _visual_gain(ratio, known, part):
    gain = torch.ones_like(ratio)
    known = known[:, None]
    gain = torch.where((ratio <= part["reasoning_to"]) & known, part["reasoning_gain"], gain)
    return torch.where((ratio >= part["perception_from"]) & known, part["perception_gain"], gain)


def _pad(kind, length):
    return torch.nn.functional.pad(kind, (0, length - kind.shape[1]))


def _tensor(value):
    """Lists of layers and heads as tensors; "inf" and "-inf" are words in JSON."""
    if not isinstance(value, list):
        return value
    return torch.tensor([[math.inf if x == "inf" else -math.inf if x == "-inf" else x for x in row]
                         for row in value], dtype=torch.float32)  # fmt: skip
