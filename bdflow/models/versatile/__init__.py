"""Versatile Diffusion: the dual-guided UNet, and painting with it."""
