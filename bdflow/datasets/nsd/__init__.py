"""The Natural Scenes Dataset, read from its own files (Allen et al. 2022)."""

from bdflow.datasets.nsd.dataset import ROI_FILES, NSDDataset, nsd_id_of, stimulus_id
from bdflow.datasets.nsd.design import Design, subject_index
from bdflow.datasets.nsd.files import (
    CAPTIONS,
    DESIGN,
    NSD,
    PREPARATION,
    ROI_LABELS,
    SPACE,
    STIM_INFO,
    STIMULI,
    roi_labels,
)
from bdflow.datasets.nsd.stimuli import Captions, Stimuli
from bdflow.datasets.nsd.values import BETA_SCALE, HIGHEST, LOWEST, as_stored, clipped
from bdflow.stores.remote import register_public

__all__ = [
    "BETA_SCALE",
    "CAPTIONS",
    "DESIGN",
    "HIGHEST",
    "LOWEST",
    "NSD",
    "PREPARATION",
    "ROI_FILES",
    "ROI_LABELS",
    "SPACE",
    "STIMULI",
    "STIM_INFO",
    "Captions",
    "Design",
    "NSDDataset",
    "Stimuli",
    "as_stored",
    "clipped",
    "nsd_id_of",
    "roi_labels",
    "stimulus_id",
    "subject_index",
]

BUCKET = "natural-scenes-dataset"
"""NSD's public bucket, in S3's region us-east-2."""
register_public(BUCKET, "us-east-2")
