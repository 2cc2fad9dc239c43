"""Readers of datasets: stimuli, trials and betas."""
