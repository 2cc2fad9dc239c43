"""LAION-fMRI, read from the files of its launch release."""

from bdflow.datasets.laion_fmri.dataset import KIND, LaionFMRI, LaionOptions
from bdflow.stores.remote import register_public

__all__ = ["BUCKET", "KIND", "LaionFMRI", "LaionOptions"]

BUCKET = "laion-fmri"
"""The public bucket of betas, masks and tables, in S3's region us-west-2. The pictures are not open in it."""
register_public(BUCKET, "us-west-2")
