import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import StudyError
from fedveil.study.settings.schema import Study
from fedveil.study.settings.template import schema_rows, study_template
from fedveil.study.settings.toml import toml_value


def test_an_empty_file_is_a_whole_study():
    assert Study.parse("") == Study()


def test_the_resolved_file_reads_back_as_the_same_study():
    study = Study.parse(
        '[data]\npositive = ["a", "b\\"c"]\n[privacy]\nepsilon = 3\n[federation]\nmin_sites = 3'
    )
    assert Study.parse(study.to_toml()) == study


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_toml(text):
    assert Study.parse(f"[study]\ndescription = {toml_value(text)}").study.description == text


def test_the_template_is_a_valid_study_that_names_every_key():
    text = study_template({"study.name": "mine"})
    assert Study.parse(text).study.name == "mine"
    assert all(f"{key.rsplit('.', 1)[1]} = " in text for key, _, _ in schema_rows())
    assert all(meaning for _, _, meaning in schema_rows())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privacy]\nepsilom = 3", ["privacy.epsilom", "did you mean epsilon?"]),
        ("[privcy]\nepsilon = 3", ["privcy", "did you mean privacy?"]),
        ("[privacy]\nepsilon = 0", ["privacy.epsilon is 0", "greater than 0"]),
        ("[privacy]\nepsilon = inf", ["epsilon", "finite"]),
        ("[privacy]\ndelta = 1.5", ["privacy.delta is 1.5", "less than 1"]),
        ('[privacy]\nepsilon = "1"', ["privacy.epsilon is '1'", "number"]),
        ('[privacy]\ntrust = "sever"', ["privacy.trust", "'server'"]),
        ("[data.sites]\ncount = 0", ["data.sites.count is 0", "greater than or equal to 1"]),
        ("[training]\nrounds = 2.5", ["training.rounds is 2.5", "integer"]),
        ("[study]\nseed = -1", ["study.seed is -1"]),
        ("[study", ["TOML"]),
        ('[data]\nsource = "none"\nclasses = ["a", "b"]', ["needs channels", "1 for grey"]),
        ('[data]\nsource = "none"\nchannels = 1', ["needs classes", "two different names"]),
        ('[data]\nsource = "none"\nchannels = 1\nclasses = ["a", "a"]', ["two different names"]),
        ('[data]\nsource = "none"\nchannels = 2\nclasses = ["a", "b"]', ["data.channels is 2"]),
        (
            '[data]\nsource = "none"\nchannels = 1\nclasses = ["a", "b", "c"]\npositive = ["c"]',
            ["two classes"],
        ),
        ('[data]\nclasses = ["a"]', ["two different names"]),
        ("[data]\nwindow = [40, 0]", ["data.window", "positive width"]),
        ('[data]\nwindow = "liver"', ["data.window", "lung"]),
        ('[data]\naccept = ["everything"]', ["data.accept", "similar-patients"]),
        ('[data.columns]\nfile = "x"', ["data.columns.file is not a known key", "use one of"]),
    ],
)
def test_a_mistake_is_named_with_its_rule(text, words):
    with pytest.raises(StudyError) as caught:
        Study.parse(text)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("key", "asked", "anyway"),
    [
        ("privacy.spending", "0.5", "1.0"),
        ("privacy.progress_share", "0.1", "0.0"),
        ("training.second_order", "true", "false"),
    ],
)
def test_a_removed_key_says_that_it_was_removed_and_why(key, asked, anyway):
    """Files that an earlier version wrote hold every key: what is done anyway may stay there."""
    with pytest.raises(StudyError, match="was removed") as caught:
        Study.parse(f"{key} = {asked}", "old.toml")
    message = str(caught.value)
    assert all(words in message for words in ("old.toml", key, "measured", "remove the key"))
    assert Study.parse(f"{key} = {anyway}") == Study()


def test_views_of_frozen_features_were_removed():
    with pytest.raises(StudyError, match="views of frozen features were removed"):
        Study.parse("training.views = 2")
    assert Study.parse('training.views = 2\nmodel.network = "cnn"').training.views == 2


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ('data.task = "findings"', 0.05),
        ('data.preset = "nih-cxr14"', 0.05),
        ('data.task = "findings"\nprivacy.statistics_share = 0.2', 0.2),
        ('data.task = "findings"\nmodel.network = "cnn"', 0.02),
        ('data.preset = "nih-cxr14"\ndata.positive = ["Pneumonia"]', 0.15),
        ('data.task = "grades"', 0.15),
        ("", 0.15),
    ],
)
def test_heads_of_findings_spend_less_before_training(text, share):
    assert Study.parse(text).privacy.statistics_share == share


def test_changes_are_checked_like_a_file():
    assert Study().with_changes({"privacy": {"epsilon": 2.0}}).privacy.epsilon == 2
    with pytest.raises(StudyError, match="epsilon is -1"):
        Study().with_changes({"privacy": {"epsilon": -1.0}})


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(string.ascii_lowercase))
def test_numbers_keep_every_digit(value, key):
    assert float(toml_value(value)) == value or math.isclose(float(toml_value(value)), value, rel_tol=0)
