"""Detections are judged as found, false or missed, and drawn where they are."""

import numpy as np
import pytest

from duet.report.drawing import (
    DrawnBox,
    ScenePanel,
    class_colours,
    draw_truth,
    draw_verdict,
    judge,
    text_colour,
)

GREY = np.full((100, 100, 3), 128, np.uint8)
TRUE_A = DrawnBox((10, 10, 30, 30), "a")
TRUE_B = DrawnBox((60, 60, 90, 90), "b")


def red_at(image, x, y):
    red, green, blue = image.getpixel((x, y))
    return red > 180 and green < 80 and blue < 100


def test_each_true_box_is_found_once_and_by_its_own_class_only():
    best, second = DrawnBox((11, 10, 30, 30), "a", 0.9), DrawnBox((10, 10, 30, 30), "a", 0.8)
    other = DrawnBox((60, 60, 90, 90), "a", 0.7)
    verdict = judge([second, other, best], [TRUE_A, TRUE_B], ["a", "b"])
    assert verdict.correct == (best,)
    assert verdict.false == (second, other)
    assert verdict.missed == (TRUE_B,)
    assert verdict.caption == "1 of 2 found, 2 false"


def test_iou_of_one_half_is_enough_and_less_is_not():
    # 20 x 20 against 20 x 10 within it: IoU 0.5; against 20 x 9: 0.45.
    assert judge([DrawnBox((10, 10, 30, 20), "a", 0.5)], [TRUE_A], ["a"]).missed == ()
    assert judge([DrawnBox((10, 10, 30, 19), "a", 0.5)], [TRUE_A], ["a"]).missed == (TRUE_A,)


def test_classes_that_were_not_taught_are_not_missed():
    assert judge([], [TRUE_A, TRUE_B], ["b"]).missed == (TRUE_B,)
    assert judge([], [TRUE_A], ["b"]).caption == "nothing it was taught"
    assert judge([], [], ["a"]).missed == ()


def test_box_without_area_is_false_and_harmless():
    point = DrawnBox((10, 10, 10, 10), "a", 0.5)
    assert judge([point], [point], ["a"]).false == (point,)


def test_colours_stay_with_the_class_and_differ():
    colours = class_colours([str(number) for number in range(40)])
    assert len(set(colours.values())) == 40
    assert class_colours(["0", "1"]) == {"0": colours["0"], "1": colours["1"]}
    assert all(len(colour) == 7 and colour.startswith("#") for colour in colours.values())


def test_text_is_dark_on_light_and_light_on_dark():
    assert (text_colour("#ffffff"), text_colour("#000000")) == ("#000000", "#ffffff")


def test_small_pictures_are_enlarged_and_large_ones_reduced():
    assert draw_truth(GREY, [], {}, 480).size == (480, 480)
    assert draw_truth(np.zeros((50, 200, 3), np.uint8), [], {}, 480).size == (480, 120)
    assert draw_truth(np.zeros((1200, 600, 3), np.uint8), [], {}, 480).size == (240, 480)


def test_true_box_is_outlined_in_its_colour_at_its_place():
    image = draw_truth(GREY, [TRUE_B], {"b": "#ff0000"}, 200)
    assert red_at(image, 120, 150)
    assert red_at(image, 150, 180)
    assert image.getpixel((150, 150)) == (128, 128, 128)
    assert image.getpixel((20, 20)) == (128, 128, 128)


def test_name_stands_above_the_box_or_inside_where_there_is_no_room():
    image = draw_truth(GREY, [TRUE_B], {"b": "#ff0000"}, 200)
    assert red_at(image, 120, 112) and not red_at(image, 130, 128)
    top = draw_truth(GREY, [DrawnBox((60, 1, 90, 60), "b")], {"b": "#ff0000"}, 200)
    assert red_at(top, 123, 8)
    right = draw_truth(GREY, [DrawnBox((95, 50, 99, 60), "zebra")], {"zebra": "#ff0000"}, 200)
    assert red_at(right, 170, 92) and red_at(right, 198, 92)


def test_false_is_red_and_missed_is_white_and_found_has_its_colour():
    false = DrawnBox((60, 10, 90, 40), "a", 0.4)
    found = DrawnBox((60, 60, 90, 90), "b", 0.9)
    colours = {"a": "#0000ff", "b": "#00ff00"}
    image = np.asarray(draw_verdict(GREY, judge([false, found], [TRUE_A, TRUE_B], ["a", "b"]), colours, 200))
    assert (image[80, 120:180, 0] > 180).any()
    assert (image[80, 120:180, 2] < 90).all()
    assert (image[20:60, 20] == 255).all(axis=1).any()
    assert (image[150, 120:122] == (0, 255, 0)).all()
    assert not (image == (0, 0, 255)).all(axis=2).any()


def test_nothing_found_and_nothing_there_leaves_the_picture():
    image = draw_verdict(GREY, judge([], [], ["a"]), {}, 200)
    assert (np.asarray(image) == 128).all()


def test_box_outside_the_picture_and_long_names_are_kept_inside():
    long = DrawnBox((-50, -50, 500, 20), "ein sehr langer Name für ein Ding 自転車" * 3)
    image = draw_truth(GREY, [long, DrawnBox((95, 95, 99, 99), "z")], {long.label: "#ff0000", "z": "#0000ff"}, 200)
    assert image.size == (200, 200)
    assert red_at(image, 2, 5)
    assert image.getpixel((198, 198)) == (0, 0, 255)


def test_original_is_not_changed():
    image = GREY.copy()
    draw_truth(image, [TRUE_A], {}, 100)
    assert (image == 128).all()


@pytest.mark.parametrize("box", [(10, 10, 5, 20), (0, 5, 4, 1), (0, 0, float("inf"), 1)])
def test_crossed_corners_are_refused(box):
    with pytest.raises(ValueError, match="box of 'a': expected left ≤ right"):
        DrawnBox(box, "a")


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r"scene of 'night': expected \(H, W, 3\) uint8"):
        ScenePanel("night", image)
