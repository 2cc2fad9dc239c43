"""Numbers of the training that its parts share."""

BATCH = {"vae": 8, "clip": 128, "vdvae": 8, "unet": 16, "sd_unet": 16}
STEPS = {"vae": 4_500, "clip": 2_250, "vdvae": 7_500, "unet": 15_000, "sd_unet": 9_000}
HORIZON = {"vae": 6_000, "clip": 3_000, "vdvae": 10_000, "unet": 20_000, "sd_unet": 12_000}
SHARE_OF_TIME = {"vae": 0.12, "clip": 0.12, "vdvae": 0.2, "unet": 0.36, "sd_unet": 0.2}
N_SCENES = 20_000
N_PAINTED = 10_000
MOST_UNSETTLED = 0.5
LEAST_LEFT = 0.5
KL_WEIGHT, FREE_NATS = 0.2, 0.3  # of the VDVAE
TEMPERATURE = 0.2
RECORD = "training.json"
