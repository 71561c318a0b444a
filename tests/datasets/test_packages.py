"""Sets from Debian's packages: each form of source, the rule that makes a set, what is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fanin.datasets import DataError, load, packages, text_features
from fanin.datasets.package_files import Entry

PACKAGES = """\
Package: fan-in
Version: 1.0
Depends: libc6 (>= 2.34), python3:any,
 torch | tensorflow (<< 3), libstdc++6
Pre-Depends: dpkg (>= 1.15.6~), libc6
Suggests: never
Description: sparse layers
 Layers with few
 .
 connections: many labels.
Section: science

Package: alone
Description-en: needs nothing
 \t
Package: last
Depends: libc6
"""

GERMAN = """\
# Version :: devel
Aal {m} (der (kleine)); Fisch [zool.] | Aale {pl} :: eel (on a menu) <ele> | the eels

sich jds. erinnern :: to remember sb.; sb’s well-known café
Dicke (> 1 mm) :: (of a)
"""

JAPANESE = """\
\u3000？？？ /EDICT, Japanese-English/Created: 2021-02-03/
々 [のま] /(unc) kanji repetition mark/
々 /(n) (1) mark (as in (this))/(2) sign/(P)/
４° [しど] /
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def read(name: str, source: Path, text: str) -> list[Entry]:
    source.write_bytes(text.encode(packages.SETS[name].encoding))
    return list(packages.read_entries(name, source))


def test_packages(source: Path) -> None:
    assert read("debian-packages", source, PACKAGES) == [
        (
            "fan in science sparse layers Layers with few . connections: many labels.",
            {"libc6", "python3", "torch", "libstdc++6", "dpkg"},
        ),
        ("alone needs nothing", set()),
        ("last", {"libc6"}),
    ]


def test_german(source: Path) -> None:
    assert read("german-english", source, GERMAN) == [
        ("Aal ; Fisch", {"eel"}),
        ("Aale", {"eels"}),
        ("sich jds. erinnern", {"remember", "sb's", "well-known", "café"}),
        ("Dicke", set()),
    ]


def test_japanese(source: Path) -> None:
    entries = read("japanese-english", source, JAPANESE)
    assert b"\xa1\xb9 [\xa4\xce\xa4\xde]" in source.read_bytes()  # EUC-JP
    assert entries == [
        ("々 のま", {"kanji", "repetition", "mark"}),
        ("々", {"mark", "sign"}),
        ("４° しど", set()),
    ]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("debian-packages", "Package: a\n\n b\n", r":3: ' b' is not `Field: value`.*dumpavail"),
        ("debian-packages", "Package: a\nb\n", r":2: 'b' is not `Field: value`.*dumpavail"),
        ("debian-packages", GERMAN, r":1: '# Version :: devel' is not .*dumpavail"),
        ("german-english", "a | b :: c\n", r":1: 'a \| b :: c' is not `German .*trans-de-en"),
        ("german-english", PACKAGES, r":1: 'Package: fan-in' is not .*trans-de-en"),
        ("japanese-english", "a /b/\n\n", r":2: '' is not `word .*install edict"),
    ],
)
def test_bad_line(source: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"^{source}{complaint}"):
        read(name, source, text)


@pytest.mark.parametrize("name", packages.SETS)
def test_unreadable_source(source: Path, name: str) -> None:
    def complaint() -> str:
        with pytest.raises(DataError) as error:
            list(packages.read_entries(name, source))
        return str(error.value)

    advice = packages.SETS[name].advice
    assert complaint() == f"{source}: No such file or directory: {advice}"
    source.write_bytes(b"\x1f\x8b\xff\xff")
    assert complaint() == f"{source}: not text in {packages.SETS[name].encoding}: {advice}"
    source.unlink()
    source.mkdir()
    assert complaint() == f"{source}: Is a directory: {advice}"


