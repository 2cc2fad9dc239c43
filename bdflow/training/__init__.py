"""Training of the tiny networks that ship with bdflow, and of the network that judges its pictures."""
