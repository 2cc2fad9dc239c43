"""Scores of any pictures against the photos that were shown: inputs of many forms, one arithmetic."""
