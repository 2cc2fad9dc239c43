"""The networks that judge pictures, and where their weights are found."""
