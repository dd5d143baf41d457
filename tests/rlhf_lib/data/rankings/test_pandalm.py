"""PandaLM's three annotators, as the benchmark gives them to the pipeline."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from rlhf_lib.data.rankings.consensus import gather

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))


def test_the_real_annotators_are_read_whole_and_agree(assets, tmp_path):
    from pandalm import convert

    found = gather(convert(assets / "data/pandalm", tmp_path))
    assert (found.report["rankings"], found.rejected, found.flagged) == (2997, [], [])
    assert found.alpha == pytest.approx(0.878, abs=1e-3)
    assert {name: figures["pairs"] for name, figures in found.annotators.items()} == {
        "annotator1": 999, "annotator2": 999, "annotator3": 999
    }  # fmt: skip
    assert found.annotators["annotator2"]["ties"] == pytest.approx(116 / 999)
    # equal judgements, counted in the file: the same three times on 879 pairs, twice on the other 120
    assert sum(figures["agreement"] for figures in found.annotators.values()) / 3 == pytest.approx(919 / 999)
    assert len({pair.prompt for pair in found.pairs}) == 162  # of 170: some have ties alone
    assert Counter(pair.margin == 1 for pair in found.pairs)[True] > 600
