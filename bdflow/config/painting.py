"""The settings of painters: predicted latents into pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from bdflow.config.base import NOT_CONTENT, Section, shapes, where
from bdflow.config.values import Count, Name, Options, Real, Share


class PaintOptions(Section):
    """How Versatile Diffusion paints; the defaults are the paper's (Methods: second stage).

    steps : DDIM steps of the whole schedule; `int(strength * steps)` of them run (37).
    strength : how far the guess is noised, in (0, 1].
    guidance_scale : classifier-free guidance, eps_uncond + scale * (eps_cond - eps_uncond).
    mixing : share of the text transformers, in [0, 1]; the vision transformers have the rest.
    noise_index : `authors` adds the noise of index int(strength * steps) and denoises from the index below
        (timesteps 741 and 721 for the defaults; at strength 1 both are the last index); `diffusers` uses the
        lower index for both.
    latent : the guess enters as a `sample` of the autoencoder's posterior, or as its `mean`.

    Approximate modes, off by default (docs/painting.md):

    solver : `ddim`, or `dpmpp_2m`, of second order, which needs fewer steps (`bdflow.models.diffusion.solvers`).
    guidance_interval : (low, high) in fractions of the noise schedule, 0 clean, 1 noise alone. Outside it the
        conditional half runs alone (Kynkäänniemi et al. 2024).
    feature_cache : the UNet's deep features are computed anew every so many steps (Ma et al. 2023); 1 is every step.
    linear : `fp8`: linear layers of the UNet's transformers multiply numbers of 8 bits
        (`bdflow.models.diffusion.eight_bits`); or `exact`, in `networks.dtype`.
    """

    steps: Count = 50
    strength: Annotated[Real, Field(gt=0, le=1)] = 0.75
    guidance_scale: Annotated[Real, Field(ge=0)] = 7.5
    mixing: Share = 0.4
    noise_index: Annotated[Literal["authors", "diffusers"], where(lambda of: of.strength < 1)] = "authors"
    latent: Literal["sample", "mean"] = "sample"
    solver: Literal["ddim", "dpmpp_2m"] = "ddim"
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    feature_cache: Count = 1
    linear: Literal["exact", "fp8"] = "exact"

    @field_validator("guidance_interval")
    @classmethod
    def _low_below_high(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("expected [low, high] with low below high")
        return value

    @model_validator(mode="after")
    def _a_step_runs(self) -> Self:
        if int(self.strength * self.steps) < 1:
            raise ValueError(f"strength {self.strength:g}: expected at least 1 / steps = {1 / self.steps:g}")
        return self


ROLES = ("guess", "vision", "text")
"""What a painter may paint from: the spaces that are named under these keys."""


Control = Literal["prior", "retrieval", "mean_image"]


class PainterSettings(PaintOptions):
    """One painter: predicted latents into pictures. `kind` is a registered name (`versatile_diffusion`) or a class of
    one's own, `package.module:Class`. `guess`, `vision` and `text` name the spaces it paints from; `variants` what is
    painted: `full`, or ablations.

    kind : the name, or the class.
    guess : the space that pictures start from; null: none. The default of it, `vision` and `text` is that of
        `versatile_diffusion`; of other kinds it is null.
    vision : the space of the first condition, of Brain-Diffuser CLIP's image tokens; null: none.
    text : the space of the second condition, of Brain-Diffuser CLIP's text tokens; null: none.
    variants : what is painted: `full`, or parts of the method left out (docs/evaluation.md).
    pictures : how many are painted of an item, each from noise of its own; the start from a guess is the same.
    select : which of them are scored and shown: `all` (scores are means over them), the `first`, or the `best`: the one
        whose latent, by the encoder of the space `select_by`, correlates most with the predicted latent. The photo is
        not looked at.
    controls : pictures that are scored and shown beside the variants, of the same test stimuli: `prior`, those of the
        first variant, each put to another stimulus; `retrieval`, the training photo that is nearest to the prediction
        in the space `retrieve_by` (null: of `vision`, `text` and `guess` the first that is used); `mean_image`, the
        mean of the training photos (docs/controls.md).
    select_by : the space by which the best picture is chosen; needed for `best`.
    retrieve_by : the space in which the nearest training photo is looked for.
    batch_size : pictures that are painted at once.
    encode_batch_size : guesses that are encoded at once; null: as `batch_size`.
    decode_batch_size : pictures that are decoded at once; null: as `batch_size`.
    options : further settings of a painter of one's own.
    """

    kind: str = "versatile_diffusion"
    guess: str | None = "vdvae"
    vision: str | None = "clip_vision"
    text: str | None = "clip_text"
    variants: Annotated[tuple[Name, ...], Field(min_length=1), NOT_CONTENT] = ("full",)
    pictures: Annotated[Count, shapes("reconstructions")] = 1
    select: Annotated[
        Literal["all", "first", "best"], shapes("similarities", "metrics"), where(lambda of: of.pictures > 1)
    ] = "all"
    select_by: Annotated[str | None, shapes("selected")] = None
    controls: Annotated[tuple[Control, ...], NOT_CONTENT] = ()
    retrieve_by: Annotated[str | None, NOT_CONTENT] = None
    batch_size: Annotated[Count, NOT_CONTENT] = 8
    encode_batch_size: Annotated[Count | None, NOT_CONTENT] = None
    decode_batch_size: Annotated[Count | None, NOT_CONTENT] = None
    options: Options = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _roles_of_other_kinds(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("kind", "versatile_diffusion") != "versatile_diffusion":
            return {**dict.fromkeys(ROLES), **data}
        return data

    @model_validator(mode="after")
    def _best_by_a_space(self) -> Self:
        if self.select == "best" and self.select_by is None:
            raise ValueError("select: found best, and no select_by; expected the space that says which picture is best")
        return self

    @model_validator(mode="after")
    def _retrieval_by_a_space(self) -> Self:
        if "retrieval" in self.controls and self.retrieval_space is None:
            raise ValueError("controls: found retrieval, and no space; expected `retrieve_by`, or a role that is used")
        return self

    @property
    def retrieval_space(self) -> str | None:
        """The space in which `retrieval` finds training photos."""
        return self.retrieve_by or self.vision or self.text or self.guess

    @property
    def paint_options(self) -> PaintOptions:
        """How a picture is painted from latents."""
        return PaintOptions(**{name: getattr(self, name) for name in PaintOptions.model_fields})
