"""Generated scenes of letters: what a small detector is pretrained on.

The letters are those of the fonts that matplotlib carries, in both cases, with strokes of varied weight, bent and
turned. There is no digit among them, and I and O, which are drawn like 1 and 0, are left out. Every scene depends on
(seed, split, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from duet.datasets.domains import SHIFTS, apply_shift, smooth_field
from duet.datasets.pasting import EDGE, Scene, draw_ink, paste, seeded
from duet.datasets.scene_folder import Render, Split, hashed_name
from duet.errors import nearest

CLASS_NAMES = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ")
DOMAIN = "glyphs"
# Part of the folder's name: raise it whenever a change here or in `pasting` changes a pixel or a label.
GENERATOR_VERSION = 1

_FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Oblique.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf", "STIXGeneralBolIta.ttf", "STIXGeneralItalic.ttf", "cmss10.ttf", "cmtt10.ttf", "cmti10.ttf",
)  # fmt: skip
_COUNTS = (2, 7)  # fewest and most letters of a scene
_SIZE_RANGE = (0.13, 0.38)  # height of a letter / side of the picture
_MAX_TURN = 20.0  # degrees
_STRETCH_RANGE = (0.75, 1.3)
_MASTER = 112  # side of the square that a letter is drawn in before it is bent, pixels
_FONT_SIZE = 72  # leaves room for strokes that are bent outwards
_BEND = 0.11  # largest shift of a stroke / side of that square


@dataclass(frozen=True)
class GlyphSettings:
    """What is written.

    Args:
        seed: not negative; another seed gives other scenes throughout.
        image_size: side of the square pictures in pixels, at least 64.
        train_scenes: training scenes.
        test_scenes: test scenes.
        shifts: names of `duet.datasets.domains.SHIFTS`; each scene is drawn in one of them, chosen at random.

    Raises:
        ValueError: when a value is out of range or a shift is unknown or named twice.
    """

    seed: int = 0
    image_size: int = 160
    train_scenes: int = 300
    test_scenes: int = 150
    shifts: tuple[str, ...] = ("clear",)

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("image_size", 64), ("train_scenes", 1), ("test_scenes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"glyphs: expected {name} of at least {least}, not {getattr(self, name)}")
        if not self.shifts or len(set(self.shifts)) != len(self.shifts):
            raise ValueError(f"glyphs: expected distinct shifts, at least one, not {list(self.shifts)}")
        for shift in self.shifts:
            if shift not in SHIFTS:
                raise ValueError(f"glyphs: shift '{shift}' is unknown{nearest(shift, SHIFTS)}")

    @property
    def domains(self) -> tuple[str, ...]:
        """All scenes are of one domain."""
        return (DOMAIN,)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The letters, by their capital."""
        return CLASS_NAMES

    @property
    def generator_version(self) -> int:
        """Rises with every change of a pixel or a label."""
        return GENERATOR_VERSION

    @property
    def folder_name(self) -> str:
        """``glyphs-`` and twelve hexadecimal digits of the settings and the generator's version."""
        return hashed_name("glyphs", self)

    def renderer(self, split: Split) -> Render:
        """How the scenes of a split are drawn."""
        return lambda domain, index: render_glyphs(self, split, index)


def render_glyphs(settings: GlyphSettings, split: Split, index: int) -> Scene:
    """One scene, the same whenever it is drawn.

    Args:
        settings: seed, size and shifts.
        split: ``train`` or ``test``; another split has other scenes.
        index: number of the scene in its split, from 0.
    """
    rng = seeded("glyphs", str(GENERATOR_VERSION), str(settings.seed), split, str(index))
    count = rng.integers(_COUNTS[0], _COUNTS[1] + 1)
    classes = rng.choice(len(CLASS_NAMES), count, replace=False)
    draws = [partial(_drawn, CLASS_NAMES[letter]) for letter in classes]
    scene = paste(rng, classes, draws, settings.image_size, _SIZE_RANGE)
    shift = settings.shifts[rng.integers(len(settings.shifts))]
    return replace(scene, image_bgr=apply_shift(scene.image_bgr, shift, seed=settings.seed))


def _drawn(letter: str, rng: np.random.Generator, height: float) -> np.ndarray:
    """The ink of one letter in a random case and font, with strokes of random weight, bent and turned."""
    font = _FONTS[rng.integers(len(_FONTS))]
    # Small i, l and o are as left out as the capitals I and O; small L is a stroke like 1.
    upright = _upright(letter if letter == "L" or rng.random() < 0.5 else letter.lower(), font)
    blurred = cv2.GaussianBlur(upright, (0, 0), rng.uniform(1.0, 4.0))
    weight = rng.uniform(0.2, 0.5)  # the lower, the thicker the strokes
    master = EDGE + 2 * (blurred / blurred.max() - weight)
    return draw_ink(rng, _bent(rng, master), height, _MAX_TURN, _STRETCH_RANGE)


@cache
def _upright(character: str, font: str) -> np.ndarray:
    """A character in the middle of a square; float32, 0 to 1."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    picture = Image.new("L", (_MASTER, _MASTER))
    middle = (_MASTER / 2, _MASTER / 2)
    ImageDraw.Draw(picture).text(
        middle, character, fill=255, font=ImageFont.truetype(str(path), _FONT_SIZE), anchor="mm"
    )
    return np.asarray(picture, np.float32) / 255


def _bent(rng: np.random.Generator, master: np.ndarray) -> np.ndarray:
    shift = (smooth_field(rng, master.shape, 4, channels=2) - 0.5) * (2 * _BEND * _MASTER * rng.random())
    columns, rows = np.meshgrid(np.arange(_MASTER, dtype=np.float32), np.arange(_MASTER, dtype=np.float32))
    return cv2.remap(
        master, columns + shift[..., 0].astype(np.float32), rows + shift[..., 1].astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
