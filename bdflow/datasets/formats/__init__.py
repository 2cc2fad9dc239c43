"""File formats of fMRI datasets, whichever dataset they are of: volumes, sessions of betas, tables, pictures."""
