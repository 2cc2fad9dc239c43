"""The page of a study of 982 test stimuli, as data: no study is made, and all pictures are one file."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from bdflow.report import page, plots
from bdflow.report.page import Example, Page, Row, Shown, Table
from bdflow.report.palette import number as look

N = 982
SUBJECTS = ("subj01", "subj02", "subj05", "subj07", "mean", "true")
VARIANTS = ("full", "only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision", "prior")
METRICS = (
    "PixCorr",
    "SSIM (paper)",
    "AlexNet(2)",
    "AlexNet(5)",
    "Inception",
    "CLIP",
    "EffNet-B",
    "SwAV",
    "CLIP (bundle)",
)
AREAS = ("all voxels", "V1", "V2", "V3", "hV4", "faces", "words", "places", "bodies")
PAINTER = "brain_diffuser"


def write(folder: Path) -> Path:
    """All files of the report; returns the page."""
    kinds = [f"{PAINTER}/guess", *(f"{PAINTER}/{variant}" for variant in VARIANTS)]
    out = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)).save(out, "WEBP")
    one = folder / "one.webp"
    one.write_bytes(out.getvalue())
    for place in ("shown", *SUBJECTS):
        (folder / "images" / place).mkdir(parents=True)
        suffixes = [""] if place == "shown" else ["-" + kind.replace("/", "-") for kind in kinds]
        for suffix in suffixes:
            for i in range(N):
                os.link(one, folder / "images" / place / f"{i:05d}{suffix}.webp")
    made = _page(kinds)
    script = page.gallery_script(made)
    (folder / page.GALLERY).write_text(script)
    with (folder / "index.html").open("w") as file:
        file.writelines(page.html(made, len(script)))
    return folder / "index.html"


def _gallery(kinds: list[str]) -> dict[str, object]:
    value = np.random.default_rng(1).normal(size=(len(SUBJECTS), len(VARIANTS), len(METRICS), N)).round(3)
    return {
        "subjects": [{"name": s, "label": s, "person": s.startswith("subj")} for s in SUBJECTS],
        "variants": [{"name": kind} for kind in kinds[1:]],
        "lines": [
            {
                "name": kind, "label": kind, "painter": PAINTER, "usual": k < 2, "absent": [], "pictures": 5,
                "select": "all", "variant": VARIANTS[k - 1] if k else None,
            }
            for k, kind in enumerate(kinds)
        ],
        "metrics": [{"name": name, "lower": name in ("EffNet-B", "SwAV")} for name in METRICS],
        "thumbnail": 160,
        "parts": ["stimuli/shared"],
        "part": [0] * N,
        "stimuli": [[f"{7 * i:05d}", [f"A photo of thing {7 * i}", "Something else"]] for i in range(N)],
        "scores": value.tolist(),
        "shown": [[True] * N for _ in SUBJECTS],
    }  # fmt: skip


def _tables(kinds: list[str]) -> list[Table]:
    interval = ("0.656", "0.611 to 0.699")
    rows = [
        Row([(kind, "the training photo nearest to the prediction"), *[interval] * len(METRICS), "982"])
        for kind in kinds
    ]
    return [Table("Table 2", ["", *(f"{metric} ↑" for metric in METRICS), "n"], [("average of subjects", rows)])]


def _encoding() -> Table:
    rows = [
        Row([model, *[("100% of 12,345", "r \u22120.12")] * len(AREAS)])
        for model in ("clip_vision", "vdvae_and_clip_vision")
    ]
    return Table("Encoding models: voxels that pass", ["model", *AREAS], [("subj01", rows)])


def _page(kinds: list[str]) -> Page:
    photo = Shown("shown", "images/shown/00000.webp", (), "subj01", "")
    picture = Shown(
        kinds[1], f"images/subj01/00000-{kinds[1].replace('/', '-')}.webp", ["PixCorr 0.3"], "subj01", kinds[1]
    )
    x = np.random.default_rng(2).normal(size=N)
    return Page(
        title="A large report",
        summary="As many pictures as NSD has test stimuli.",
        notice="",
        facts=(("test stimuli", str(N)),),
        scores=_tables(kinds),
        comparisons=(),
        distributions=[plots.histograms(m, [(s, x, look(k)) for k, s in enumerate(SUBJECTS)]) for m in METRICS],
        decoding=(),
        decoding_plots=(),
        decoding_series=(),
        regions=(),
        gallery=_gallery(kinds),
        weight="",
        making=(),
        configuration="",
        versions=(),
        fingerprints=Table("What each store was made from", ["store"], []),
        encoding=[_encoding()],
        examples=[
            Example(title, "00000", "A photo of thing 0", 0, [photo, picture]) for title in ("Best", "Median", "Worst")
        ],
        ranked_by="PixCorr",
    )
