"""Parts of a steering, one file each; `base` says what a part is, `Steering` in which order."""
