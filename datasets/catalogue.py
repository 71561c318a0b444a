"""The published data sets by name: their real sizes, other spellings, propensity constants.

Sizes are those of the extreme-classification repository (http://manikvarma.org/downloads/XC/
XMLRepository.html) and of the paper's feature files (Schultheis & Babbar, ECML-PKDD 2023). There
are no data here: `shape_twins` makes random data of these sizes, `registry` finds the real files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Propensity(NamedTuple):
    """A and B of the propensity model of Jain, Prabhu & Varma (KDD 2016), equation 3."""

    a: float
    b: float


WIKIPEDIA, AMAZON, OTHER = Propensity(0.5, 0.4), Propensity(0.6, 2.6), Propensity(0.55, 1.5)

# How many inputs the paper's two kinds of dense features have.
FEATURES = {"slice": 512, "cascade": 768}


class Words(NamedTuple):
    """Sizes of sparse features: how many words there are, and how many a text has on average."""

    inputs: int
    per_instance: float


@dataclass(frozen=True)
class Published:
    """Real sizes of a published data set.

    labels_per_instance: mean over the training instances. features: the kinds of features that the
    paper has results for. words: of the repository's bags of words. aliases: how task files and
    folders elsewhere spell the name.
    """

    name: str
    labels: int
    train_instances: int
    test_instances: int
    labels_per_instance: float
    propensity: Propensity = OTHER
    features: tuple[str, ...] = ()
    aliases: tuple[str, ...] = field(default=())
    words: Words | None = None


_BOTH = ("cascade", "slice")
PUBLISHED = {
    entry.name: entry
    for entry in (
        Published("eurlex-4k", 3_993, 15_539, 3_809, 5.31),
        Published("wiki10-31k", 30_938, 14_146, 6_616, 18.64),
        Published("amazoncat-13k", 13_330, 1_186_239, 306_782, 5.04),
        Published("lf-amazontitles-131k", 131_073, 294_805, 134_835, 2.29, AMAZON),
        Published(
            *("wiki-500k", 501_070, 1_813_391, 783_743, 4.77, WIKIPEDIA, _BOTH),
            aliases=("Wikipedia-500K", "Wiki500k"),
        ),
        Published(
            *("amazon-670k", 670_091, 490_449, 153_025, 5.45, AMAZON, _BOTH),
            aliases=("Amazon670k",),
            words=Words(135_909, 75.0),
        ),
        Published(
            *("amazon-3m", 2_812_281, 1_717_899, 742_507, 36.17, AMAZON, ("cascade",)),
            aliases=("Amazon3M",),
        ),
    )
}


def canonical_name(name: str) -> str:
    """The catalogue's spelling of a data set's name; a name that it does not know stays as it is.

    Letter case does not count, so `Amazon-3M` and `amazon-3m` are one data set.
    """
    for entry in PUBLISHED.values():
        if name.lower() in {entry.name, *(alias.lower() for alias in entry.aliases)}:
            return entry.name
    return name


def spellings(name: str) -> tuple[str, ...]:
    """Names under which a data set's folder may lie: as given, the catalogue's, its aliases."""
    entry = PUBLISHED.get(canonical_name(name))
    known = (entry.name, *entry.aliases) if entry else ()
    return tuple(dict.fromkeys((name, *known)))


def propensity(name: str) -> Propensity:
    """The propensity constants that the field uses for a data set; `OTHER` for an unknown one."""
    entry = PUBLISHED.get(canonical_name(name))
    return entry.propensity if entry else OTHER


class Download(NamedTuple):
    """A file to fetch. checksum: `sha256:...` or another kind that pooch knows, or None."""

    address: str
    checksum: str | None


# By name, the sets whose file has an address that needs no click; `fanin data fetch` takes it from
# there. The Extreme Classification Repository links its files by pages that ask first.
DOWNLOADS: dict[str, Download] = {}
