"""Pure: the language of regions, and latents of patterns brought to the size of a photo's."""
