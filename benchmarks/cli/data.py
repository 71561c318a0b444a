"""`fanin data`: what data there are, whether they can be used, and how they get into shape.

The work is done in `datasets/tools`; these commands print what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fanin.benchmarks.cli.codes import USAGE
from fanin.benchmarks.cli.options import AsJson, text_path
from fanin.benchmarks.cli.output import make_console, print_json, print_text, stop
from fanin.benchmarks.timing.options import one_of
from fanin.datasets.file_errors import naming
from fanin.datasets.memory import size_text
from fanin.datasets.tools import encode, vectorise
from fanin.datasets.tools.check import check_folder
from fanin.datasets.tools.convert import FORMS, convert_files, convert_folder
from fanin.datasets.tools.fetch import direct, file_name
from fanin.datasets.tools.fetch import fetch as fetch_file
from fanin.datasets.tools.label_counts import HEAD_PERCENT, TAIL, LabelCounts, counts_of
from fanin.datasets.tools.listing import Listed, listing
from fanin.datasets.tools.new_folder import check_new
from fanin.datasets.tools.records import RecordFile, is_of_records
from fanin.datasets.tools.texts import convert_texts
from fanin.kernels.kept_files import replacing
from fanin.reports.plots import load_matplotlib
from fanin.reports.table import Cell, Column, Table, text_column

Folder = Annotated[Path, typer.Argument(help="A data folder, `<data>/<dataset>`.", exists=True)]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]


def list_sets(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of data folders.", exists=True, file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List data sets: those that come with fanin, folders below --data-dir, published ones."""
    rows = listing(data_dir)
    if as_json:
        return print_json([asdict(row) for row in rows])
    console = make_console()
    heads = (text_column("data set"), *map(Column, ("labels", "train", "test")))
    heads += (text_column("features"), text_column("where"))
    table = Table("", heads, tuple(tuple(map(Cell, _listed(row))) for row in rows))
    print_text(console, table.markdown())


def _listed(row: Listed) -> tuple[str, ...]:
    counts = ("" if count is None else f"{count:,}" for count in (row.labels, row.train, row.test))
    return (row.name, *counts, ", ".join(row.features), row.where)


