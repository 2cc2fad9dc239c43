"""What latent diffusion models share: solvers, batches, switches of speed, noise."""
