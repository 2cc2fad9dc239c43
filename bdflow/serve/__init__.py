"""Pictures over HTTP, from patterns or latents."""
