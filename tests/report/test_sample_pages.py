import cv2
import numpy as np
import pytest
from data_trees import picture
from PIL import Image

from duet.datasets.domains import SHIFTS
from duet.datasets.images import LabelledImage
from duet.datasets.shifted import Shift
from duet.report.sample_pages import contact_sheet, sample_page, shift_sheet


@pytest.fixture
def images(tmp_path):
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        picture(path, size=(320, 240), seed=number)
        labels = ("cat",) if number % 2 else ()
        boxes = np.array([[40.0, 40, 200, 160]] * len(labels)).reshape(-1, 4)
        found.append(LabelledImage(path, (240, 320), boxes, labels, ("x",) * len(labels)))
    return found


def test_a_page_shows_images_with_boxes_first_and_the_seed_chooses(images, tmp_path):
    assert sample_page(images, ("cat",), tmp_path / "page.png", count=3, columns=3) == 3
    page = cv2.imread(str(tmp_path / "page.png"))
    assert page.shape[0] < 300 and 3 * 320 < page.shape[1] < 1050
    colour = np.array([0x2E, 0x57, 0xE4])  # blue, green, red of the first class
    cells = np.array_split(page, 3, axis=1)
    assert all((np.abs(cell.astype(int) - colour).max(axis=2) == 0).sum() > 200 for cell in cells)
    first = (tmp_path / "page.png").read_bytes()
    sample_page(images, ("cat",), tmp_path / "page.png", count=3, columns=3, seed=1)
    assert (tmp_path / "page.png").read_bytes() != first
    with pytest.raises(ValueError, match="no images"):
        sample_page([], ("cat",), tmp_path / "page.png")


def test_what_was_found_is_dashed_with_its_score_below_a_note(images, tmp_path):
    def drawn(name, **options):
        sample_page(images[1:2], ("cat",), tmp_path / name, **options)
        return cv2.imread(str(tmp_path / name))

    truth, found = drawn("truth.png"), drawn("found.png", scores=lambda line: 0.87)
    assert truth.shape == found.shape and (truth != found).any()
    edge = slice(8 + 80, 8 + 150)  # of the left side of the box, below its tag
    colour = np.array([0x2E, 0x57, 0xE4])
    sides = (page[edge, 8 + 38 : 8 + 44].astype(int) for page in (truth, found))
    painted = [(np.abs(side - colour).max(axis=2) == 0).sum() for side in sides]
    assert 0 < painted[1] < 0.75 * painted[0]
    assert drawn("noted.png", note="dashed: found").shape[0] == truth.shape[0] + 24


def test_cells_are_of_equal_size_and_pictures_in_their_middle():
    wide, tall = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "blue")
    sheet = np.asarray(contact_sheet([wide, tall, wide], columns=2, gap=2))
    assert sheet.shape == (2 + 22 * 2, 2 + 22 * 2, 3)
    assert sheet[12, 12].tolist() == [255, 0, 0] and sheet[3, 12].tolist() == [255, 255, 255]
    assert sheet[3, 34].tolist() == [0, 0, 255] and sheet[12, 25].tolist() == [255, 255, 255]


def test_the_sheet_has_every_shift_and_is_small(images, tmp_path):
    shift_sheet(cv2.imread(str(images[1].path)), tmp_path / "sheet.png", 64, Shift("clear", 1, 1.0))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "P"
        rows = -(-len(SHIFTS) // 4)
        assert sheet.size == (4 * (64 + 8) + 8, rows * (48 + 20 + 8) + 8)


def test_the_sheet_of_the_readme_is_small():
    from duet.paths import project_root

    assert (project_root() / "docs" / "images" / "shifts.png").stat().st_size < 300_000
