"""Stable Diffusion 1, as Takagi & Nishimoto (2023) paint with it."""
