"""The key of every store of a study: its path below the study. Nothing else makes one.

A store of several subjects has no subject in its key. `design` names the rows and voxels that ridge is fitted on
(`Design.name`), `painter` and `variant` the pictures.
"""

from __future__ import annotations

SHARED = "shared"
REGION_SETS = "rois"


def stimuli(part: str) -> str:
    """Photos and captions: those that several subjects saw (`SHARED`), or those that a subject alone saw."""
    return f"stimuli/{part}"


def betas(subject: str) -> str:
    """Single trials."""
    return f"betas/{subject}"


def responses(subject: str, rows: str) -> str:
    """Rows that ridge is fitted on, `averaged` or `trials`, and averaged test stimuli."""
    return f"responses/{subject}/{rows}"


def targets(space: str, part: str) -> str:
    """Latents of the stimuli of a part."""
    return f"targets/{space}/{part}"


def system(subject: str, design: str) -> str:
    """What ridge solves."""
    return f"systems/{subject}/{design}"


def validation(subject: str, design: str) -> str:
    """Cross-validated predictions, as matrices."""
    return f"validation/{subject}/{design}"


def selection(subject: str, space: str) -> str:
    """Scores of every penalty."""
    return f"selection/{subject}/{space}"


def decoder(subject: str, design: str) -> str:
    """Hat matrices."""
    return f"decoders/{subject}/{design}"


def predictions(subject: str, space: str) -> str:
    """Predicted latents of test stimuli."""
    return f"predictions/{subject}/{space}"


def weights(subject: str, space: str) -> str:
    """Ridge coefficients."""
    return f"weights/{subject}/{space}"


def importance(subject: str, space: str) -> str:
    """How much each voxel counts."""
    return f"importance/{subject}/{space}"


def encoding(subject: str, space: str) -> str:
    """Encoding models of each voxel."""
    return f"encoding/{subject}/{space}"


def encoding_set(subject: str, name: str) -> str:
    """Encoding models of each voxel from several spaces."""
    return f"encoding_sets/{subject}/{name}"


def neighbours(subject: str, space: str) -> str:
    """Which training stimuli are nearest to a test stimulus."""
    return f"neighbours/{subject}/{space}"


def attention(painter: str) -> str:
    """How long each kernel takes for a painter's attention."""
    return f"attention/{painter}"


def guesses(painter: str, subject: str) -> str:
    """Pictures of the first stage."""
    return f"guesses/{painter}/{subject}"


def reconstructions(painter: str, subject: str, variant: str) -> str:
    """Pictures of the second stage."""
    return f"reconstructions/{painter}/{subject}/{variant}"


def selected(painter: str, subject: str) -> str:
    """Which of several pictures of an item is the best."""
    return f"selected/{painter}/{subject}"


def judge(metric: str) -> str:
    """What a judging network sees in test photos. A metric such as `AlexNet(2)` becomes `alexnet_2`."""
    slug = metric.lower().replace(" (", "_").replace("(", "_").replace(")", "").replace("-", "_").replace(" ", "_")
    return f"judges/{slug}"


def similarities(painter: str, subject: str) -> str:
    """Correlations of pictures with photos in the eyes of each judging network."""
    return f"similarities/{painter}/{subject}"


def metrics(painter: str, subject: str) -> str:
    """Scores of each picture."""
    return f"metrics/{painter}/{subject}"


def region_patterns(chosen: str, subject: str) -> str:
    """Patterns over voxels of a set of regions."""
    return f"{REGION_SETS}/{chosen}/{subject}/patterns"


def region_latents(chosen: str, subject: str, space: str) -> str:
    """Latents decoded from these patterns."""
    return f"{REGION_SETS}/{chosen}/{subject}/latents/{space}"


def region_guesses(chosen: str, painter: str, subject: str) -> str:
    """Pictures of the first stage, painted from these latents."""
    return f"{REGION_SETS}/{chosen}/{subject}/guesses/{painter}"


def region_images(chosen: str, painter: str, subject: str) -> str:
    """Pictures of the second stage, painted from these latents."""
    return f"{REGION_SETS}/{chosen}/{subject}/images/{painter}"


def factor(name: str, alpha: float) -> str:
    """A Cholesky factor larger than memory, in the scratch study."""
    return f"factors/{name}/{alpha:g}"


def kind(key: str) -> str:
    """What kind of store a key is of: its first part."""
    return key.split("/")[0]
