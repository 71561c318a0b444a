"""The example of an encoder of Hugging Face with `FusedFanIn` as its head."""

from __future__ import annotations

import copy
import socket

import numpy as np
import pytest
import torch
from near import assert_near
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModel, EvalPrediction, TrainingArguments

from fanin.backends.torch.examples import text_classifier
from fanin.backends.torch.examples.text_classifier import (
    NO_LABEL,
    Collator,
    TextClassifier,
    instances_of,
    made_up_texts,
    precision,
    tiny_encoder,
    train,
    trainer_for,
    word_tokenizer,
)

pytestmark = pytest.mark.torch

LABELS, BATCH = 30, 8


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(made_up_texts(LABELS, 200)[0])


@pytest.fixture(scope="module")
def collator(tokenizer):
    return Collator(tokenizer)


@pytest.fixture(scope="module")
def instances(tokenizer):
    return instances_of(tokenizer, *made_up_texts(LABELS, 12 * BATCH, seed=1))


@pytest.fixture
def make(tokenizer):
    def made(dropout=0.0, **options):
        torch.manual_seed(3)
        encoder = tiny_encoder(len(tokenizer), dropout)
        options = {"units": 64, "fan_in": 8, "learning_rate": 1e-2} | options
        return TextClassifier(encoder, LABELS, **options)

    return made


