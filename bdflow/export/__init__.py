"""What the stores hold, in the formats of other programs."""
