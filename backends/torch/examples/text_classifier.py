"""Texts in, labels out: an encoder of Hugging Face with `FusedFanIn` as its head.

`TextClassifier` is such a model. `train` trains it by a plain loop, `trainer_for` by
`transformers.Trainer`. `python -m fanin.backends.torch.examples.text_classifier` does both, on
made-up texts with a tiny encoder and no network. It needs `pip install transformers accelerate`.
Copy from here what your program needs. With a pretrained encoder:

    pretrained = AutoModel.from_pretrained("...")
    model = TextClassifier(pretrained.config.to_dict(), labels=100_000)
    model.encoder = pretrained
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from fanin.backends.torch import FusedFanIn

NO_LABEL = -100  # `Trainer`, too, fills up the labels of a batch with it


class TextClassifier(nn.Module, PyTorchModelHubMixin):
    """Encoder, mean over the tokens, intermediate layer, `FusedFanIn`.

    encoder: the configuration of a Hugging Face model, as `config.to_dict()` gives it. units: of
    the intermediate layer. learning_rate: the head's own, which no optimizer knows. best: how many
    labels a prediction has. texts_at_once: how many texts of a training batch are encoded together;
    None for all. Fewer take less memory, but a second pass through the encoder; the results are
    those of the whole batch.

    `save_pretrained(folder)` writes all of it, the state of the head's training too;
    `from_pretrained(folder, strict=True)` reads it.
    """

    # So `Trainer` divides the loss by the number of batches whose gradients it adds up. If this
    # were True, the model would have to do it.
    accepts_loss_kwargs = False

    def __init__(
        self,
        encoder: dict[str, Any],
        labels: int,
        *,
        units: int = 4096,
        fan_in: int = 32,
        learning_rate: float = 1e-3,
        best: int = 5,
        texts_at_once: int | None = None,
    ) -> None:
        super().__init__()
        config = AutoConfig.for_model(**encoder)
        self.encoder = AutoModel.from_config(config)
        self.intermediate = nn.Sequential(nn.Linear(config.hidden_size, units), nn.ReLU())
        self.head = FusedFanIn(units, labels, fan_in, learning_rate=learning_rate)
        self.best = best
        self.texts_at_once = texts_at_once

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss`, in training mode; else the `scores` and `label_ids` [batch, best] of the best
        labels, and the loss where `labels` are given.

        input_ids, attention_mask: integers [batch, tokens]. labels: the ids of each text's labels
        [batch, most], filled up with NO_LABEL. In training mode each call with labels is one step
        of the head.
        """
        if not self.training:
            features = self._features(input_ids, attention_mask)
            scores, label_ids = self.head.top_k(features, self.best)
            best = {"scores": scores, "label_ids": label_ids}
            if labels is None:
                return best
            return {"loss": self.head.evaluate_loss(features, *_positives(labels)), **best}
        if labels is None:
            raise ValueError("training needs labels; call model.eval() for a prediction")
        if self.texts_at_once is None:
            features = self._features(input_ids, attention_mask)
        else:
            # A part's activations are freed, and computed again for its gradients.
            parts = (each.split(self.texts_at_once) for each in (input_ids, attention_mask))
            encoded = [
                checkpoint(self._features, *part, use_reentrant=False)
                for part in zip(*parts, strict=True)
            ]
            features = torch.cat(encoded)
        return {"loss": self.head.training_step(features, *_positives(labels))}

    def _features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the head reads, [batch, units]."""
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        is_token = attention_mask.unsqueeze(-1)
        mean = (encoded.last_hidden_state * is_token).sum(1) / is_token.sum(1).clamp(min=1)
        features: Tensor = self.intermediate(mean)
        return features


def _positives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Instances and labels of the positives, [positives] each."""
    instances, columns = torch.nonzero(labels != NO_LABEL, as_tuple=True)
    return instances, labels[instances, columns]


