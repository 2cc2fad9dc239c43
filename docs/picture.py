"""Draw a sheet of reconstructions from a study, with nothing but xarray, numpy and pillow.

python docs/picture.py demo/study.zarr docs/demo.png
"""

import sys

import numpy as np
import xarray
from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, GAP, MARGIN = 10, 112, 6, 150


def main(study: str, out: str) -> None:
    tree = xarray.open_datatree(study, engine="zarr", chunks={})
    shown = tree["stimuli/shared"].to_dataset().swap_dims(stimulus="nsd_id").image
    painter = next(iter(tree["reconstructions"].children))
    subjects = [name for name in tree[f"reconstructions/{painter}"].children if name != "true"]
    rows = [("shown", shown)]
    for name, path in [
        (f"{subjects[0]}, guess", f"guesses/{painter}/{subjects[0]}"),
        *((f"{subject}, reconstruction", f"reconstructions/{painter}/{subject}/full") for subject in subjects),
        ("from true latents", f"reconstructions/{painter}/true/full"),
    ]:
        if f"/{path}" in tree.groups:
            images = tree[path].to_dataset().swap_dims(stimulus="nsd_id").image
            rows.append((name, images.isel(picture=0) if "picture" in images.dims else images))
    ids = rows[1][1].nsd_id.values
    chosen = ids[np.linspace(0, len(ids) - 1, COLUMNS).round().astype(int)]

    size = (MARGIN + COLUMNS * (SIDE + GAP), len(rows) * (SIDE + GAP))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for r, (name, images) in enumerate(rows):
        top = r * (SIDE + GAP)
        draw.multiline_text((4, top + SIDE // 2 - 14), name.replace(", ", "\n"), fill="black", font=font)
        for c, nsd_id in enumerate(chosen):
            image = Image.fromarray(images.sel(nsd_id=nsd_id).values)
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (MARGIN + c * (SIDE + GAP), top))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
