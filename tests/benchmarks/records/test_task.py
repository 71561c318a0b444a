"""Task files: what they mean, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import re

import pytest
from fakes import make_task
from pydantic import ValidationError

from fanin.backends.optimizer import Optimizer
from fanin.benchmarks.records.task import TaskError
from fanin.benchmarks.records.task_files import files_of, read_tasks, task_files


class TestTasks:
    @pytest.mark.parametrize("name", task_files())
    def test_every_task_file_is_valid(self, name):
        path = task_files()[name]
        tasks = read_tasks(path)
        entries = json.loads(path.read_text())["tasks"]
        assert len({t.slug for t in tasks}) == len(tasks) == len(entries)
        if name != "recipes/ablations":  # which is for any data set
            table = re.sub("-(ablations|grouped|heads)$", "", name)
            assert {f"{t.dataset}/{t.features}" for t in tasks} == {table}

    def test_files_of_a_data_set(self):
        assert [p.stem for p in files_of("Amazon670k")] == ["cascade", "slice"]
        assert [p.stem for p in files_of("amazon-670k", "slice")] == ["slice"]
        assert files_of("amazon-670k", "other") == files_of("mine") == []

    def test_the_original_files_load_unchanged(self, tmp_path):
        """A file in the shape of the original's: 0 for none, its names, a task listed twice."""
        inner = {"connectivity": 32, "intermediate": 16384, "architecture": "dense-stratified"}
        plain = {"connectivity": 32, "intermediate": 0}
        content = {
            "defaults": {
                "repeat": 1, "dropout": 0.2, "learning_rate": 1e-3, "rewire_interval": 1000,
                "rewire_fraction": 0.1, "features": "cascade", "dataset": "Wikipedia-500K",
                "loss_fn": "squared_hinge",
            },
            "tasks": [
                {**inner, "dropout": 0.2},
                {**inner, "repeat": 3},
                {**inner, "dropout": 0.1},
                inner,
                {"connectivity": 0, "intermediate": 0, "architecture": "dense", "repeat": 5},
                {**plain, "architecture": "stratified"},
                {**plain, "architecture": "sparse"},
                {**plain, "architecture": "sparse", "rewire_fraction": 0.1},
                {"connectivity": 0, "intermediate": 64, "architecture": "bottleneck"},
            ],
        }  # fmt: skip
        path = tmp_path / "t.json"
        path.write_text(json.dumps(content))
        tasks = read_tasks(path)
        assert {(t.dataset, t.features) for t in tasks} == {("wiki-500k", "cascade")}
        assert [(t.slug.removesuffix("_dropout=0.2"), t.repeat) for t in tasks] == [
            ("ffi-32-16384", 3), ("ffi-32-16384", 1), ("dense", 5), ("ffi-32", 1),
            ("unstructured-32", 1), ("unstructured-32_dropout=0.2_rewire_fraction=0.1", 1),
            ("bottleneck-64", 1),
        ]  # fmt: skip
        # Only what the entry or the command line says about it counts for `sparse`.
        assert [t.rewire_fraction for t in tasks[3:6]] == [0.1, 0.01, 0.1]
        assert {t.rewire_fraction for t in read_tasks(path, {"rewire_fraction": 0.3})} == {0.3}
        assert (tasks[2].connectivity, tasks[2].intermediate) == (None, None)

    @pytest.mark.parametrize(
        ("name", "canonical"),
        [
            ("Amazon670k", "amazon-670k"), ("Wikipedia-500K", "wiki-500k"),
            ("Amazon-3M", "amazon-3m"), ("My-Own", "My-Own"),
        ],
    )  # fmt: skip
    def test_names_of_data_sets_become_the_catalogues(self, name, canonical):
        assert make_task(dataset=name).dataset == canonical

    def test_original_names_are_understood(self, tmp_path):
        path = tmp_path / "t.json"
        path.write_text(
            json.dumps(
                {
                    "defaults": {"dataset": "amazon-670k", "features": "slice", "repeat": 5},
                    "tasks": [
                        {"connectivity": 512, "architecture": "dense"},
                        {"connectivity": 64, "intermediate": 64, "architecture": "bottleneck"},
                        {"connectivity": 32, "architecture": "sparse", "repeat": 1},
                        {
                            "connectivity": 32,
                            "intermediate": 16384,
                            "architecture": "dense-stratified",
                            "rewire_interval": -1,
                            "rewire_fraction": 0.3,
                            "learning_rate": 0.001,
                            "dropout": 0.2,
                            "loss_fn": "bce",
                        },
                    ],
                }
            )
        )
        dense, bottleneck, sparse, ffi = read_tasks(path)
        assert (dense.connectivity, dense.repeat, dense.slug) == (None, 5, "dense")
        assert (bottleneck.intermediate, bottleneck.slug) == (64, "bottleneck-64")
        assert (sparse.rewire_fraction, sparse.repeat) == (0.01, 1)
        assert ffi.slug == (
            "ffi-32-16384_dropout=0.2_loss_fn=bce_rewire_fraction=0.3_rewire_interval=-1"
        )
        assert read_tasks(path, {"epochs": 3})[0].epochs == 3

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"t\.json:1: not JSON"),
            ("[" * 200_000, r"t\.json: not usable as JSON: maximum recursion depth"),
            ('{"tasks": [' + "1" * 5000 + "]}", r"t\.json: not usable as JSON: Exceeds the limit"),
            (b"\xff\xfe", "not UTF-8"),
            (None, "cannot be read: Is a directory"),
            ('{"tasks": [{"epochs": 3, "epochs": 4}]}', "key 'epochs' stands twice"),
            ("[]", "expected"),
            ('{"tasks": []}', "`tasks` is empty"),
            ('{"tasks": [1]}', r"tasks\[0\]: expected an object"),
            ('{"task": [], "tasks": [{}]}', r"unknown keys \['task'\]"),
            ('{"tasks": [{"architecture": "dense"}]}', r"tasks\[0\]: dataset: Field required"),
            ('{"defaults": {"dataset": "../x", "features": "f"}, "tasks": [{"architecture": '
             '"dense"}]}', r"dataset: .*'\.\./x'"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"desne"}]}', r"architecture: .*desne"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense", "learning_rat": 1}]}', "learning_rat: .*known keys: .*learning_rate"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense", "dropout": 1.0}]}', r"dropout: .*less than 1 \(got 1\.0\)"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"stratified"}]}', "needs `connectivity`"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"stratified", "connectivity": 32, "intermediate": 5}]}', "no intermediate layer"),
            ('{"defaults": {"dataset": "d", "features": "f"}, "tasks": [{"architecture": '
             '"dense-stratified", "connectivity": 32, "intermediate": 5}]}',
             "connectivity 32 is larger than the 5 inputs"),
            ('{"defaults": {"dataset": "d", "features": "f", "connectivity": 0}, "tasks": '
             '[{"architecture": "stratified"}]}', "needs `connectivity`"),
            ('{"defaults": {"dataset": "d", "features": "f", "intermediate": 0}, "tasks": '
             '[{"architecture": "bottleneck"}]}', "needs `intermediate`"),
            *(
                ('{"defaults": {"dataset": "d", "features": "f", "connectivity": 8}, '
                 f'"tasks": [{{"architecture": "{architecture}", {keys}}}]}}', message)
                for architecture, keys, message in (
                    ("stratified", '"head_fraction": 1', "head_fraction: .*less than 1"),
                    ("stratified", '"head_fraction": -0.1', "head_fraction: .*or equal to 0"),
                    ("stratified", '"head_fraction": 0.1, "head_connectivity": 0',
                     "head_connectivity: .*greater than or equal to 1"),
                    ("stratified", '"head_connectivity": 8',
                     "head_connectivity 8 is for frequent labels .*set head_fraction"),
                    ("stratified", '"group_size": 7', "group_size: .*greater than or equal to 8"),
                    ("stratified", '"group_size": 65', "group_size: .*less than or equal to 64"),
                    ("sparse", '"group_size": 8', "group_size 8 needs architecture 'stratified'"),
                    ("dense", '"group_size": 8', "group_size 8 needs architecture 'stratified'"),
                    ("stratified", '"grouping": "random"', "share their sources; set group_size"),
                    ("stratified", '"group_size": 8, "grouping": "no"', "grouping: .*'frequency'"),
                    ("stratified", '"group_size": 8, "grouping": "sources"',
                     "grouping 'sources' needs connections 'centroid', got 'random'"),
                )
            ),
            *(
                ('{"defaults": {"dataset": "d", "features": "f", "architecture": "stratified"}, '
                 f'"tasks": [{{"connectivity": 8, "{key}": {value}}}]}}', f"{key}.*: .*{message}")
                for key, value, message in (
                    ("learning_rate", "Infinity", r"finite number \(got inf\)"),
                    ("learning_rate", "1e308", "less than or equal to 1000"),
                    ("learning_rate", "9" * 400, "valid number"),
                    ("epochs", "1000000001", "less than or equal to 1000000"),
                    ("seed", "9" * 400, r"equal to 9007199254740992 \(got 9+\.\.\.9+\)"),
                    ("batch_size", "9" * 400, "less than"),
                    ("rewire_interval", "9" * 400, "less than"),
                    ("initial_bias", "1e308", "less than or equal to 1000000"),
                    ("architecture", "[]", "Input should be 'dense'"),
                    ("learning_rate", "1e400", r"finite number \(got inf\)"),
                    ("dropout", "NaN", r"\(got nan\)"),
                    ("batch_size", "true", r"valid integer \(got True\)"),
                    ("batch_size", '"8"', r"valid integer \(got '8'\)"),
                    ("intermediate", "false", r"valid integer \(got False\)"),
                    ("learning_rate", "true", r"valid number \(got True\)"),
                )
            ),
        ],
    )  # fmt: skip
    def test_errors_name_file_task_and_key(self, tmp_path, content, message):
        path = tmp_path / "t.json"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(TaskError, match=message) as caught:
            read_tasks(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("name", ["my data", ".hidden", "a/b", "a\n", "é", "x" * 201])
    def test_a_name_that_is_no_folder_of_results_is_answered_in_words(self, tmp_path, name):
        path = tmp_path / "t.json"
        for key in ("dataset", "features"):
            task = {"dataset": "d", "features": "f", "architecture": "dense", key: name}
            path.write_text(json.dumps({"tasks": [task]}))
            with pytest.raises(TaskError) as caught:
                read_tasks(path)
            assert f"{key}: a name has 1 to 200 of the letters A-Z and a-z" in str(caught.value)
            assert "pattern" not in str(caught.value)

    def test_a_slug_fits_into_a_file_name(self):
        departures = {
            **{"epochs": 12345, "batch_size": 12345, "seed": 12345, "rewire_interval": 12345},
            **{"learning_rate": 0.123456789012345, "rewire_fraction": 0.123456789012345},
            **{"rewire_until": 0.123456789012345, "protocol": "holdout", "execution": "fused"},
            **{"weights_dtype": "bfloat16", "moments_dtype": "bfloat16", "loss_fn": "bce"},
        }
        ffi = {"architecture": "stratified", "connectivity": 4}
        first, second = (
            make_task(**ffi, **departures, dropout=dropout).slug for dropout in (0.25, 0.75)
        )
        assert first != second
        assert len(first) == len(second) == 240
        assert first.startswith("ffi-4_batch_size=12345_dropout=0.25_epochs=12345_execution=fused_")
        del departures["rewire_until"]
        del departures["rewire_fraction"]
        assert make_task(**ffi, **departures).slug == (
            "ffi-4_batch_size=12345_epochs=12345_execution=fused_learning_rate=0.123456789012345_"
            "loss_fn=bce_moments_dtype=bfloat16_protocol=holdout_rewire_interval=12345_seed=12345_"
            "weights_dtype=bfloat16"
        )

    def test_moments_by_rows(self):
        deep = {"architecture": "dense-stratified", "connectivity": 4, "intermediate": 8}
        task = make_task(**deep, moments="row")
        assert task.slug == "ffi-4-8_moments=row" and task.storage.row_moments
        assert not make_task(**deep).storage.row_moments
        with pytest.raises(ValidationError, match=r"moments 'row' .* 'dense' has none; use 'full'"):
            make_task(moments="row")

    def test_optimizer(self):
        assert make_task().optimizer_values == Optimizer()
        task = make_task(optimizer="momentum", momentum=0.5, weight_decay=0.01, l2=0.25)
        assert task.optimizer_values == Optimizer("momentum", 0.01, 0.25, 0.5)
        assert task.slug == "dense_l2=0.25_momentum=0.5_optimizer=momentum_weight_decay=0.01"
        with pytest.raises(
            ValidationError, match=r"momentum 0\.5 is for optimizer 'momentum', got 's"
        ):
            make_task(optimizer="sgd", momentum=0.5)
        deep = {"architecture": "dense-stratified", "connectivity": 4, "intermediate": 8}
        with pytest.raises(
            ValidationError, match="row moments are of optimizer 'adam', and 'sgd' "
        ):
            make_task(**deep, optimizer="sgd", moments="row")
        for wrong in ({"optimizer": "adagrad"}, {"weight_decay": -0.1}, {"l2": "0.1"}):
            with pytest.raises(ValidationError, match=next(iter(wrong))):
                make_task(**wrong)

    def test_a_recipe_may_ask_whether_features_are_sparse(self, tmp_path):
        entry = {"architecture": "dense-stratified", "connectivity": 4, "intermediate": 8}
        values = {"dataset": "d", "recipe": "best"}
        path = tmp_path / "tasks.json"
        tasks = [
            {**entry, "features": "bow"},
            {**entry, "features": "lsa"},
            {**entry, "features": "bow", "feature_scaling": "unit_variance"},
            {"architecture": "dense", "features": "bow"},  # which no data will fit
        ]
        path.write_text(json.dumps({"defaults": values, "tasks": tasks}))
        asked = []
        read = read_tasks(path, is_sparse=lambda *names: asked.append(names) or names[1] == "bow")
        scaled = [task.feature_scaling for task in read]
        assert scaled == ["none", "unit_variance", "unit_variance", "unit_variance"]
        assert {("d", "bow"), ("d", "lsa")} == set(asked)

    def test_connectivity_must_fit_the_data(self):
        message = "^d, f features, setup ffi-32: connectivity 32 is larger than the 8 inputs"
        with pytest.raises(TaskError, match=message):
            make_task(architecture="stratified", connectivity=32).setup(8, 5)

    def test_a_task_cannot_be_changed(self):
        with pytest.raises(ValidationError):
            make_task().dropout = 0.5
