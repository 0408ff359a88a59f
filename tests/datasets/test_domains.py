from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.datasets.domains import MAX_STRENGTH, SHIFTS, apply_shift, smooth_field

CHANGING = [name for name in SHIFTS if name != "clear"]
DRAWN = ["watercolour", "comic", "clipart", "sketch"]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A coloured picture with areas, edges, a dark and a light object."""
    rng = np.random.default_rng(5)
    image = cv2.resize(rng.integers(60, 200, (5, 7, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (50, 60), 25, (30, 30, 160), -1)
    cv2.rectangle(image, (95, 30), (140, 95), (230, 225, 215), -1)
    image.flags.writeable = False
    return image


def _luma(image: np.ndarray) -> float:
    return float(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean())


def _chroma(image: np.ndarray) -> float:
    return float(np.ptp(image.astype(int), axis=2).mean())


def _detail(image: np.ndarray) -> float:
    return float(np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.CV_32F)).mean())


def test_the_table_holds_every_shift():
    assert set(SHIFTS) == {
        "clear", "night", "fog", "rain", "snow", "low-light", "motion-blur",
        "watercolour", "comic", "clipart", "sketch",
    }  # fmt: skip


@pytest.mark.parametrize("name", SHIFTS)
def test_shape_type_and_input_stay(photograph, name):
    before = photograph.copy()
    shifted = apply_shift(photograph, name, seed=1)
    assert shifted.shape == photograph.shape
    assert shifted.dtype == np.uint8
    assert not np.shares_memory(shifted, photograph)
    assert np.array_equal(photograph, before)


@pytest.mark.parametrize("name", CHANGING)
def test_the_same_picture_and_seed_give_the_same_result(photograph, name):
    first = apply_shift(photograph, name, seed=7)
    assert np.array_equal(first, apply_shift(photograph.copy(), name, seed=7))
    # A view with other strides holds the same pixels.
    assert np.array_equal(first, apply_shift(np.asfortranarray(photograph), name, seed=7))


@pytest.mark.parametrize("name", [name for name in CHANGING if name != "clipart"])
def test_another_seed_or_picture_gives_other_random_choices(name):
    grey = np.full((60, 80, 3), 90, np.uint8)
    cv2.rectangle(grey, (20, 20), (50, 40), (40, 90, 160), -1)
    other = grey.copy()
    other[0, 0] = 91
    first = apply_shift(grey, name, seed=1).astype(int)
    assert not np.array_equal(first, apply_shift(grey, name, seed=2))
    # Away from the changed corner only the generator can make a difference.
    assert not np.array_equal(first[25:, 25:], apply_shift(other, name, seed=1)[25:, 25:])


@pytest.mark.parametrize("name", SHIFTS)
def test_strength_zero_is_the_picture_itself(photograph, name):
    result = apply_shift(photograph, name, seed=1, strength=0)
    assert np.array_equal(result, photograph)
    assert not np.shares_memory(result, photograph)


@pytest.mark.parametrize("name", CHANGING)
def test_more_strength_goes_further_from_the_picture(photograph, name):
    def distance(strength: float) -> float:
        # Several seeds: one blur may be short, and which one it is depends on the last bit of the picture.
        shifted = [apply_shift(photograph, name, seed=seed, strength=strength) for seed in range(8)]
        return float(np.mean([np.abs(item.astype(int) - photograph).mean() for item in shifted]))

    assert 0 < distance(0.3) < distance(1.0)
    assert distance(1.0) > 1  # grey level: a domain, not a nuance


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 2), (31, 33)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_tiny_and_uniform_pictures(name, size_hw, level):
    image = np.full((*size_hw, 3), level, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        shifted = apply_shift(image, name, seed=0, strength=MAX_STRENGTH)
    assert shifted.shape == image.shape
    assert shifted.dtype == np.uint8


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(SHIFTS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    strength=st.floats(0, MAX_STRENGTH),
    seed=st.integers(0, 2**63),
)
def test_any_picture_is_taken(name, height, width, strength, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with np.errstate(all="raise", under="ignore"):
        first = apply_shift(image, name, seed=seed, strength=strength)
    assert first.shape == image.shape
    assert np.array_equal(first, apply_shift(image, name, seed=seed, strength=strength))


@pytest.mark.parametrize("seed", range(4))
def test_a_large_blur_of_black_is_a_number(seed):
    # Kernels above 11 pixels go through a Fourier transform, which leaves small negative values beside whites.
    image = np.zeros((400, 600, 3), np.uint8)
    image[:, 300:] = 255
    with np.errstate(all="raise", under="ignore"):
        shifted = apply_shift(image, "motion-blur", seed=seed, strength=1.5)
    assert shifted[:, :250].max() <= 1


@pytest.mark.parametrize("level", [1, 60, 128, 200])
def test_motion_blur_of_one_tone_is_that_tone(level):
    image = np.full((50, 70, 3), level, np.uint8)
    assert np.abs(apply_shift(image, "motion-blur", seed=1).astype(int) - level).max() <= 1


@pytest.mark.parametrize("name", ["comic", "clipart", "night", "sketch"])
def test_edges_stay_where_they_are(name):
    image = np.full((120, 160, 3), (60, 70, 60), np.uint8)
    image[40:80, 50:110] = (240, 235, 240)
    grey = cv2.cvtColor(apply_shift(image, name, seed=2), cv2.COLOR_BGR2GRAY).astype(np.float32)
    step = np.abs(np.diff(cv2.GaussianBlur(grey, (0, 0), 1.5), axis=1))[48:72].mean(axis=0)
    assert abs(int(step[:80].argmax()) - 49) <= 2
    assert abs(int(step[80:].argmax()) + 80 - 109) <= 2


def test_night_is_dark_and_bluish(photograph):
    shifted = apply_shift(photograph, "night", seed=1)
    assert _luma(shifted) < 0.5 * _luma(photograph)
    corner = [apply_shift(np.full((80, 80, 3), 128, np.uint8), "night", seed=seed) for seed in range(8)]
    blue, red = np.mean([c[..., 0].min() for c in corner]), np.mean([c[..., 2].min() for c in corner])
    assert blue > red


def test_fog_takes_contrast_and_colour_most_at_the_top(photograph):
    shifted = apply_shift(photograph, "fog", seed=1)
    assert _luma(shifted) > _luma(photograph)
    assert shifted.std() < 0.6 * photograph.std()
    assert _chroma(shifted) < 0.6 * _chroma(photograph)
    checks = (np.indices((160, 160)).sum(axis=0) // 20 % 2 * 200).astype(np.uint8)
    foggy = apply_shift(np.dstack([checks] * 3), "fog", seed=1).astype(float)
    assert foggy[:40].std() < 0.8 * foggy[-40:].std()


def test_comic_has_few_flat_colours_and_dark_lines(photograph):
    shifted = apply_shift(photograph, "comic", seed=1)
    smooth = photograph[:25, :40]
    drawn = shifted[:25, :40]
    same = (np.abs(np.diff(drawn.astype(int), axis=1)).max(axis=2) == 0).mean()
    assert same > 3 * (np.abs(np.diff(smooth.astype(int), axis=1)).max(axis=2) == 0).mean() + 0.1
    # The border of the light rectangle, brighter than 200 on the one side, is drawn black.
    outline = cv2.cvtColor(shifted, cv2.COLOR_BGR2GRAY)[40:85, 91:99]
    assert outline.min(axis=1).mean() < 60


def test_rain_and_snow_add_detail_and_take_colour(photograph):
    for name in ("rain", "snow"):
        shifted = apply_shift(photograph, name, seed=1)
        assert _detail(shifted) > 2 * _detail(photograph)
        assert _chroma(shifted) < 0.9 * _chroma(photograph)
    assert _luma(apply_shift(photograph, "snow", seed=1)) > _luma(photograph) + 10


def test_low_light_is_dim_and_noisy(photograph):
    shifted = apply_shift(photograph, "low-light", seed=1)
    assert _luma(shifted) < 0.65 * _luma(photograph)
    assert _detail(shifted) > 2 * _detail(photograph)


def test_motion_blur_smears_along_one_line_and_keeps_the_light():
    point = np.zeros((161, 161, 3), np.uint8)
    point[78:83, 78:83] = 255
    shifted = apply_shift(point, "motion-blur", seed=4)
    y, x = np.nonzero(shifted[..., 0] > 8)
    extents = np.sqrt(np.linalg.eigvalsh(np.cov(np.stack([x, y]))))
    assert extents[1] > 1.4 * extents[0]
    assert abs(x.mean() - 80) < 0.6
    assert abs(y.mean() - 80) < 0.6
    linear = (shifted[..., 0] / 255.0) ** 2.2
    assert linear.sum() == pytest.approx(25, rel=0.05)


def test_sketch_has_no_colour_of_the_picture():
    red = np.full((60, 60, 3), (0, 0, 255), np.uint8)
    blue = np.full((60, 60, 3), (255, 0, 0), np.uint8)
    for image in (red, blue):
        channels = apply_shift(image, "sketch", seed=1).reshape(-1, 3).mean(axis=0)
        assert np.ptp(channels) < 20  # the paper's own tint


def test_clipart_fills_with_at_most_twelve_colours(photograph):
    # Outlines and their soft edges are extra colours on few pixels; the twelve fills cover nearly all.
    _, counts = np.unique(apply_shift(photograph, "clipart", seed=1).reshape(-1, 3), axis=0, return_counts=True)
    assert np.sort(counts)[-12:].sum() > 0.7 * counts.sum()


@pytest.mark.parametrize("name", DRAWN)
def test_drawings_of_one_picture_are_different_domains(photograph, name):
    mine = apply_shift(photograph, name, seed=1).astype(int)
    for other in DRAWN:
        if other != name:
            assert np.abs(mine - apply_shift(photograph, other, seed=1)).mean() > 10


def test_smooth_field_is_smooth_and_in_range():
    field = smooth_field(np.random.default_rng(0), (90, 120), 4)
    assert field.shape == (90, 120)
    assert field.dtype == np.float32
    assert field.min() >= 0
    assert field.max() <= 1
    assert np.ptp(field) > 0.4
    assert np.abs(np.diff(field, axis=1)).max() < 0.1
    assert smooth_field(np.random.default_rng(0), (9, 12), 4, channels=3).shape == (9, 12, 3)


def test_unknown_name_names_the_nearest(photograph):
    with pytest.raises(ValueError, match=r"'commic' is unknown.*'comic'"):
        apply_shift(photograph, "commic", seed=0)


@pytest.mark.parametrize("strength", [-0.1, 1.51, float("nan")])
def test_strength_out_of_range(photograph, strength):
    with pytest.raises(ValueError, match=r"expected a strength from 0 to 1\.5"):
        apply_shift(photograph, "fog", seed=0, strength=strength)


def test_negative_seed(photograph):
    with pytest.raises(ValueError, match="seed of 0 or more, not -1"):
        apply_shift(photograph, "fog", seed=-1)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (8, 8, 1), (0, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\)"):
        apply_shift(np.zeros(shape, np.uint8), "fog", seed=0)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="uint8 array, not float32"):
        apply_shift(np.zeros((8, 8, 3), np.float32), "fog", seed=0)
    with pytest.raises(TypeError, match="uint8 array, not list"):
        apply_shift([[1, 2, 3]], "fog", seed=0)
