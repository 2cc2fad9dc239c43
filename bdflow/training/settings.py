"""Numbers of the training that its parts share."""

BATCH = {"vae": 8, "clip": 128, "vdvae": 8, "unet": 16, "sd_unet": 16}
STEPS = {"vae": 4_500, "clip": 2_250, "vdvae": 2_000, "unet": 15_000, "sd_unet": 9_000}
HORIZON = {name: steps * 4 / 3 for name, steps in STEPS.items()}
SHARE_OF_TIME = {"vae": 0.12, "clip": 0.12, "vdvae": 0.2, "unet": 0.36, "sd_unet": 0.2}
N_SCENES = 20_000
N_PAINTED = 10_000
MOST_UNSETTLED = 0.5
LEAST_LEFT = 0.5
KL_WEIGHT, FREE_NATS = 0.4, 0.3  # of the VDVAE
COARSE = {1: 20.0, 4: 8.0}
"""By what the KL of its layers of 1 and of 4 px is multiplied, of which nothing is free: layout lies in finer ones."""
JOINED = 0.5  # of its pictures show two scenes
TEMPERATURE = 0.2
RECORD = "training.json"
