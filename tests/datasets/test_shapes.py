"""The pictures with known classes: what is drawn, where, and that it is always the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from service.datasets.shapes import CLASSES, PATTERNS, SILHOUETTES, draw, picture

SIZES = [(224, 224), (113, 251), (97, 61), (480, 360), (32, 32)]


def test_the_same_seed_and_index_draw_the_same_picture():
    first, again = picture(5, 17, objects=2), picture(5, 17, objects=2)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert first.classes == again.classes


@pytest.mark.parametrize(("seed", "index"), [(5, 18), (6, 17)])
def test_another_seed_or_index_draws_another_picture(seed, index):
    assert not np.array_equal(picture(5, 17).image, picture(seed, index).image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objects", [0, 1, 2])
def test_every_size_draws(size, objects):
    for index in range(20):
        drawn = picture(1, index, size, objects)
        assert drawn.image.shape == (*size, 3)
        assert drawn.image.dtype == np.uint8
        assert drawn.masks.shape == (objects, *size)
        assert len(drawn.classes) == objects


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objects", [1, 2])
def test_pixels_change_where_an_object_is_and_nowhere_else(size, objects):
    for index in range(20):
        bare, drawn = picture(2, index, size, 0).image, picture(2, index, size, objects)
        changed = (bare != drawn.image).any(-1)
        covered = drawn.masks.any(0)
        assert changed[covered].mean() > 0.97  # the rest has the ground's colour by chance
        near = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # an edge is antialiased
        assert not changed[~near].any()


@pytest.mark.parametrize("size", SIZES)
def test_two_objects_are_apart_and_differ(size):
    for index in range(50):
        drawn = picture(3, index, size, 2)
        first, second = drawn.masks
        assert first.any()
        assert second.any()
        assert not (first & second).any()
        assert drawn.classes[0] != drawn.classes[1]
        assert drawn.label == drawn.classes[0]


def test_every_class_occurs_about_as_often():
    counts = np.bincount([picture(4, index, (32, 32)).label for index in range(1000)], minlength=len(CLASSES))
    assert len(counts) == len(CLASSES) == 10
    assert counts.min() > 60
    assert counts.max() < 150


def test_a_single_object_is_whole_and_large_enough_to_see():
    shares = [picture(6, index).masks.mean() for index in range(200)]
    assert min(shares) > 0.03
    assert max(shares) < 0.45


def test_coloured_objects_have_their_colour():
    channels = {"scarlet": 0, "emerald": 1, "cobalt": 2}
    seen = set()
    for index in range(100):
        drawn = picture(7, index)
        name = CLASSES[drawn.label]
        red, green, blue = drawn.image[drawn.masks[0]].mean(0)
        if name in channels:
            assert np.argmax((red, green, blue)) == channels[name]
        if name == "golden":
            assert red > green > 2 * blue
        seen.add(name)
    assert seen == set(CLASSES)


def test_patterned_objects_have_more_contrast_than_any_other():
    contrasts = {True: [], False: []}
    for index in range(100):
        drawn = picture(8, index)
        luminance = drawn.image @ np.array([0.299, 0.587, 0.114])
        contrasts[CLASSES[drawn.label] in PATTERNS].append(luminance[drawn.masks[0]].std())
    assert min(contrasts[True]) > max(contrasts[False])


def test_close_ups_draw_at_half_the_side():
    drawn = picture(9, 0, (112, 112), zoom=2)
    assert drawn.image.shape == (112, 112, 3)
    assert drawn.masks.any()


def test_silhouettes_reach_exactly_1():
    for points in SILHOUETTES.values():
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)


def test_more_than_two_objects_are_refused():
    with pytest.raises(ValueError, match="0, 1 or 2 objects, not 3"):
        draw(np.random.default_rng(0), objects=3)
