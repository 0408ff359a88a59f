"""Domain shifts: a picture as it would look at night, in fog, drawn as a comic; its boxes stay where they are.

No shift moves an object, so labels need no change. Each is a function of the picture, a generator and a strength,
and stands in the table `SHIFTS` at the end. Lengths (blur, line width, dots) follow the longer side of the
picture, so a picture and its half-sized copy get the same look.

They are built on OpenCV. The weather of albumentations 2.0 (RandomFog, RandomRain, RandomSnow) was tried on
photographs and left out: its fog is separate discs, its snow turns greens neon, and its import takes seconds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import cv2
import numpy as np

from duet.errors import nearest

MAX_STRENGTH = 1.5

_GAMMA = 2.2
_TO_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** _GAMMA
# BT.601 weights in the order blue, green, red.
_LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)

Shift = Callable[[np.ndarray, np.random.Generator, float], np.ndarray]


def apply_shift(image_bgr: np.ndarray, name: str, *, seed: int, strength: float = 1.0) -> np.ndarray:
    """The picture in another domain.

    The random choices (where the lamps stand, how dense the fog is) come from the seed and the pixels together:
    the same picture and seed always give the same result, two pictures with one seed get different weather.

    Args:
        image_bgr: ``(H, W, 3)``, uint8, not empty; not changed.
        name: a key of `SHIFTS`.
        seed: not negative.
        strength: 0 (the picture itself) to 1.5; 1 is the domain as it is meant.

    Returns:
        A new array of the same shape and type.

    Raises:
        TypeError: when the picture is not a uint8 array.
        ValueError: for another shape, an unknown name, or a seed or strength out of range.
    """
    if name not in SHIFTS:
        raise ValueError(f"domain shift '{name}' is unknown{nearest(name, SHIFTS)}")
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"domain shift '{name}': expected a strength from 0 to {MAX_STRENGTH}, not {strength}")
    if seed < 0:
        raise ValueError(f"domain shift '{name}': expected a seed of 0 or more, not {seed}")
    _refuse_other_arrays(image_bgr, name)
    if strength == 0:
        return image_bgr.copy()
    image_bgr = np.ascontiguousarray(image_bgr)
    rng = np.random.default_rng([seed, zlib.crc32(image_bgr), *image_bgr.shape[:2]])
    return SHIFTS[name](image_bgr, rng, float(strength))


def smooth_field(rng: np.random.Generator, size_hw: tuple[int, int], cells: int, channels: int = 1) -> np.ndarray:
    """Low-frequency noise: a coarse random grid enlarged smoothly.

    Args:
        rng: source of the grid.
        size_hw: height and width in pixels.
        cells: grid cells per side; the more, the finer the noise.
        channels: independent layers.

    Returns:
        ``(H, W)`` for one channel, else ``(H, W, channels)``; float32, 0 to 1.
    """
    height, width = size_hw
    grid = rng.random((cells, cells, channels), dtype=np.float32)
    field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def clear(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The picture as it is: the domain that the others depart from."""
    return image_bgr.copy()


