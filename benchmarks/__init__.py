"""What each part of bdflow takes on this machine, beside the limits of the machine itself (docs/benchmarks.md)."""
