"""What a run will take, told beforehand: hours, GPU-hours, disk and memory."""
