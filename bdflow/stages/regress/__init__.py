"""Ridge from responses to latents: the stage, and its workers."""
