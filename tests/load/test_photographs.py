import io
from pathlib import Path

import numpy as np
from PIL import Image

from service.load.photographs import drawn, resized


def test_drawn_photographs_differ_and_have_a_photographs_bytes() -> None:
    files = drawn(2, 211, 163)
    assert files[0] != files[1]
    assert files == drawn(2, 211, 163)
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (211, 163))
            assert np.asarray(image).std() > 20
        assert 0.2 < len(data) / (211 * 163) < 0.7


def test_photographs_are_resized(tmp_path: Path) -> None:
    Image.new("L", (31, 17), 100).save(tmp_path / "grey.png")
    with Image.open(io.BytesIO(resized([tmp_path / "grey.png"], 41, 29)[0])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (41, 29))