def night(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Moonlight, a few warm lamps, glowing highlights and the grain of a high sensor gain.

    Worked in linear light, where darkness is a factor: a blue, half-desaturated ambient (the eye sees little
    colour at night) plus pools of lamp light.
    """
    light = cv2.LUT(image_bgr, _TO_LINEAR)
    luma = light @ _LUMA_BGR
    faded = min(0.45 * strength, 0.7)
    colour = light * (1 - faded) + luma[..., None] * faded

    moon = 0.075**strength * np.array([2.3, 1.15, 0.62], np.float32) ** min(strength, 1)
    lamp = np.array([0.35, 0.75, 1.2], np.float32) * (0.6 * min(strength, 1))
    lit = colour * (moon + _lamp_pools(rng, luma.shape)[..., None] * lamp)
    glow = np.maximum(luma - 0.6, 0) * (0.6 * min(strength, 1))
    lit += cv2.GaussianBlur(glow, (0, 0), 5 * _unit(image_bgr))[..., None] * lamp
    encoded = np.maximum(lit, 0) ** (1 / _GAMMA)
    return _to_uint8(encoded + _grain(rng, encoded.shape, 0.02 * strength))


def fog(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Light lost in drifting fog, denser towards the top of the picture, where a scene is usually farther away.

    Koschmieder's law, I = J·t + A·(1 − t) with t = exp(−β·d), in place of albumentations' RandomFog, which draws
    separate blurred discs; d is a vertical ramp with low-frequency drifts.
    """
    height, width = image_bgr.shape[:2]
    ramp = np.linspace(1.0, 0.45, height, dtype=np.float32)[:, None]
    drift = 0.6 * smooth_field(rng, (height, width), 4) + 0.4 * smooth_field(rng, (height, width), 7)
    depth = ramp * (0.6 + 0.8 * drift)
    thickness = 1.45 * strength * rng.uniform(0.85, 1.15)
    clarity = np.exp(-thickness * depth)[..., None]
    air = np.float32(rng.uniform(0.76, 0.9)) * np.array([1.0, 0.99, 0.97], np.float32)

    scattered = cv2.GaussianBlur(image_bgr, (0, 0), 0.7 * strength * _unit(image_bgr) + 0.05)
    return _to_uint8(scattered.astype(np.float32) / 255 * clarity + air * (1 - clarity))


def rain(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A dull sky, a grey veil, and falling streaks of two distances, all slanted by one wind."""
    unit, size_hw = _unit(image_bgr), image_bgr.shape[:2]
    dull = _faded(image_bgr.astype(np.float32) / 255, 0.4 * strength) * (1 - 0.3 * strength)
    veil = np.exp(-0.32 * strength * (0.6 + 0.8 * smooth_field(rng, size_hw, 4)))[..., None]
    air = np.array([0.62, 0.59, 0.56], np.float32)
    wet = dull * veil + air * (1 - veil)
    slant = np.deg2rad(90 + rng.uniform(-22, 22))
    for drops, length, width, opacity in ((900, 11, 0.4, 0.2), (130, 24, 0.6, 0.36)):
        streaks = _sprinkle(rng, size_hw, int(drops * strength), width * unit)
        kernel = _line_kernel(length * unit, slant)
        streaks = cv2.filter2D(streaks, -1, kernel) / kernel.max()
        wet += (0.92 - wet) * np.minimum(streaks * opacity, 0.8)[..., None]
    return _to_uint8(wet)


def snow(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A white sky, snow lying on what is light, more of it lower down, and flakes of three distances."""
    unit, size_hw = _unit(image_bgr), image_bgr.shape[:2]
    image = _faded(image_bgr.astype(np.float32) / 255, 0.35 * strength)
    luma = image @ _LUMA_BGR
    ramp = np.linspace(0.25, 1.0, size_hw[0], dtype=np.float32)[:, None]
    lying = (cv2.GaussianBlur(luma, (0, 0), 1.5 * unit) - 0.3) * 2.2 + 0.8 * (smooth_field(rng, size_hw, 14) - 0.5)
    cover = np.clip(lying, 0, 1) * ramp * min(0.75 * strength, 0.9)
    veil = 0.22 * strength * (0.7 + 0.6 * smooth_field(rng, size_hw, 4))
    white = np.array([1.0, 0.97, 0.95], np.float32) * 0.94
    image += (white * (0.8 + 0.2 * luma[..., None]) - image) * cover[..., None]
    image += (white - image) * np.clip(veil, 0, 1)[..., None]
    for flakes, radius in ((900, 0.55), (260, 1.1), (50, 2.2)):
        layer = _sprinkle(rng, size_hw, int(flakes * strength), radius * unit)
        image += (1 - image) * np.minimum(layer, 0.95)[..., None]
    return _to_uint8(image)


def low_light(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """An unlit room taken at the highest gain: dim, warm, with photon noise, coarse colour noise, faint banding.

    The noise is added in linear light, where its variance is proportional to the light (photons) plus a constant
    (read-out), and amplified with the picture.
    """
    light = cv2.LUT(image_bgr, _TO_LINEAR) * np.array([0.72, 0.95, 1.1], np.float32)
    exposed = light * np.float32(0.2**strength)
    noise = _grain(rng, light.shape, 1.0) * np.sqrt(exposed * 0.006 + 2.5e-5)
    height, width = light.shape[:2]
    coarse = cv2.resize(_grain(rng, (height // 2 + 1, width // 2 + 1, 3), 1.0), (width, height))
    noise += coarse * np.sqrt(exposed * 0.003 + 2e-5)
    noise += _grain(rng, (height, 1, 1), 0.0016)
    return _to_uint8(np.maximum(exposed + noise * strength, 0) ** (1 / _GAMMA))


def motion_blur(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The camera moved along a line during the exposure; centred, so that objects smear evenly to both sides."""
    length = 10 * strength * rng.uniform(0.8, 1.2) * _unit(image_bgr)
    kernel = _line_kernel(length, rng.uniform(0, np.pi))
    # In linear light, as in a camera: bright points draw bright lines.
    light = cv2.filter2D(cv2.LUT(image_bgr, _TO_LINEAR), -1, kernel, borderType=cv2.BORDER_REPLICATE)
    # Large kernels go through a Fourier transform, which leaves blacks slightly negative.
    return _to_uint8(np.maximum(light, 0) ** (1 / _GAMMA))


def watercolour(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Washes of thin paint with darker rims, uneven pigment and the grain of the paper."""
    unit, size_hw = _unit(image_bgr), image_bgr.shape[:2]
    flat = cv2.edgePreservingFilter(image_bgr, flags=cv2.RECURS_FILTER, sigma_s=45, sigma_r=0.45)
    flat = cv2.medianBlur(flat, 5)
    wash = _steps_bgr(flat.astype(np.float32) / 255, 7, 0.25)
    luma = wash @ _LUMA_BGR
    rims = np.abs(luma - cv2.GaussianBlur(luma, (0, 0), 1.4 * unit))
    rims = np.clip(cv2.GaussianBlur(rims, (0, 0), 0.6 * unit) * 3.5 - 0.05, 0, 0.45)
    pigment = 0.5 * smooth_field(rng, size_hw, 6) + 0.5 * smooth_field(rng, size_hw, 22)
    paper = cv2.GaussianBlur(_grain(rng, size_hw, 1.0), (0, 0), max(0.7 * unit, 0.4))
    # Paint takes light away from the paper: everything that changes its thickness multiplies 1 − colour.
    thickness = 0.66 + 0.36 * pigment + rims * 1.6 + 0.11 * paper
    colour = np.clip(_faded(wash, -0.45), 0, 1)
    painted = np.array([0.93, 0.97, 0.99], np.float32) - (1 - colour) * 0.86 * thickness[..., None]
    return _mixed(painted - 0.012 * paper[..., None] - 0.15 * rims[..., None], image_bgr, strength)


def comic(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A drawn and printed page: flat areas of few inks, dark brush lines, halftone dots in the half-shadows."""
    unit = _unit(image_bgr)
    flat = image_bgr
    for _ in range(3):
        flat = cv2.bilateralFilter(flat, 7, 35, 4 * unit)
    inks = _flat_inks(flat, rng)
    inks = _halftone(inks, flat, rng, period=4.2 * max(unit, 0.7))
    line = _ink_lines(flat, unit, strength)[..., None]
    drawn = inks * (1 - line) + np.array([0.13, 0.07, 0.07], np.float32) * line
    return _mixed(drawn, image_bgr, strength)


def clipart(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A vector drawing: twelve bright flat colours of the picture's own, and thin even outlines."""
    unit = _unit(image_bgr)
    flat = cv2.medianBlur(image_bgr, 3)
    for _ in range(2):
        flat = cv2.bilateralFilter(flat, 7, 40, 4 * unit)
    lab = cv2.cvtColor(flat.astype(np.float32) / 255, cv2.COLOR_BGR2Lab)
    palette = _palette(lab, 12)
    # |a − b|² without the a² that all the distances of one pixel share.
    distance = (palette**2).sum(axis=1) - 2 * (lab.reshape(-1, 3) @ palette.T)
    labels = cv2.medianBlur(distance.argmin(axis=1).astype(np.uint8).reshape(lab.shape[:2]), 3)
    fills = np.clip(cv2.cvtColor(_brightened(palette)[None], cv2.COLOR_Lab2BGR)[0], 0, 1)[labels]
    step = cv2.morphologyEx(palette[:, 0][labels], cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    outline = 0.9 * cv2.GaussianBlur(np.clip((step - 9) / 8, 0, 1), (0, 0), max(0.5 * unit, 0.35))[..., None]
    fills = cv2.GaussianBlur(fills, (0, 0), max(0.5 * unit, 0.35))
    return _mixed(fills * (1 - outline) + 0.1 * outline, image_bgr, strength)


def sketch(image_bgr: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Pencil on paper: soft contours, and strokes of two directions that thicken where the picture is dark."""
    unit, size_hw = _unit(image_bgr), image_bgr.shape[:2]
    grey = cv2.cvtColor(cv2.bilateralFilter(image_bgr, 5, 30, 3), cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    # Dodging: a picture divided by its blurred self is white but for its contours.
    contour = 1 - np.clip((grey + 0.02) / (cv2.GaussianBlur(grey, (0, 0), 2.2 * unit) + 0.02), 0, 1)
    contour = np.clip(contour * 2.6 - 0.08, 0, 0.9)
    shade = cv2.GaussianBlur(1 - grey, (0, 0), 1.2 * unit)
    angle = np.deg2rad(rng.uniform(35, 55))
    strokes = np.zeros(size_hw, np.float32)
    for turn, least in ((0.0, 0.3), (np.pi / 3, 0.6)):
        hatch = cv2.filter2D(_grain(rng, size_hw, 1.0), -1, _line_kernel(16 * unit, angle + turn))
        hatch = np.clip(0.5 + 0.3 * hatch / max(float(hatch.std()), 1e-6), 0, 1)
        strokes = np.maximum(strokes, hatch * np.clip((shade - least) * 1.5, 0, 0.85))
    paper = np.array([0.93, 0.965, 0.98], np.float32) + _grain(rng, (*size_hw, 1), 0.012)
    graphite = 1 - (1 - contour) * (1 - strokes)
    return _mixed(paper - graphite[..., None] * 0.82, image_bgr, strength)


def _flat_inks(image_bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Posterised lightness with narrow soft steps, and few, strong colours, on slightly yellow paper."""
    lab = cv2.cvtColor(image_bgr.astype(np.float32) / 255, cv2.COLOR_BGR2Lab)
    light = lab[..., 0] / 100
    low, high = np.percentile(light[::2, ::2], (1, 99))
    # Pictures of one tone keep it: the stretch never exceeds a factor of two.
    light = np.clip((light - low) / max(high - low, 0.5) + low * max(0.0, 1 - (high - low) / 0.5), 0, 1)
    light = _soft_steps(light, 5, 0.06)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.arctan2(lab[..., 2], lab[..., 1])
    turn = 2 * np.pi / 14
    hue = np.round(hue / turn) * turn
    chroma = _soft_steps(np.clip(chroma * 1.5 / 75, 0, 1), 3, 0.08) * 75
    lab = np.dstack([12 + 86 * light, chroma * np.cos(hue), chroma * np.sin(hue)]).astype(np.float32)
    paper = np.array([0.90, 0.97, 1.0], np.float32) * np.float32(rng.uniform(0.96, 1.0))
    return cv2.cvtColor(lab, cv2.COLOR_Lab2BGR) * paper


def _palette(lab: np.ndarray, colours: int) -> np.ndarray:
    """The picture's main colours by k-means, sorted from dark to light; ``(colours, 3)``, CIE Lab.

    It starts from equal shares of the sorted lightness instead of a random choice, so it needs no generator.
    """
    step = int(np.ceil(max(lab.shape[:2]) / 100))  # a hundred pixels a side are enough to know the colours
    pixels = np.ascontiguousarray(lab[::step, ::step]).reshape(-1, 3)
    if len(pixels) == 1:
        return pixels  # cv2.kmeans would take one row of three numbers for three points
    colours = min(colours, len(pixels))
    order = np.argsort(pixels[:, 0], kind="stable")
    labels = np.empty((len(pixels), 1), np.int32)
    labels[order, 0] = np.arange(len(pixels)) * colours // len(pixels)
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 8, 0)
    centres = cv2.kmeans(pixels, colours, labels, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)[2]
    return centres[np.argsort(centres[:, 0], kind="stable")]


def _brightened(palette: np.ndarray) -> np.ndarray:
    """Colours as a drawing program has them: more chroma, blacks lifted, near-whites white."""
    bright = palette.copy()
    bright[:, 0] = np.clip((palette[:, 0] - 8) * 1.25 + 12, 8, 100)
    bright[:, 1:] *= np.where(bright[:, :1] >= 97, 0, 1.7)
    return bright


def _steps_bgr(image: np.ndarray, steps: int, softness: float) -> np.ndarray:
    """Posterised lightness; hue and saturation stay."""
    luma = np.maximum(image @ _LUMA_BGR, 1e-3)
    return np.clip(image * (_soft_steps(np.clip(luma, 0, 1), steps, softness) / luma)[..., None], 0, 1)


def _soft_steps(values: np.ndarray, steps: int, softness: float) -> np.ndarray:
    """Values in 0 to 1 rounded to ``steps`` levels with a short ramp between two levels, not a jagged cut."""
    scaled = values * (steps - 1)
    base = np.floor(scaled)
    ramp = np.clip((scaled - base - 0.5) / (2 * softness) + 0.5, 0, 1)
    return (base + ramp) / (steps - 1)


def _halftone(inks: np.ndarray, flat_bgr: np.ndarray, rng: np.random.Generator, period: float) -> np.ndarray:
    """Dots of a darker print on a slanted grid; they grow as the picture darkens, and spare lights and blacks."""
    height, width = inks.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = np.deg2rad(rng.uniform(30, 60))
    turn = np.float32(2 * np.pi / period)
    u, v = (x * np.cos(angle) + y * np.sin(angle)) * turn, (y * np.cos(angle) - x * np.sin(angle)) * turn
    screen = (np.cos(u) + np.cos(v)) / 4 + 0.5
    luma = cv2.cvtColor(flat_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    shadow = np.clip((0.62 - luma) / 0.35, 0, 1)
    dots = np.clip((screen - 1 + 0.55 * shadow) * 6, 0, 1) * np.clip((luma - 0.06) / 0.1, 0, 1)
    return inks * (1 - 0.38 * dots[..., None])


def _ink_lines(flat_bgr: np.ndarray, unit: float, strength: float) -> np.ndarray:
    """Where a pen would draw, 0 to 1: difference of Gaussians, thresholded softly (Winnemöller, XDoG, 2011)."""
    luma = cv2.cvtColor(flat_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    narrow = cv2.GaussianBlur(luma, (0, 0), 0.9 * unit)
    wide = cv2.GaussianBlur(luma, (0, 0), 0.9 * 1.6 * unit)
    edge = wide - narrow
    return np.clip((edge * (0.6 + 0.4 * strength) - 0.008) / 0.02, 0, 1)


def _lamp_pools(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Light of one to three lamps at random places, 0 to about 1."""
    height, width = size_hw
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    pools = np.zeros(size_hw, np.float32)
    for _ in range(rng.integers(1, 4)):
        centre_y, centre_x = rng.uniform(0, 0.8) * height, rng.uniform(0, 1) * width
        radius = np.float32(rng.uniform(0.14, 0.32) * max(size_hw))
        squared = ((y - centre_y) ** 2 + (x - centre_x) ** 2) / radius**2
        pools += rng.uniform(0.3, 0.8) * np.exp(-squared).astype(np.float32)
    return pools


def _sprinkle(rng: np.random.Generator, size_hw: tuple[int, int], count: int, radius: float) -> np.ndarray:
    """Soft dots of random brightness at random places; ``(H, W)``, a lone dot peaks below 1.

    The count is for a picture of 4:3 and follows its shape, so that the dots per area stay the same.
    """
    height, width = size_hw
    count = int(count * min(size_hw) / max(size_hw) / 0.75) + 1
    dots = np.zeros(size_hw, np.float32)
    places = rng.integers(0, (height, width), (count, 2))
    np.maximum.at(dots, (places[:, 0], places[:, 1]), rng.uniform(0.4, 1.0, count).astype(np.float32))
    radius = max(radius, 0.35)
    # A Gaussian of unit sum peaks at 1 / (2π·radius²).
    peak = np.float32(max(2 * np.pi * radius**2, 1))
    return cv2.GaussianBlur(dots, (0, 0), radius, borderType=cv2.BORDER_CONSTANT) * peak


def _line_kernel(length: float, angle: float) -> np.ndarray:
    """A straight stroke through the middle of a square kernel, summing to 1; angle in radians."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 3, 2 * half + 3), np.float32)
    along = np.linspace(-length / 2, length / 2, 8 * half + 1)
    x, y = along * np.cos(angle) + half + 1, along * np.sin(angle) + half + 1
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            np.add.at(kernel, (row, column), share_x * share_y)
    return kernel / kernel.sum()


def _faded(image: np.ndarray, share: float) -> np.ndarray:
    """Colours moved towards their own grey by a share, 0 to 1; a negative share strengthens them."""
    luma = (image @ _LUMA_BGR)[..., None]
    return image + (luma - image) * np.float32(share)


def _mixed(drawn: np.ndarray, image_bgr: np.ndarray, strength: float) -> np.ndarray:
    """The drawing over the picture: below strength 1 the picture shines through."""
    share = np.float32(min(strength, 1.0))
    return _to_uint8(drawn * share + image_bgr.astype(np.float32) / 255 * (1 - share))


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)


def _unit(image_bgr: np.ndarray) -> float:
    """One pixel of a picture whose longer side is 320, in pixels of this one."""
    return max(image_bgr.shape[:2]) / 320


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _refuse_other_arrays(image_bgr: np.ndarray, name: str) -> None:
    if not isinstance(image_bgr, np.ndarray) or image_bgr.dtype != np.uint8:
        kind = getattr(image_bgr, "dtype", type(image_bgr).__name__)
        raise TypeError(f"domain shift '{name}': expected a uint8 array, not {kind}")
    if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise ValueError(f"domain shift '{name}': expected a picture of shape (H, W, 3), not {image_bgr.shape}")


SHIFTS: dict[str, Shift] = {
    "clear": clear,
    "night": night,
    "fog": fog,
    "rain": rain,
    "snow": snow,
    "low-light": low_light,
    "motion-blur": motion_blur,
    "watercolour": watercolour,
    "comic": comic,
    "clipart": clipart,
    "sketch": sketch,
}
