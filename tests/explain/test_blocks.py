import numpy as np
import pytest
import torch

from service.errors import CannotExplain
from service.explain import catalog
from service.explain.blocks import BlockMaps
from service.explain.rollout import Rollout
from service.types import Capture, Trace


def test_each_map_is_the_cls_row_of_one_block() -> None:
    heads = torch.randn(2, 5, 3, 17, 17, generator=torch.Generator().manual_seed(0)).softmax(-1)
    cls_rows = heads[:, :, :, 0].mean(2)
    before = cls_rows.clone()
    maps = BlockMaps()(Trace(torch.zeros(2, 2), cls_rows, 2, (3, 5)))
    for image in range(2):
        for block in range(5):
            matrix = heads[image, block].double().numpy().mean(0) + np.eye(17)
            matrix /= matrix.sum(1, keepdims=True)
            np.testing.assert_allclose(maps[image, block], matrix[0, 2:].reshape(3, 5), atol=1e-6)
    assert torch.equal(cls_rows, before)


def test_a_family_is_offered_what_its_captures_allow() -> None:
    assert catalog.offered(frozenset(Capture)) == ["rollout", "blocks"]
    assert catalog.offered({Capture.CLS_ROWS}) == ["blocks"]
    with pytest.raises(CannotExplain, match=r"tiny can't give Rollout.*It can explain: blocks"):
        catalog.require(Rollout("max"), {Capture.CLS_ROWS}, "tiny")
