"""What a study holds: the look of every store, what it is made from, decoders and targets read from it."""
