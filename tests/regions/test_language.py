"""The language of regions and the rescaling of latents: against plain set arithmetic and norms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdflow.datasets.nsd import ROI_LABELS
from bdflow.errors import InputError
from bdflow.regions.language import AGGREGATES, Atlas, Vocabulary
from bdflow.regions.rescale import rescaled, stretched

FILES = {name: labels for name, labels in ROI_LABELS.items() if name != "streams"}
VOXELS = 400


REGIONS = [f"{file}/{label}" for file, labels in FILES.items() for label in labels]


def atlas(seed: int = 0, without: tuple[str, ...] = ()) -> Atlas:
    rng = np.random.default_rng(seed)
    regions = {}
    for file, labels in FILES.items():
        of = rng.integers(-1, len(labels) + 1, VOXELS)
        if file not in without:
            regions |= {f"{file}/{label}": of == number for number, label in enumerate(labels, start=1)}
    valid = rng.random(VOXELS) < 0.9
    return Atlas(Vocabulary(REGIONS, None, ("mine",)), regions, valid, "subj01", 7, {"mine": rng.normal(size=VOXELS)})


ATLAS = atlas()


def voxels(file: str, *labels: int) -> np.ndarray:
    numbers = labels or range(1, len(FILES[file]) + 1)
    return np.any([ATLAS.regions[f"{file}/{FILES[file][number - 1]}"] for number in numbers], axis=0) & ATLAS.valid


@pytest.mark.parametrize(
    ("name", "file", "labels"),
    [
        ("V1", "prf-visualrois", (1, 2)),
        ("V2", "prf-visualrois", (3, 4)),
        ("V3", "prf-visualrois", (5, 6)),
        ("hV4", "prf-visualrois", (7,)),
        ("V1d", "prf-visualrois", (2,)),
        ("faces", "floc-faces", ()),
        ("FFA-1", "floc-faces", (2,)),
        ("words", "floc-words", ()),
        ("places", "floc-places", ()),
        ("RSC", "floc-places", (3,)),
        ("bodies", "floc-bodies", ()),
        ("ecc 0-0.5", "prf-eccrois", (1,)),
        ("ecc 0.5-1", "prf-eccrois", (2,)),
        ("ecc 1-2", "prf-eccrois", (3,)),
        ("ecc  2-4", "prf-eccrois", (4,)),
        ("ECC >4", "prf-eccrois", (5,)),
        ("ecc4+", "prf-eccrois", (5,)),
        ("ecc4", "prf-eccrois", (4,)),
        ("nsdgeneral", "nsdgeneral", ()),
        ("'FFA-2'", "floc-faces", (3,)),
    ],
)
def test_names_are_the_labels_of_the_protocol(name, file, labels):
    np.testing.assert_array_equal(ATLAS.pattern(name), voxels(file, *labels))


F, B, V1, H = voxels("floc-faces"), voxels("floc-bodies"), voxels("prf-visualrois", 1, 2), voxels("prf-visualrois", 7)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("faces | bodies", F | B),
        ("faces&V1", F & V1),
        ("faces \\ bodies", F & ~B),
        ("faces - bodies", F * 1.0 - B),
        ("V1 + hV4 - bodies", V1 * 1.0 + H - B),
        ("V1-hV4", V1 * 1.0 - H),
        ("-faces", -1.0 * F),
        ("faces - bodies - V1", F * 1.0 - B - V1),
        ("faces - (bodies - V1)", F * 1.0 - B + V1),
        ("faces | bodies & V1", F | (B & V1)),
        ("(faces | bodies) & V1", (F | B) & V1),
        ("faces | hV4 \\ bodies", F | (H & ~B)),
        ("ecc 1-2-ecc 2-4", voxels("prf-eccrois", 3) * 1.0 - voxels("prf-eccrois", 4)),
        ("FFA-1-FFA-2", voxels("floc-faces", 2) * 1.0 - voxels("floc-faces", 3)),
    ],
)
def test_expressions_are_set_arithmetic_and_sums(expression, expected):
    np.testing.assert_array_equal(ATLAS.pattern(expression), expected)


@given(st.recursive(st.sampled_from(sorted(AGGREGATES)), lambda of: st.tuples(of, st.sampled_from("|&\\"), of)))
def test_any_tree_of_sets_with_parentheses(tree):
    def text(node):
        return node if isinstance(node, str) else f"({text(node[0])} {node[1]} {text(node[2])})"

    def value(node):
        if isinstance(node, str):
            file, names = AGGREGATES[node]
            return voxels(file, *(FILES[file].index(name) + 1 for name in names))
        a, sign, b = value(node[0]), node[1], value(node[2])
        return a | b if sign == "|" else a & (b if sign == "&" else ~b)

    expected = value(tree)
    if expected.any():
        np.testing.assert_array_equal(ATLAS.pattern(text(tree)), expected)
    else:
        with pytest.raises(InputError, match="no voxel is left"):
            ATLAS.pattern(text(tree))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("face", ["'face', which is no region", "faces, words, places", "did you mean 'faces'"]),
        ("V5 + V1", ["'V5'"]),
        ("faces &", ["its end", "a region"]),
        ("(faces", ["no closing parenthesis"]),
        ("faces bodies", ["'bodies'", "an operator"]),
        ("faces & (V1 - bodies)", ["a mixture beside"]),
        ("mine & V1", ["a mixture beside"]),
        ("faces \\ faces", ["no voxel is left", f"V1 ({V1.sum()})"]),
        ("random 1000", ["random 1000", "1 to"]),
        ("", ["its end"]),
        ("'nothing", ["which is no region"]),
    ],
)
def test_what_cannot_be_read_is_refused(expression, words):
    with pytest.raises(InputError) as error:
        ATLAS.pattern(expression)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_what_a_subject_lacks_is_refused_with_what_there_is():
    with pytest.raises(InputError, match=r"words, which the subject does not have[\s\S]*faces \(\d+\)") as error:
        atlas(without=("floc-words",)).pattern("words")
    assert "words (" not in str(error.value).split("there are")[1]
    nowhere = {name: of & (not name.startswith("floc-faces/")) for name, of in ATLAS.regions.items()}
    with pytest.raises(InputError, match="faces, which has no voxel here"):
        Atlas(ATLAS.vocabulary, nowhere, ATLAS.valid).pattern("V1 | faces")


def test_a_name_in_two_collections_needs_its_collection():
    regions = {"one/V9": np.arange(VOXELS) < 9, "two/V9": np.arange(VOXELS) > 9, "two/V10": np.arange(VOXELS) < 3}
    of = Atlas(Vocabulary([*regions]), regions, np.ones(VOXELS, bool))
    with pytest.raises(InputError, match=r"'V9', which is several regions[\s\S]*one/V9, two/V9[\s\S]*collection"):
        of.pattern("V9 | V10")
    np.testing.assert_array_equal(of.pattern("two/V9 | V10") > 0, regions["two/V9"] | regions["two/V10"])
    assert of.counts() == {"one": 9, "two": VOXELS - 10 + 3, "two/V9": VOXELS - 10, "V10": 3}


def test_aggregates_of_the_paper_come_before_areas_of_an_atlas():
    """HCP_MMP1 has an area V1 too."""
    regions = ATLAS.regions | {"HCP_MMP1/V1": np.arange(VOXELS) < 5}
    of = Atlas(Vocabulary([*regions]), regions, ATLAS.valid)
    np.testing.assert_array_equal(of.pattern("V1"), ATLAS.pattern("V1"))
    np.testing.assert_array_equal(of.pattern("HCP_MMP1/V1") > 0, (np.arange(VOXELS) < 5) & ATLAS.valid)


def test_random_voxels_are_a_set_that_depends_on_subject_and_number_alone():
    first = ATLAS.pattern("random 50")
    assert first.sum() == 50
    assert not first[~ATLAS.valid].any()
    np.testing.assert_array_equal(ATLAS.pattern("random 50 seed 0"), first)
    assert (ATLAS.pattern("random 50 seed 1") != first).any()
    other = Atlas(ATLAS.vocabulary, ATLAS.regions, ATLAS.valid, "subj02", 7)
    assert (other.pattern("random 50") != first).any()


def test_a_users_pattern_is_a_name():
    np.testing.assert_array_equal(
        ATLAS.pattern("mine - V1"), np.where(ATLAS.valid, ATLAS.more["mine"], 0).astype("f4") - V1
    )


# --- rescaling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30,), (5, 7)])
def test_rules_give_the_norms_they_are_named_after(shape):
    rng = np.random.default_rng(1)
    train = rng.normal(rng.normal(size=shape), 2, (500, *shape))
    mean, std = train.mean(axis=0), train.std(axis=0)
    latent = mean + 0.01 * rng.normal(size=(3, *shape))

    def size(values):
        return np.sqrt(np.mean(np.square(values).sum(axis=-1), axis=0))

    for strength in (0.5, 1, 4):
        paper = rescaled(latent, mean, std, "training_norm", strength)
        np.testing.assert_allclose(
            np.linalg.norm(paper, axis=-1), np.broadcast_to(size(train), paper.shape[:-1]), rtol=1e-5
        )
        moved = rescaled(latent, mean, std, "deviation", strength) - mean
        expected = np.broadcast_to(strength * size(train - mean), moved.shape[:-1])
        np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), expected, rtol=1e-4)
        np.testing.assert_allclose(
            rescaled(latent, mean, std, "none", strength), mean + strength * (latent - mean), rtol=1e-4
        )
    assert rescaled(latent, mean, std, "none").dtype == np.float32
    np.testing.assert_allclose(rescaled(mean[None], mean, std, "deviation")[0], mean, rtol=1e-6)
    with pytest.raises(InputError, match="training_norm"):
        rescaled(latent, mean, std, "norm")


def test_stretching_uses_the_whole_range_and_keeps_order():
    image = np.random.default_rng(0).integers(90, 140, (32, 32, 3)).astype(np.uint8)
    found = stretched(image)
    assert (found.min(), found.max()) == (0, 255)
    order = np.argsort(image, axis=None)
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
    flat = np.full((4, 4, 3), 7, np.uint8)
    np.testing.assert_array_equal(stretched(flat), flat)