@pytest.fixture
def batch(collator, instances):
    return collator(instances[:BATCH])


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("a connection to a network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    return TrainingArguments(**(defaults | options))


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(model, expected, tolerance):
    own = gradients(model)
    assert own.keys() == expected.keys()
    assert sum(float(each.abs().sum()) for each in own.values()) > 0
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, gradient in own.items():
        assert (gradient - expected[name]).abs().max() <= tolerance * largest, name


def assert_same_state(model, other, tolerance=0.0):
    own, expected = model.state_dict(), other.state_dict()
    assert own.keys() == expected.keys()
    for name, array in own.items():
        if tolerance:
            assert_near(array.numpy(), expected[name].numpy(), tolerance)
        else:
            assert torch.equal(array, expected[name]), name


# Gradient accumulation ----------------------------------------------------------------------------


def test_the_head_makes_a_step_with_each_batch_and_the_encoder_takes_the_mean(
    make, collator, instances
):
    model = make()
    expected = []
    by_hand = copy.deepcopy(model)
    for first in (0, BATCH):
        batch = collator(instances[first : first + BATCH])
        by_hand.zero_grad()
        features = by_hand._features(batch["input_ids"], batch["attention_mask"])
        positives = text_classifier._positives(batch["labels"])
        by_hand.head.evaluate_loss(features, *positives).backward()
        expected.append(gradients(by_hand))
        by_hand.head.training_step(features.detach(), *positives)
    mean = {name: (expected[0][name] + expected[1][name]) / 2 for name in expected[0]}

    class Looking(torch.optim.SGD):
        def step(self):
            assert_same_gradients(model, mean, 1e-4)
            Looking.steps = getattr(Looking, "steps", 0) + 1

    batches = [collator(instances[first : first + BATCH]) for first in (0, BATCH)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
        train(model, batches, Looking(model.parameters(), 0.1), accumulated=2)
    assert Looking.steps == 1
    assert_same_state(model.head, by_hand.head)
    assert int(model.head.steps) == 2


def test_parts_of_a_batch_give_the_numbers_of_the_whole(make, batch):
    whole, parts = make(), make(texts_at_once=3)
    losses = [model(**batch)["loss"] for model in (whole, parts)]
    for loss in losses:
        loss.backward()
    assert_near(losses[1].item(), losses[0].item(), 1e-6)
    assert_same_gradients(parts, gradients(whole), 1e-4)
    assert int(parts.head.steps) == 1
    assert_near(parts.head.weights, whole.head.weights.numpy(), 1e-4)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_parts_are_encoded_twice_with_the_same_dropout(make, batch, monkeypatch, mixed_precision):
    taken = []
    for is_kept in (False, True):
        if is_kept:
            monkeypatch.setattr(text_classifier, "checkpoint", lambda f, *a, **_: f(*a))
        model = make(dropout=0.3, texts_at_once=3)
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            loss = model(**batch)["loss"]
        loss.backward()
        taken.append(gradients(model))
    assert_same_gradients(model, taken[0], 1e-6)


# Mixed precision ----------------------------------------------------------------------------------


def test_a_head_in_float32_above_an_encoder_in_bfloat16(make, batch, monkeypatch):
    model = make()
    step, seen = model.head.training_step, []

    def looked_at(features, *positives):
        seen.append(features.dtype)
        return step(features, *positives)

    monkeypatch.setattr(model.head, "training_step", looked_at)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = train(model, [batch] * 30, optimizer, mixed_precision=True)
    assert set(seen) == {torch.bfloat16}
    assert model.head.weights.dtype == torch.float32
    assert losses[-1] < 0.5 * losses[0]


# transformers.Trainer -----------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_does_what_the_plain_loop_does(tmp_path, make, collator, instances, bf16):
    """Gradients of two batches are added up: only the encoder's loss is halved. The optimizer is
    one that the size of gradients matters to."""
    by_trainer, by_loop = make(), make()
    options = {"bf16": bf16, "optim": "sgd", "learning_rate": 0.1}
    trainer = trainer_for(
        by_trainer, arguments(tmp_path, **options), collator, instances, instances
    )
    trainer.train()
    optimizer = torch.optim.SGD(by_loop.parameters(), lr=0.1)
    batches = DataLoader(instances, BATCH, collate_fn=collator)
    train(by_loop, batches, optimizer, accumulated=2, mixed_precision=bf16)
    assert int(by_trainer.head.steps) == 12
    assert_same_state(by_trainer, by_loop)


def test_the_optimizer_has_nothing_of_the_head(tmp_path, make, collator, instances):
    model = make()
    trainer = trainer_for(model, arguments(tmp_path), collator, instances, instances)
    trainer.create_optimizer()
    taken = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    others = [*model.encoder.parameters(), *model.intermediate.parameters()]
    assert taken == {id(each) for each in others}


def test_resumed_training_ends_with_the_same_numbers(tmp_path, make, collator, instances):
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "linear",
        "bf16": True,
        "train_sampling_strategy": "random",
    }

    def trainer(folder):
        model = make(dropout=0.2, texts_at_once=3)
        return trainer_for(model, arguments(folder, **options), collator, instances, instances)

    whole = trainer(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 6
    kept = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert kept["head.indices"].dtype == torch.uint8
    assert int(kept["head.steps"]) == 8
    # The callback has the head's rate fall with the schedule.
    assert float(kept["head.rate"]) == pytest.approx(1e-2 * (1 - 3 / 6))

    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same_state(resumed.model, whole.model)


def test_evaluation_measures_and_changes_nothing(tmp_path, make, collator, instances):
    model = make()
    trainer = trainer_for(model, arguments(tmp_path), collator, instances, instances)
    trainer.train()
    before = copy.deepcopy(model.state_dict())
    measured = trainer.evaluate()
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
    with torch.no_grad():
        predicted = model.eval()(**{**collator(instances), "labels": None})
    hits = [
        len(set(map(int, best[:3])) & set(each["labels"]))
        for best, each in zip(predicted["label_ids"], instances, strict=True)
    ]
    assert measured["eval_P@3"] == pytest.approx(np.mean(hits) / 3)
    assert measured["eval_P@1"] >= measured["eval_P@5"] > 0


def test_precision():
    labels = np.array([[4, 7, NO_LABEL], [2, NO_LABEL, NO_LABEL]])
    predicted = EvalPrediction((None, np.array([[7, 1], [3, 2]])), labels)
    assert precision(predicted) == {"P@1": 0.5, "P@2": 0.5}


# Files --------------------------------------------------------------------------------------------


def test_saved_and_loaded_without_a_network(tmp_path, make, batch, no_network):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, [batch] * 3, optimizer)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = TextClassifier.from_pretrained(tmp_path, strict=True)
    assert_same_state(loaded, model)
    # Its training goes on, Adam's moments and step included.
    losses = [each.train()(**batch)["loss"].item() for each in (model, loaded) for _ in range(2)]
    assert losses[:2] == losses[2:]
    assert_same_state(loaded.head, model.head)


def test_a_pretrained_encoder(tmp_path, make, batch, no_network):
    """As the module's docstring has it."""
    make().encoder.save_pretrained(tmp_path / "encoder")
    pretrained = AutoModel.from_pretrained(tmp_path / "encoder")
    model = TextClassifier(pretrained.config.to_dict(), LABELS, units=64)
    model.encoder = pretrained
    train(model, [batch] * 2, torch.optim.AdamW(model.parameters(), lr=1e-3))
    model.save_pretrained(tmp_path / "model")
    assert_same_state(TextClassifier.from_pretrained(tmp_path / "model", strict=True), model)


def test_a_file_without_an_array_is_refused(tmp_path, make, no_network):
    make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    arrays = load_file(file)
    del arrays["head.weights"]
    save_file(arrays, file)
    with pytest.raises(RuntimeError, match=r"head\.weights"):
        TextClassifier.from_pretrained(tmp_path, strict=True)


# Input --------------------------------------------------------------------------------------------


def test_wrong_labels_are_refused(make, batch):
    model = make()
    for wrong in (LABELS, -1):
        labels = batch["labels"].clone()
        labels[2, 0] = wrong
        with pytest.raises(ValueError, match=f"is {wrong}, out of range for {LABELS} labels"):
            model(**{**batch, "labels": labels})
    with pytest.raises(ValueError, match="training needs labels"):
        model(batch["input_ids"], batch["attention_mask"])


def test_texts_without_labels(make, collator, instances):
    some = [{**each, "labels": []} for each in instances[:4]]
    assert torch.isfinite(make()(**collator(some))["loss"])


@pytest.mark.slow
def test_the_program(capsys, no_network):
    text_classifier.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "P@1 " in line]
    precisions = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(precisions) == 2
    assert min(precisions) > 0.5
