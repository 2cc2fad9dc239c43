"""Pure: the eight image metrics, statistics, and the published tables they are compared with."""
