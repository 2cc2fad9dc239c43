"""How an own cluster's workers start: on this machine, on its GPUs, as jobs or steps of SLURM."""
