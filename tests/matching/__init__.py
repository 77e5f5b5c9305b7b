"""CLIP, SigLIP and BLIP beside transformers."""
