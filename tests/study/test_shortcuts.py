"""A study from keywords: the same schema as a file, and no second one."""

from pathlib import Path

import pytest

from fedveil.errors import StudyError
from fedveil.study import Study


def test_keywords_mean_what_a_file_says():
    text = """
    [data]
    source = "scans.csv"
    sites = { count = 3 }
    [model]
    network = "cnn"
    [training]
    rounds = 7
    [privacy]
    epsilon = 2.0
    trust = "server"
    """
    made = Study(source=Path("scans.csv"), sites=3, network="cnn", rounds=7, epsilon=2, trust="server")
    assert made == Study.parse(text)


def test_tables_and_keys_go_together():
    made = Study(epsilon=2.0, privacy={"delta": 1e-6}, data={"sites": {"alpha": 5.0}}, sites=4)
    assert (made.privacy.epsilon, made.privacy.delta) == (2.0, 1e-6)
    assert (made.data.sites.count, made.data.sites.alpha) == (4, 5.0)


def test_an_inner_table_needs_no_table_around_it():
    made = Study(columns={"label": "dx"}, sites={"count": 3})
    assert (made.data.columns.label, made.data.sites.count) == ("dx", 3)


def test_a_table_may_be_another_studys():
    first = Study(epsilon=2.0, trust="site")
    assert Study(privacy=first.privacy, rounds=3).privacy == first.privacy


def test_a_given_table_is_left_as_it_was():
    table = {"delta": 1e-6}
    Study(privacy=table, epsilon=2.0)
    assert table == {"delta": 1e-6}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"epsillon": 1.0}, ["epsillon was given", "did you mean epsilon?"]),
        ({"nonsense_beyond_words": 1.0}, ["must be a table or a key"]),
        (
            {"epsilon": 1.0, "privacy": {"epsilon": 2.0}},
            ["as a keyword and in its table", "remove one of them"],
        ),
        ({"epsilon": -1.0}, ["privacy.epsilon is -1.0", "greater than 0"]),
        ({"privacy": {"epsilo": 1.0}}, ["privacy.epsilo is not a known key", "did you mean epsilon?"]),
        ({"privacy": 3, "epsilon": 1.0}, ["privacy is 3"]),
        ({"network": "cnn", "features": "pixels"}, ["do not go together"]),
        ({"sites": 0}, ["data.sites.count is 0"]),
    ],
)
def test_mistakes_say_value_rule_and_remedy(keywords, words):
    with pytest.raises(StudyError) as error:
        Study(**keywords)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_file_still_needs_its_tables():
    with pytest.raises(StudyError, match="epsilon is not a known key"):
        Study.parse("epsilon = 1.0")