class Collator:
    """Makes a batch of instances with `input_ids`, `attention_mask` and a list of `labels`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, instances: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask")
        texts = [{name: each[name] for name in names} for each in instances]
        batch = dict(self.tokenizer.pad(texts, return_tensors="pt"))
        labels = [torch.tensor(each["labels"], dtype=torch.int64) for each in instances]
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=NO_LABEL)
        return batch


def precision(prediction: EvalPrediction) -> dict[str, float]:
    """P@k for each k up to the number of predicted labels; for `Trainer`."""
    # What the model returns beside the loss.
    _, label_ids = cast("tuple[np.ndarray, np.ndarray]", prediction.predictions)
    is_hit = (label_ids[:, :, None] == np.asarray(prediction.label_ids)[:, None, :]).any(2)
    return {f"P@{k}": float(is_hit[:, :k].mean()) for k in range(1, is_hit.shape[1] + 1)}


def train(
    model: TextClassifier,
    batches: Iterable[dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    accumulated: int = 1,
    mixed_precision: bool = False,
) -> list[float]:
    """Train by a plain loop; the losses. optimizer: of `model.parameters()`, to which nothing of
    the head belongs. accumulated: how many batches give their gradients to one step of the
    optimizer; the head makes a step with each batch. mixed_precision: the encoder computes in
    bfloat16."""
    model.train()
    losses = []
    for number, batch in enumerate(batches, 1):
        device = batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=mixed_precision):
            loss = model(**batch)["loss"]
        # The mean of the batches' gradients for the encoder. The head has made its step.
        (loss / accumulated).backward()
        losses.append(loss.item())
        if number % accumulated == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return losses


class HeadFollowsSchedule(TrainerCallback):
    """The head's learning rate rises and falls with that of `Trainer`; `rate` is its maximum."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_step_begin(self, args: TrainingArguments, *_: Any, **given: Any) -> None:
        (now, *_) = given["lr_scheduler"].get_last_lr()
        given["model"].head.learning_rate = self.rate * now / args.learning_rate


def trainer_for(
    model: TextClassifier,
    arguments: TrainingArguments,
    collator: Collator,
    training_set: Any,
    test_set: Any,
) -> Trainer:
    """A `Trainer` that trains the model, head included. Its checkpoints hold the state of the head,
    so `train(resume_from_checkpoint=...)` goes on to the same numbers."""
    return Trainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=training_set,
        eval_dataset=test_set,
        compute_metrics=precision,
        callbacks=[HeadFollowsSchedule(model.head.learning_rate)],
    )


# What stands in for your texts and your encoder ---------------------------------------------------


def made_up_texts(labels: int, instances: int, seed: int = 0) -> tuple[list[str], list[list[int]]]:
    """Texts, and the labels of each. A text has one word for each of its labels, and words that
    mean nothing."""
    rng = np.random.default_rng(seed)
    texts, label_ids = [], []
    for _ in range(instances):
        own = rng.choice(labels, size=rng.integers(1, 4), replace=False)
        words = [f"label{label}{'ab'[rng.integers(2)]}" for label in own]
        words += [f"noise{number}" for number in rng.integers(0, 50, 5)]
        texts.append(" ".join(rng.permutation(words)))
        label_ids.append([int(label) for label in own])
    return texts, label_ids


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of these texts."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def tiny_encoder(tokens: int, dropout: float = 0.1) -> dict[str, Any]:
    """The configuration of a BERT with one small layer."""
    config: dict[str, Any] = AutoConfig.for_model(
        "bert",
        vocab_size=tokens,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    ).to_dict()
    return config


def instances_of(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], label_ids: list[list[int]]
) -> list[dict[str, list[int]]]:
    """What `Collator` reads."""
    tokens = tokenizer(texts, truncation=True, max_length=32)
    columns = zip(tokens["input_ids"], tokens["attention_mask"], label_ids, strict=True)
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, values, strict=True)) for values in columns]


def main() -> None:
    """Train both ways on made-up texts; print P@1 after each."""
    labels = 40
    texts, label_ids = made_up_texts(labels, 600)
    tokenizer = word_tokenizer(texts)
    instances = instances_of(tokenizer, texts, label_ids)
    training_set, test_set = instances[:480], instances[480:]
    collator = Collator(tokenizer)
    encoder = tiny_encoder(len(tokenizer))

    torch.manual_seed(0)
    model = TextClassifier(encoder, labels, units=256, learning_rate=1e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches: DataLoader[Any] = DataLoader(
        training_set,  # type: ignore[arg-type]  # a list is a data set, too
        batch_size=16,
        shuffle=True,
        collate_fn=collator,
    )
    for _ in range(10):
        train(model, batches, optimizer, accumulated=2, mixed_precision=True)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = TextClassifier.from_pretrained(folder, strict=True).eval()
    with torch.no_grad():
        best = loaded(**collator(test_set))["label_ids"][:, 0]
    hits = [int(label) in each["labels"] for label, each in zip(best, test_set, strict=True)]
    print(f"plain loop, saved and loaded: P@1 {np.mean(hits):.2f}")

    torch.manual_seed(0)
    model = TextClassifier(encoder, labels, units=256, learning_rate=1e-2, texts_at_once=16)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=10,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        )
        trainer = trainer_for(model, arguments, collator, training_set, test_set)
        trainer.train()
        print(f"Trainer: P@1 {trainer.evaluate()['eval_P@1']:.2f}")


if __name__ == "__main__":
    main()
