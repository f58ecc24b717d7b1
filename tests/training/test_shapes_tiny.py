"""Training shapes-tiny, at a tiny size, and what the bundled model is worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from service.datasets import shapes
from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.training import measure, patches, shapes_tiny
from service.training.shapes_tiny import Batches, Recipe, Trainer
from service.types import Capture, Trace

SMALL = Architecture((64, 96), 16, 16, 2, 2, 32, len(shapes.CLASSES))
BUNDLED = Path(__file__).parents[2] / "model_store" / "shapes-tiny"


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(steps=4, batch=3, seed=11, warmup=2)


def test_a_run_that_is_resumed_ends_in_the_same_weights(recipe, tmp_path):
    straight = Trainer(recipe, SMALL)
    shapes_tiny.run(straight, tmp_path / "straight")
    shapes_tiny.run(Trainer(recipe, SMALL), tmp_path / "halves", until=2)
    resumed = Trainer(recipe, SMALL)
    resumed.load(tmp_path / "halves" / "checkpoint.pt")
    assert resumed.step == 2
    shapes_tiny.run(resumed, tmp_path / "halves")
    for part in ("learner", "averaged"):
        expected, got = getattr(straight, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_a_step_changes_every_parameter(recipe, tmp_path):
    before, after = Trainer(recipe, SMALL), Trainer(recipe, SMALL)
    shapes_tiny.run(after, tmp_path)
    fresh = dict(before.learner.named_parameters())
    same = [name for name, value in after.learner.named_parameters() if torch.equal(value, fresh[name])]
    assert same == []


def test_training_learns_its_first_batch(recipe):
    trainer = Trainer(Recipe(steps=200, batch=4, seed=1, rate=3e-3, warmup=5), SMALL)
    batch = Batches(trainer.recipe, SMALL)[0]
    first = trainer.learn(batch)
    for _ in range(60):
        last = trainer.learn(batch)
    assert last.picture < first.picture / 2
    assert last.patch < first.patch / 2


def test_a_checkpoint_of_another_recipe_is_refused(recipe, tmp_path):
    Trainer(recipe, SMALL).save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="of another run"):
        Trainer(Recipe(steps=5), SMALL).load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("step", [0, 70, 99])
def test_batches_follow_from_the_recipe_and_the_step(step):
    recipe = Recipe(steps=100, batch=5)
    batch, again = Batches(recipe, SMALL)[step], Batches(recipe, SMALL)[step]
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
    stage = shapes_tiny.stage_at(step, recipe)
    assert batch.images.shape == (5, 64 // stage.zoom, 96 // stage.zoom, 3)
    assert len(batch.keep) == round(stage.keep * 24 / stage.zoom**2)
    assert torch.allclose(batch.shares.sum(-1), torch.ones(()))
    assert torch.allclose(batch.labels.sum(-1), torch.ones(()))


@pytest.mark.parametrize("size", [(64, 96), (97, 61)])
def test_training_pictures_are_squashed_with_their_masks(size):
    pairs = 0
    for index in range(24):
        seen = shapes_tiny.training_picture(4, index, size, 1)
        again = shapes_tiny.training_picture(4, index, size, 1)
        assert seen.image.shape == (*size, 3)
        assert seen.masks.shape == (len(seen.classes), *size)
        assert seen.masks.any((1, 2)).all()
        assert seen.masks.sum(0).max() == 1
        assert np.array_equal(seen.image, again.image)
        pairs += len(seen.classes) == 2
    assert pairs == 6


def test_the_held_out_pictures_can_not_be_trained_on():
    with pytest.raises(ValueError, match="held-out"):
        Batches(Recipe(steps=1, seed=measure.HELD_OUT_SEED), SMALL)


def test_patch_shares_are_the_masks_areas():
    picture = shapes.picture(1, 2, (64, 96), objects=2)
    shares = patches.patch_shares(picture, 16, len(shapes.CLASSES)).reshape(4, 6, -1)
    for mask, kind in zip(picture.masks, picture.classes, strict=True):
        assert shares[..., kind].sum() * 16 * 16 == pytest.approx(mask.sum())
        assert shares[1, 2, kind] == pytest.approx(mask[16:32, 32:48].mean())
    assert shares.sum(-1) == pytest.approx(1)


def test_the_rate_rises_then_falls_to_nothing():
    recipe = Recipe(steps=100, warmup=10, rate=1.0)
    rates = [shapes_tiny.rate_at(step, recipe) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.001


def test_measuring_counts_what_is_right(monkeypatch):
    def answer(self, pixels, capture):
        logits = torch.zeros(len(pixels), 10)
        logits[:, 3] = 1
        attention = torch.zeros(len(pixels), 1, 25, 25)
        attention[:, :, 0, 1] = 1  # the top left patch
        return Trace(logits, attention, 1, (4, 6))

    monkeypatch.setattr(VisionTransformer, "forward", answer)
    figures = measure.measure(VisionTransformer(SMALL), 60, objects=2, seed=5, batch=16)
    pictures = [shapes.picture(5, index, (64, 96), 2) for index in range(60)]
    assert figures["accuracy"] == pytest.approx(np.mean([p.label == 3 for p in pictures]), abs=1e-4)
    present = np.mean([3 in p.classes for p in pictures])
    assert figures["predicted_class_present"] == pytest.approx(present, abs=1e-4)
    corners = np.stack([p.masks.any(0)[:16, :16] for p in pictures])
    assert figures["peak_touches_object"] == pytest.approx(corners.any((1, 2)).mean(), abs=1e-4)
    assert figures["peak_half_inside_object"] == pytest.approx((corners.mean((1, 2)) >= 0.5).mean(), abs=1e-4)
    assert sum(by["pictures"] for by in figures["by_class"].values()) == figures["pictures"] == 60


def test_the_commands_train_resume_and_evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_tiny, "ARCHITECTURE", SMALL)
    runner, threads = CliRunner(), str(torch.get_num_threads())
    options = ["--steps", "2", "--batch", "2", "--out", str(tmp_path), "--workers", "0", "--threads", threads]
    for extra in ([], ["--resume"]):
        assert runner.invoke(shapes_tiny.app, ["train", *options, *extra]).exit_code == 0
    model = str(tmp_path / "shapes-tiny")
    result = runner.invoke(shapes_tiny.app, ["evaluate", model, "--pictures", "3", "--threads", threads])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pictures"] == 3


def test_the_bundled_model_knows_fresh_pictures():
    assert (BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    figures = measure.measure(shapes_tiny.load(BUNDLED), 64, seed=77)
    assert figures["accuracy"] >= 0.95
    assert figures["peak_touches_object"] >= 0.85


def test_the_bundled_model_has_nothing_but_numbers():
    model = shapes_tiny.load(BUNDLED)
    trace = model(torch.zeros(1, 3, 224, 224), Capture.NONE)
    assert trace.logits.shape == (1, 10)
    assert all(value.isfinite().all() for value in model.state_dict().values())
