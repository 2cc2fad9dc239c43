"""Predicted latents into pictures: the stage, and its workers."""
