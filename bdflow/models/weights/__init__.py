"""Published weights: bundles, checkpoint files, and the names of tensors in them."""
