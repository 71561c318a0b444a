"""`FanInClassifier`: training and prediction with scikit-learn's conventions."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from fanin.backends.estimate import TooLargeError
from fanin.backends.estimator import saved
from fanin.backends.estimator.fitting import (
    Epoch,
    Instances,
    TrainedModel,
    add_words,
    first_arrays,
    fit,
    make_batches,
    split,
    trainer_of,
)
from fanin.backends.estimator.inputs import copied_bytes, known_x
from fanin.backends.estimator.onnx import export_predictor
from fanin.backends.estimator.planning import Plan, make_plan
from fanin.backends.estimator.predictor import AnySetup, BlockPredictor, TopK
from fanin.backends.estimator.settings import Settings
from fanin.backends.estimator.targets import Targets, known_classes, known_targets
from fanin.backends.grouping import Grouping
from fanin.backends.interface import Execution, StoredType, WeightsType
from fanin.backends.metrics import precision_at
from fanin.backends.optimizer import OptimizerKind
from fanin.backends.recipes import Recipe, RecipeName, Schedule
from fanin.backends.setup import Loss
from fanin.backends.words.model import OneVersusRest
from fanin.datasets.memory import available_bytes, size_text

# ruff: noqa: N803 (scikit-learn's names: X, y)


class FanInClassifier(ClassifierMixin, BaseEstimator):
    """A classifier for very many labels, of which an instance has any number.

    Parameters
    ----------
    fan_in : connections of each label (of all inputs where there are fewer); None for all: a dense
        output layer. Where labels read words, how many each has on average. "auto": 32, or 128
        where labels read words.
    group_size : so many labels, 8 to 64, share their sources; None where each has its own.
        grouping : which labels they are, "sources", "meaning", "frequency" or "random", see
        `fanin.backends.grouping`; None as the recipe has it.
    head_fraction : share of the labels, the most frequent ones, whose output layer has head_fan_in
        connections each, or is dense for None; 0 where all labels have the same layer.
    intermediate : units of a layer between features and labels; None or "auto" for none. With
        sparse X and none, labels read words directly: `fanin.backends.words` trains them on one
        instance after the other, each scaled to length 1. That needs no backend, and batch_size
        and dropout do not matter; TF-IDF is what it is made for.
    recipe : "best", "paper", or a `fanin.backends.recipes.Recipe`: how the model is wired, started
        and trained.
    loss, learning_rate, schedule, warm_up, epochs : in place of what the recipe says, where given.
        warm_up: share of the steps in which the rate rises, before it falls as the schedule says.
        The recipe "best" gives small data more epochs (`Recipe.least_steps`); see `plan`.
        Labels that read words have one epoch before these, after which they get more words.
    optimizer : "adam", "sgd", which keeps nothing beside the weights, or "momentum" (of 0.9), which
        keeps one number for each. Losses are means over the labels, so the last two need a
        learning_rate of the order of their number. weight_decay : share of the weights, times the
        learning rate, that each step takes away besides (AdamW); of biases none.
    batch_size : instances of a step. dropout : share of the features that a step leaves out.
    weights_dtype, moments_dtype : "float32", or "bfloat16" (execution "fused" only); weights also
        "float8", of labels that read `fan_in` features. moments : with sparse X, "row" keeps one
        moment for all weights of an input instead of two for each.
    execution : "fused", in one pass over the labels by fanin's kernels, or "autograd".
    backend : "torch", "tensorflow", or "auto" for the one that is installed, torch first.
    device : "cpu", "cuda", or "auto" for a GPU where there is one. Predictions use the CPU.
    threads : CPU threads, 0 for OMP_NUM_THREADS, or all that this process, and its container, may
        use.
    early_stopping : whether to hold out `validation_fraction` of the instances, stop when P@3 on
        them has not risen for four epochs, and keep the best epoch.
    random_state : seed of weights, order, dropout and rewiring.
    verbose : whether to show a progress bar (on a terminal) or a line for each epoch.

    Attributes
    ----------
    classes_ : what each label is called, [labels]; ids where y is sparse.
    setup_, recipe_ : the model, a `LayerSetup` or, where labels read words, an
        `OneVersusRestSetup`, and how it was trained.
    history_ : loss, and P@3 where there was validation, of each epoch. best_epoch_ : the one whose
        arrays were kept, from 1.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    X is [instances, inputs]: a dense array of numbers of any type, a float32 memory map (read in
    passes), a pandas frame of numbers, or SciPy sparse. y is SciPy sparse [instances, labels], a
    list with a list, tuple or set of label names or ids for each instance, an indicator of 0 and 1
    as NumPy has it or pandas, or one label for each instance, [instances]. For the last form
    `predict` gives names, [instances]; for all others CSR, since a dense array of all labels is
    never made.
    """

    def __init__(
        self,
        *,
        fan_in: int | Literal["auto"] | None = "auto",
        group_size: int | None = None,
        grouping: Grouping | None = None,
        head_fraction: float = 0.0,
        head_fan_in: int | None = None,
        intermediate: int | Literal["auto"] | None = "auto",
        recipe: RecipeName | Recipe = "best",
        loss: Loss | None = None,
        learning_rate: float | None = None,
        optimizer: OptimizerKind = "adam",
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
        warm_up: float | None = None,
        epochs: int | None = None,
        batch_size: int = 32,
        dropout: float = 0.1,
        weights_dtype: WeightsType = "float32",
        moments_dtype: StoredType = "float32",
        moments: Literal["full", "row"] = "full",
        execution: Execution = "fused",
        backend: str = "auto",
        device: str = "auto",
        threads: int = 0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
    ) -> None:
        self.fan_in = fan_in
        self.group_size = group_size
        self.grouping = grouping
        self.head_fraction = head_fraction
        self.head_fan_in = head_fan_in
        self.intermediate = intermediate
        self.recipe = recipe
        self.loss = loss
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warm_up = warm_up
        self.epochs = epochs
        self.batch_size = batch_size
        self.dropout = dropout
        self.weights_dtype = weights_dtype
        self.moments_dtype = moments_dtype
        self.moments = moments
        self.execution = execution
        self.backend = backend
        self.device = device
        self.threads = threads
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    # Training -----------------------------------------------------------------------------------

    def plan(self, X: Any, y: Any, classes: Any = None) -> Plan:
        """What `fit` with these arguments would need, in bytes and arithmetic; nothing is
        trained."""
        return self._planned(X, y, classes)[0]

    def fit(self, X: Any, y: Any, classes: Any = None) -> FanInClassifier:
        """Train a new model; self. classes: for sparse y and an indicator, the names of the labels
        in the order of their ids; for other forms of y, all labels. ValueError for data or
        parameters that cannot be used, `TooLargeError` (a MemoryError) where `plan` says that the
        model does not fit, ImportError where a framework is needed and none is installed."""
        plan, data, targets, names = self._planned(X, y, classes)
        settings, seed = Settings.of(self), self._seed()
        plan.check()
        training, validation = data, None
        if settings.early_stopping:
            training, validation = split(data, settings.validation_fraction, seed)
        fitted = fit(
            settings, plan.setup, plan.recipe, training, validation, seed, bool(self.verbose)
        )
        self.recipe_, self.history_ = plan.recipe, fitted.history
        self.best_epoch_ = fitted.best_epoch
        self._take_over(plan.setup, targets, names)
        self._model.take(saved.make_predictor(plan.setup, fitted.arrays, settings.threads))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> FanInClassifier:
        """Go on training: one pass over these instances, at a constant learning rate and without
        rewiring. Without a model from `fit` or a file, the first call starts one as the recipe
        says, from its instances alone. classes: as in `fit`; the labels of all later calls are
        among them. Adam's moments begin at 0 after `fit` and after loading. They stay in memory
        between calls. Labels that read words keep AdaGrad's sums in files, too, and get new words
        until they have as many as `fan_in` allows. ValueError as in `fit`."""
        settings, is_first = Settings.of(self), not hasattr(self, "_model")
        if is_first:
            plan, data, targets, names = self._planned(X, y, classes)
            plan.check()
            seed = self._seed()
            arrays = first_arrays(plan.setup, plan.recipe, data, seed, settings.threads)
            self.recipe_, self.history_, self.best_epoch_ = plan.recipe, [], 0
            self._take_over(plan.setup, targets, names)
            self._passes_seed = seed
            self._model.train(trainer_of(settings, plan.setup, arrays))
        else:
            data = self._more(X, y, classes)
            if self._model.trainer is None:
                trained = self._model.predictor.arrays()
                self._model.train(trainer_of(settings, self.setup_, trained))
                self._passes_seed = self._seed()
        trainer = self._model.trainer
        assert trainer is not None
        if isinstance(trainer, OneVersusRest) and not is_first:
            add_words(trainer, self.setup_, data)
        batches = make_batches(settings, self.setup_, data, self._passes_seed)
        losses = trainer.train(batches.epoch(len(self.history_)), self._rate(settings))
        self._model.train(trainer)
        self.history_ = [*self.history_, Epoch(float(losses.mean()), None)]
        self.best_epoch_ = len(self.history_)
        return self

    def _planned(
        self, X: Any, y: Any, classes: Any
    ) -> tuple[Plan, Instances, Targets, np.ndarray | None]:
        """What a training will need, the data as it reads them, and the names of the inputs, if
        they have any. Nothing is changed: a fit that fails leaves the model before it as it was.
        """
        settings, copy = Settings.of(self), clone(self)
        features = known_x(copy, X, reset=True)
        targets = known_targets(y, features.shape[0], classes)
        positives = targets.positives
        if not positives.nnz:
            raise ValueError("y: no instance has a label: there is nothing to learn")
        data = Instances(features, positives)
        data_bytes = copied_bytes(X, features) + copied_bytes(y, positives)
        names = getattr(copy, "feature_names_in_", None)
        return make_plan(settings, data, data_bytes), data, targets, names

    def _more(self, X: Any, y: Any, classes: Any) -> Instances:
        """More data for the present model."""
        if classes is not None and not np.array_equal(known_classes(classes), self.classes_):
            raise ValueError(
                "classes are not those that the model was begun with: leave them out, or begin "
                "a new model for others"
            )
        features = known_x(self, X, reset=False)
        targets = known_targets(y, features.shape[0], self.classes_)
        if isinstance(features, sp.csr_array) != self.setup_.sparse_features:
            form = "sparse" if self.setup_.sparse_features else "dense"
            raise ValueError(f"X must be {form}, as when the model was begun")
        return Instances(features, targets.positives)

    def _take_over(self, setup: AnySetup, targets: Targets, names: np.ndarray | None) -> None:
        """Begin a model. names: of the inputs, if they have any."""
        self.setup_, self.classes_, self.n_features_in_ = setup, targets.classes, setup.inputs
        self.__dict__.pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names
        self._is_single = targets.is_single
        self._model = TrainedModel(setup, self.threads)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            check_random_state(self.random_state)  # refuses a negative one
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _rate(self, settings: Settings) -> float:
        rate = settings.learning_rate
        return self.recipe_.learning_rate if rate is None else rate

    # Prediction ---------------------------------------------------------------------------------

    def predict_top_k(self, X: Any, k: int = 5) -> TopK:
        """Ids int64 and scores float32, [instances, k] each, of the k best labels, best first.
        `classes_[ids]` are their names. ValueError where k is not in 1..labels."""
        predictor = self._fitted()
        return predictor.top_k(known_x(self, X, reset=False), k)

    def predict(self, X: Any) -> Any:
        """The labels whose scores are above 0, CSR bool [instances, labels]; or, where y gave one
        label for each instance, the best one by its name, [instances]."""
        predictor = self._fitted()
        if self._is_single:
            return self.classes_[self.predict_top_k(X, 1).ids[:, 0]]
        x = known_x(self, X, reset=False)
        columns, starts = [], [np.zeros(1, np.int64)]
        for _, scores in predictor.scores(x):
            instances, labels = np.nonzero(scores > 0)
            columns.append(labels.astype(np.int32))
            counts = np.bincount(instances, minlength=len(scores))
            starts.append(starts[-1][-1] + np.cumsum(counts))
        ids = np.concatenate([np.zeros(0, np.int32), *columns])
        shape = (x.shape[0], len(self.classes_))
        return sp.csr_array((np.ones(len(ids), bool), ids, np.concatenate(starts)), shape=shape)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of all labels, float32 [instances, labels], worked out in blocks; of two classes,
        with one label for each instance, the difference [instances], as everywhere in scikit-learn.
        TooLargeError where so many scores do not fit; `predict_top_k` holds none of them."""
        predictor, x = self._fitted(), known_x(self, X, reset=False)
        shape = (x.shape[0], len(self.classes_))
        size, available = 4 * shape[0] * shape[1], available_bytes()
        if size > available:
            raise TooLargeError(
                f"scores {list(shape)} are {size_text(size)}, and {size_text(available)} are "
                "available here: use predict_top_k, or ask for fewer instances at once"
            )
        scores = np.empty(shape, np.float32)
        for block, values in predictor.scores(x):
            scores[block] = values
        if self._is_single and shape[1] == 2:
            difference: np.ndarray = scores[:, 1] - scores[:, 0]
            return difference
        return scores

    def score(self, X: Any, y: Any, k: int = 1) -> float:
        """Precision at k: the share of the k best labels that are true, mean over instances. A
        label of y that the model does not know gives no hit. ValueError as in `predict_top_k`."""
        top = self.predict_top_k(X, k).ids
        truth = known_targets(y, len(top), self.classes_, ignore_unknown=True)
        return precision_at(truth.positives, top, k)

    def _fitted(self) -> BlockPredictor:
        check_is_fitted(self, "classes_")
        return self._model.predictor

    # Files --------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a folder (`saved` says which files) that `fanin.load` reads. It
        replaces an older model. Adam's moments are not kept. OSError where it cannot be written;
        FileExistsError where something else has that path."""
        predictor = self._fitted()
        names = getattr(self, "feature_names_in_", None)
        model = saved.SavedModel(
            predictor,
            self.classes_,
            self._is_single,
            Settings.of(self).as_json(),
            None if names is None else tuple(names),
        )
        saved.save(model, path)

    def export_onnx(self, path: str | os.PathLike[str], top_k: int | None = None) -> None:
        """Write the model as an ONNX file: see `export_predictor`."""
        export_predictor(self._fitted(), path, top_k)

    @classmethod
    def from_saved(
        cls, model: saved.SavedModel, backend: str = "auto", threads: int = 0
    ) -> FanInClassifier:
        """The estimator of a saved model, fitted: it predicts, and `partial_fit` goes on in any
        backend. ModelError where this fanin does not know its settings."""
        try:
            settings = Settings.from_json(model.settings | {"backend": backend, "threads": threads})
            _, recipe = settings.model(
                model.setup.inputs, model.setup.labels, model.setup.sparse_features
            )
        except (TypeError, ValueError) as error:
            raise saved.ModelError(f"settings of the model: {error}") from error
        estimator = cls(**{name: getattr(settings, name) for name in model.settings})
        estimator.recipe_, estimator.history_, estimator.best_epoch_ = recipe, [], 0
        targets = Targets(sp.csr_array((0, model.setup.labels)), model.classes, model.is_single)
        known = model.feature_names
        names = None if known is None else np.array(known, object)
        estimator._take_over(model.setup, targets, names)
        estimator._model.take(model.predictor)
        return estimator
