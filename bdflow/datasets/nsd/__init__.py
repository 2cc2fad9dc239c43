"""The Natural Scenes Dataset, read from its own files (Allen et al. 2022)."""

from bdflow.datasets.nsd.betas import BetaSession, Hdf5Session, NiftiSession, open_session
from bdflow.datasets.nsd.design import Design, Split, split_stimuli, stimuli_of, subject_index
from bdflow.datasets.nsd.files import (
    CAPTIONS,
    DESIGN,
    NSD,
    PREPARATION,
    ROI_LABELS,
    SPACE,
    STIM_INFO,
    STIMULI,
    Volume,
    labelled,
    noise_ceiling,
    read_volume,
    roi_labels,
    voxel_mask,
)
from bdflow.datasets.nsd.grids import Grid, check_same_grid, stated
from bdflow.datasets.nsd.identity import identity
from bdflow.datasets.nsd.reader import ROI_FILES, NSDReader
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
    "BetaSession",
    "Captions",
    "Design",
    "Grid",
    "Hdf5Session",
    "NSDReader",
    "NiftiSession",
    "Split",
    "Stimuli",
    "Volume",
    "as_stored",
    "check_same_grid",
    "clipped",
    "identity",
    "labelled",
    "noise_ceiling",
    "open_session",
    "read_volume",
    "roi_labels",
    "split_stimuli",
    "stated",
    "stimuli_of",
    "subject_index",
    "voxel_mask",
]

BUCKET = "natural-scenes-dataset"
"""NSD's public bucket, in S3's region us-east-2."""
register_public(BUCKET, "us-east-2")