def check(folder: Folder, as_json: AsJson = False) -> None:
    """Say what is wrong or worth knowing about a data folder, each with what to do.

    Exit code 2 where the data cannot be used as they are.
    """
    report = check_folder(folder)
    if as_json:
        usable = {"folder": str(folder), "usable": report.is_usable}
        print_json(usable | {"findings": [asdict(each) for each in report.findings]})
    else:
        console = make_console()
        colours = {"unusable": "red", "warning": "yellow", "fact": ""}
        for finding in report.findings:
            advice = f": {finding.advice}" if finding.advice else ""
            head = "" if finding.level == "fact" else f"{finding.level}: "
            print_text(console, f"{head}{finding.what}{advice}", colours[finding.level])
        print_text(console, "usable" if report.is_usable else "not usable as it is")
    if not report.is_usable:
        raise typer.Exit(USAGE)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A data folder; a file `N D L` of the repository; or raw texts with labels: "
            "`.jsonl`, `.csv`, `.tsv`, `.parquet`, or any file with --labels. `.gz` is unpacked.",
            exists=True,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(help="The data folder to write, `<data>/<dataset>`.", callback=text_path),
    ],
    test: Annotated[
        Path | None,
        typer.Option(help="File with the test split, of the same form.", exists=True),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="File with the labels of SOURCE, a line for each text.", exists=True),
    ] = None,
    test_labels: Annotated[
        Path | None, typer.Option(help="The same for --test.", exists=True)
    ] = None,
    form: Annotated[
        str,
        one_of(
            FORMS,
            "npz: labels and features as `.npz`; npy: dense features; split: trn_X_Y.txt and "
            "trn_X_Xf.txt; text: train.txt with both. Of raw texts: npz.",
        ),
    ] = "npz",
    features: Annotated[
        str | None, typer.Option(help="Which features of a folder, if it has several.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the test split where no file has it.")
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of that split; equal texts stay together.")
    ] = 0,
    text_field: Annotated[str, typer.Option(help="Key or column of the texts.")] = "text",
    label_field: Annotated[str, typer.Option(help="Key or column of the labels.")] = "labels",
    separator: Annotated[
        str, typer.Option(help="Between labels, where they are one text; `\\t` for a tab.")
    ] = ",",
    compress: Annotated[
        bool, typer.Option("--gzip", help="Write text files compressed, as `.txt.gz`.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Bring data into a folder that fanin trains on, or into another form.

    Of raw texts it writes labels, label names (labels.txt) and the texts (train-texts.jsonl), of
    which `fanin data features` makes features. A conversion that stops leaves nothing.

    Examples: `fanin data convert mine.jsonl data/mine`, `fanin data convert texts.txt data/mine
    --labels labels.txt`, `fanin data convert data/eurlex-4k data/eurlex-npz`.
    """
    how = {"compressed": compress, "force": force}
    facts: dict[str, Any]
    if source.is_dir():
        if test or labels or test_labels:
            stop(f"{source} is a folder with both splits: leave out --test and --labels")
        facts = {"files": convert_folder(source, out, form, features, **how)}
    elif labels or is_of_records(source):
        if form != "npz":
            stop(f"--form {form} is for features; raw texts have none yet: convert them first")
        if bool(labels and test) != bool(test_labels):
            stop(
                "--test-labels goes with --labels and --test: each file of texts has one of labels"
            )
        separator = separator.replace("\\t", "\t")
        if not separator:
            stop("--separator is empty: name what stands between labels")
        fields = (text_field, label_field, separator)
        train = RecordFile(source, labels, *fields)
        tested = RecordFile(test, test_labels, *fields) if test else None
        facts = asdict(convert_texts(train, tested, out, test_share, seed, **how))
    else:
        files = convert_files(source, test, out, form, test_share, seed, **how)
        facts = {"files": files}
    if as_json:
        return print_json({"folder": str(out)} | facts)
    _print_written(make_console(), out, facts)


def _print_written(console: Console, out: Path, facts: dict[str, Any]) -> None:
    if "files" in facts:
        print_text(console, f"{out}: wrote {', '.join(facts['files'])}")
        return
    print_text(
        console,
        f"{out}: wrote {facts['train']:,} training and {facts['test']:,} test instances, "
        f"{facts['labels']:,} labels",
    )
    for count, what in ((facts["without_text"], "text"), (facts["without_label"], "label")):
        if count:
            print_text(console, f"{count:,} instances have no {what}", "yellow")
    print_text(console, f"Next: fanin data features {out}")


def features(
    folder: Folder,
    kind: Annotated[
        str,
        one_of(
            ("tfidf", "tfidf-svd", "encoder"),
            "tfidf: sparse; tfidf-svd: reduced to --components numbers; encoder: by --model.",
        ),
    ] = "tfidf",
    name: Annotated[
        str | None, typer.Option(help="What the features are called; by default after their kind.")
    ] = None,
    units: Annotated[
        str, one_of(vectorise.UNITS, "Terms: words, or n-grams of 1 to 4 characters within words.")
    ] = "words",
    least: Annotated[
        int | None, typer.Option(min=1, help="Training texts that a term stands in (2).")
    ] = None,
    components: Annotated[int, typer.Option(min=1, max=100_000, help="Of the SVD.")] = 512,
    model: Annotated[
        str | None,
        typer.Option(help="Folder of a sentence encoder, or a name for sentence-transformers."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts that are encoded together.")] = 32,
    device: Annotated[
        str | None, typer.Option(help="Of the encoder; by default a GPU where there is one.")
    ] = None,
    using: Annotated[
        Path | None,
        typer.Option(
            "--with",
            help="A `<features>.features.json` of another folder: make the same features, fit "
            "nothing.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make features of the texts in a data folder, and keep what made them for new texts.

    TF-IDF and SVD are fitted on the training texts alone. An encoder that is stopped goes on from
    there with the same command.
    """
    console = make_console(as_json)
    if (kind == "encoder") != (model is not None) and using is None:
        stop("--kind encoder and --model go together: name a folder or a name of an encoder")
    if using is not None:
        if name is not None:
            stop("--with gives the features the name of the file: leave out --name")
        name = vectorise.name_of(using)
        written = vectorise.features_with(using, folder, force)
    elif model is not None:
        name = _name(name, encode.feature_name(model))
        with console.status(Text(f"loading {model}")) as status:
            written = encode.encode_folder(
                *(folder, model, name, batch, device, force),
                lambda split, done, count: status.update(
                    Text(f"{split}: {done:,} of {count:,} texts")
                ),
            )
    else:
        reduced = kind == "tfidf-svd"
        name = _name(name, f"tfidf-svd{components}" if reduced else "tfidf")
        with console.status(Text(f"making {name}")):
            written = vectorise.make_features(
                folder, name, units, least, components if reduced else None, force
            )
    if as_json:
        return print_json({"features": name, "files": [str(path) for path in written]})
    print_text(console, f"{folder}: wrote {', '.join(path.name for path in written)}")


def _name(given: str | None, usual: str) -> str:
    from fanin.benchmarks.records.task_keys import NAMES, is_name

    name = usual if given is None else given
    if not is_name(name) or name == "labels":
        stop(f"--name {name!r}: {NAMES}; and not labels")
    return name


def stats(
    data: Annotated[
        str, typer.Argument(help="A data folder, or a data set that comes with fanin.")
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Draw the distribution into this `.png` file.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Count how positives are spread over labels and instances."""
    if plot is not None:
        check_new(plot, force)
    splits = counts_of(data)
    if plot is not None:
        load_matplotlib()
        from fanin.reports.plots.label_distribution import label_distribution

        picture = label_distribution(Path(data).resolve().name, splits)
        with naming(plot), replacing(plot) as made:
            made.write_bytes(picture.png)
    if as_json:
        return print_json({split: counts.summary().as_json() for split, counts in splits.items()})
    console = make_console()
    print_text(console, stats_table(splits).markdown())
    if plot is not None:
        print_text(console, f"The picture: {plot.resolve()}")


_STATS = {
    "instances": "instances",
    "labels": "labels",
    "positives": "positives",
    "labels_per_instance": "labels of an instance, mean",
    "most_labels_of_an_instance": "labels of an instance, most",
    "instances_without_label": "instances without a label",
    "instances_per_label": "instances of a label, mean",
    "median_instances_per_label": "instances of a label, median",
    "most_instances_of_a_label": "instances of a label, most",
    "labels_without_instance": "labels without an instance",
    "tail_labels": f"tail: labels with 1 to {TAIL} instances",
    "tail_positives": "tail: their positives",
    "head_labels": f"head: {HEAD_PERCENT} % of the labels",
    "head_positives": "head: their positives",
    "labels_with_half": "labels that have half of the positives",
    "labels_with_nine_tenths": "labels that have nine tenths of the positives",
}


def stats_table(splits: dict[str, LabelCounts]) -> Table:
    """A row for each number, a column for each split."""
    numbers = [counts.summary().as_json() for counts in splits.values()]
    rows = []
    for key, text in _STATS.items():
        values = (each[key] for each in numbers)
        shown = (f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in values)
        rows.append(tuple(map(Cell, (text, *shown))))
    return Table("", (text_column(""), *map(Column, splits)), tuple(rows))


def fetch(
    name: Annotated[str, typer.Argument(help="A published data set; see `fanin data list`.")],
    data_dir: Annotated[
        Path, typer.Option(help="Folder of data folders.", file_okay=False, callback=text_path)
    ] = Path("data"),
    address: Annotated[
        str | None,
        typer.Option(help="Where a copy of the file lies, such as on a mirror: http(s)."),
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="What the file must have: sha256:... or md5:...")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a published data set where it has a direct address; else say where to click.

    A download that stopped goes on from there with the same command.
    """
    console = make_console(as_json)
    download = direct(name, address, checksum)
    what = file_name(download.address)
    with console.status(Text(f"fetching {download.address}")) as status:

        def show(done: int, total: int | None) -> None:
            of = f" of {size_text(total)}" if total else ""
            status.update(Text(f"{what}: {size_text(done)}{of}"))

        path = fetch_file(download, data_dir / name, force, show)
    if as_json:
        return print_json({"file": str(path)})
    print_text(console, f"{path}: {size_text(path.stat().st_size)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_sets,
    "check": check,
    "convert": convert,
    "features": features,
    "stats": stats,
    "fetch": fetch,
}
