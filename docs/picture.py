"""Draw a sheet of reconstructions from a study, with nothing but xarray, numpy and pillow.

python docs/picture.py demo/study.zarr docs/demo.png
"""

import sys

import numpy as np
import xarray
from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, GAP, MARGIN = 10, 112, 6, 150
NAMES = {"mean": "mean of predictions", "true": "true latents"}


def main(study: str, out: str) -> None:
    tree = xarray.open_datatree(study, engine="zarr", chunks={})
    shown = tree["stimuli/shared"].to_dataset().image
    rows = [("shown", shown)]
    for painter in tree["reconstructions"].children:
        subjects = list(tree[f"reconstructions/{painter}"].children)
        people = [name for name in subjects if name not in NAMES]
        several = len(tree["reconstructions"].children) > 1
        wanted = [*(people[:1] if several else people), *NAMES]
        paths = [(f"{people[0]}, guess", f"guesses/{painter}/{people[0]}")]
        paths += [(NAMES.get(subject, subject), f"reconstructions/{painter}/{subject}/full") for subject in wanted]
        for name, path in paths:
            if f"/{path}" in tree.groups:
                images = tree[path].to_dataset().image
                images = images.isel(picture=0) if "picture" in images.dims else images
                rows.append((f"{painter}, {name}" if several else name, images))
    ids = rows[1][1].stimulus_id.values
    chosen = ids[np.linspace(0, len(ids) - 1, COLUMNS).round().astype(int)]

    size = (MARGIN + COLUMNS * (SIDE + GAP), len(rows) * (SIDE + GAP))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for r, (name, images) in enumerate(rows):
        top = r * (SIDE + GAP)
        draw.multiline_text((4, top + SIDE // 2 - 14), name.replace(", ", "\n"), fill="black", font=font)
        for c, stimulus_id in enumerate(chosen):
            image = Image.fromarray(images.sel(stimulus_id=stimulus_id).values)
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (MARGIN + c * (SIDE + GAP), top))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
