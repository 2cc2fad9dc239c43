"""Numbers of the training that its parts share."""

BATCH = {"vae": 8, "clip": 128, "vdvae": 8, "unet": 16}
STEPS = {"vae": 4_500, "clip": 2_250, "vdvae": 15_000, "unet": 15_000}
HORIZON = {"vae": 6_000, "clip": 3_000, "vdvae": 20_000, "unet": 20_000}
SHARE_OF_TIME = {"vae": 0.15, "clip": 0.15, "vdvae": 0.25, "unet": 0.45}
N_SCENES = 20_000
N_PAINTED = 10_000
MOST_UNSETTLED = 0.5
TEMPERATURE = 0.2
