"""Which data is used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bdflow.config.base import NOT_CONTENT, Section, shapes, where
from bdflow.config.sessions import Sessions, sessions_of
from bdflow.config.values import OF_DATASET, Location, Options, Whole, path_or

FolderName = Annotated[str, Field(pattern=r"^\w[^/\\\s]*$")]
RegionName = Annotated[str, Field(pattern=r"^\w[^/\\\s]*(/\w[^/\\]*)?$")]
Pixels = Annotated[Whole, Field(ge=1, le=4096)]


OF_SOME_KINDS = ("captions", "preparation", "space", "betas_format", "outliers", "not_a_number")
"""Settings that some kinds of datasets alone look at; given to another kind they are refused."""


def _looks_at_values(of: DatasetSettings) -> bool:
    """Whether a kind of dataset asks what to do with outliers and NaN: NSD's, and perhaps a class of one's own."""
    return of.kind not in ("laion_fmri", "glmsingle", "arrays")


class DatasetSettings(Section):
    """Where the data is, and what of it is used. `kind` names the dataset: `nsd`, another of `bdflow.datasets.reader`,
    or a class of one's own, `package.module:Class` (`bdflow.datasets.contract.Dataset`).

    kind : the name, or the class.
    root : the folder of the dataset's files, or the URL of an object store.
    captions : of the kinds `nsd`, `nsd_imagery` and `glmsingle` alone: where they are, if not at their usual place.
    preparation : of the NSD kinds alone: which of NSD's preparations of betas, the name of their folder (docs/nsd.md).
    space : of the NSD kinds alone: the space of NSD's volumes, the name of their folder.
    betas_format : of the NSD kinds alone: `nii.gz`, `hdf5`, or `auto`: whichever is there.
    sessions : how many, from the first; a list of their names, or of NSD's numbers, `[1, 3]`; either by subject,
        `{subj01: 3, subj04: [1, 3]}`; null: all there are.
    mask : the mask or region whose voxels are used; null: what the dataset suggests, of NSD `nsdgeneral`.
    split : `shared` (stimuli that several subjects see are for testing), `dataset:NAME` (a split that comes with the
        dataset), or a file of stimulus ids (docs/datasets.md).
    image_size : pixels of a side of the photos as they are stored, or (y, x); null: as they are, if all are alike.
    image_fit : how a picture of another shape is brought to that size: `crop`, `pad` (grey), `stretch`.
    without_caption : of stimuli without a caption, where a space is made of captions: `refuse`; or `leave_out`, of
        every space, so that all have the same rows.
    bad_voxels : of voxels that cannot be decoded from, constant ones and those without a valid beta for some
        stimulus.
    outliers : of the NSD kinds alone, of betas beyond what int16 of 1/300 percent holds, as floating-point files may
        have: `refuse`; `clip`, as NSD did; `invalid`, to leave them out of means.
    not_a_number : of the NSD kinds alone, of betas that are NaN: `refuse`, or `invalid`.
    options : further settings of this kind of dataset.
    """

    kind: str = "nsd"
    root: Annotated[Location, NOT_CONTENT]
    captions: Annotated[Location | None, NOT_CONTENT] = None
    sessions: Annotated[Sessions, NOT_CONTENT] = None
    preparation: Annotated[FolderName, NOT_CONTENT] = "betas_fithrf_GLMdenoise_RR"
    space: Annotated[FolderName, NOT_CONTENT] = "func1pt8mm"
    betas_format: Annotated[Literal["auto", "nii.gz", "hdf5"], NOT_CONTENT] = "auto"
    mask: Annotated[RegionName | None, shapes("betas")] = None
    split: Annotated[str, path_or("shared", OF_DATASET), NOT_CONTENT] = "shared"
    image_size: Annotated[Pixels | tuple[Pixels, Pixels] | None, shapes("stimuli")] = None
    image_fit: Annotated[
        Literal["crop", "pad", "stretch"], shapes("stimuli"), where(lambda of: of.image_size is not None)
    ] = "crop"
    without_caption: Annotated[Literal["refuse", "leave_out"], shapes("stimuli")] = "refuse"
    bad_voxels: Annotated[Literal["drop", "refuse"], shapes("responses")] = "drop"
    outliers: Annotated[Literal["refuse", "clip", "invalid"], shapes("betas"), where(_looks_at_values)] = "refuse"
    not_a_number: Annotated[Literal["refuse", "invalid"], shapes("betas"), where(_looks_at_values)] = "refuse"
    options: Annotated[Options, NOT_CONTENT] = Field(default_factory=dict)

    def sessions_of(self, subject: str) -> int | tuple[int | str, ...] | None:
        """How many sessions of a subject, from the first; which; or None: all there are."""
        return None if self.sessions is None else sessions_of(self.sessions, subject)