def is_test(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 6 == 0


# Labels by number: each has every fifth, seventh or 41st text, and `rare` has only one text.
ENTRIES = [
    (
        f"text {i}",
        {f"label {d}" for d in (5, 7, 41) if i % d == 0} | ({"rare"} if i == 1 else set()),
    )
    for i in range(200)
]


def labels_by_text(*splits: packages.Split, names: list[str]) -> dict[str, set[str]]:
    return {
        text: {names[label] for label in split.positives[[row]].indices}
        for split in splits
        for row, text in enumerate(split.texts)
    }


def test_splits_follow_from_the_texts() -> None:
    train, test, names = packages.make_splits(ENTRIES, least=3, instances=1000)
    assert names == ["label 41", "label 5", "label 7"]
    expected = {text: labels - {"rare"} for text, labels in ENTRIES if labels - {"rare"}}
    assert labels_by_text(train, test, names=names) == expected
    assert test.texts and all(is_test(text) for text in test.texts)
    assert train.texts and not any(is_test(text) for text in train.texts)
    assert train.positives.has_canonical_format

    again = packages.make_splits(reversed(ENTRIES), least=3, instances=1000)
    assert again[0].texts == train.texts
    assert (again[0].positives != train.positives).nnz == 0


def test_only_training_instances_count_for_a_label() -> None:
    entries = [(f"text {i}", {"tested"} if is_test(f"text {i}") else {"both"}) for i in range(50)]
    _, test, names = packages.make_splits(entries, least=1, instances=1000)
    assert names == ["both"]
    assert test.texts == []


def test_instances_count_what_is_kept() -> None:
    """As many as asked for, though one text in two has no frequent label."""
    entries = [(f"text {i}", {"frequent"} if i % 2 else {f"rare {i}"}) for i in range(200)]
    train, test, _ = packages.make_splits(entries, least=2, instances=60)
    assert len(train.texts) + len(test.texts) == 60
    everything = packages.make_splits(entries, least=2, instances=1000)
    assert train.texts == everything[0].texts[: len(train.texts)]
    assert len(everything[0].texts) + len(everything[1].texts) == 100


def test_texts_that_stand_twice_are_merged() -> None:
    texts = [text for text in (f"text {i}" for i in range(9)) if not is_test(text)]
    entries = [(text, {label}) for text in texts for label in "ab"] + [("", {"a"})]
    train, test, names = packages.make_splits(entries, least=1, instances=1000)
    assert sorted(train.texts) == texts
    assert labels_by_text(train, names=names) == {text: {"a", "b"} for text in texts}


@pytest.fixture
def german(source: Path) -> Path:
    """A source with two labels of some 30 instances."""
    lines = [
        f"{'Tier' if i % 2 else 'Fisch'} {i} :: {'animal' if i % 2 else 'fish'}\n"
        for i in range(60)
    ]
    source.write_text("".join(lines))
    return source


def test_written_set_can_be_loaded(
    german: Path, tmp_path: Path, three: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    packages.main(["german-english", str(german), "--out", str(out)])
    folder = out / "german-english"
    assert [path.name for path in out.iterdir()] == ["german-english"]
    data = load("german-english", text_features.TFIDF_SVD512, data_dir=out)
    words = load("german-english", "bow", data_dir=out)
    assert words.sparse_features and (words.train_y != data.train_y).nnz == 0
    n_grams = [set(words.train_x[[i]].indices) for i in (0, 1)]
    assert n_grams[0] != n_grams[1] and words.inputs > 20
    assert (data.inputs, data.labels) == (3, 2)
    assert data.train_instances + data.test_instances == 60
    assert (folder / "labels.txt").read_text() == "animal\nfish\n"
    about = (folder / "README.txt").read_text()
    assert capsys.readouterr().out == f"{about}\n"
    for part in (
        "--least 3 --instances 60000",
        hashlib.sha256(german.read_bytes()).hexdigest(),
        "General Public",
        "Labels: 2, each with at least 3 training instances",
        f"Training instances: {data.train_instances}, with 1.00 labels on average",
        f"Test instances: {data.test_instances}, with 1.00 labels on average",
    ):
        assert part in about

    # Instances of one label have character n-grams in common, so they are alike.
    same = (data.train_y.toarray() @ data.train_y.toarray().T).astype(bool)
    likeness = data.train_x @ data.train_x.T
    assert likeness[same].mean() > likeness[~same].mean() + 0.3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--least", "0"], "--least 0 --instances 60000: both are at least 1"),
        (["--instances", "-1"], "--least 3 --instances -1: both are at least 1"),
        (["--least", "61"], "source: 0 training and 0 test instances with a label of at least 61"),
        (
            [],
            "source: 51 training texts are too few for 512 SVD components: give more, or give /usr",
        ),
    ],
)
def test_errors_of_the_command(
    german: Path,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "data"
    with pytest.raises(SystemExit) as stop:
        packages.main(["german-english", str(german), "--out", str(out), *arguments])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_is_not_overwritten(german: Path, tmp_path: Path) -> None:
    (tmp_path / "german-english").mkdir()
    with pytest.raises(DataError, match="german-english: exists: remove it"):
        packages.write("german-english", german, tmp_path, 3, 60)
