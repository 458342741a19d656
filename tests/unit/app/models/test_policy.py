"""Which versions are wanted, and where labels point: what is set, what operators wish, and what can be had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import SettingsError
from app.models.policy import VersionPolicy, next_labels, parse_policies, wanted_versions

POLICIES = {
    "latest": VersionPolicy("demo", latest=1),
    "two": VersionPolicy("demo", latest=2),
    "specific": VersionPolicy("demo", specific=(2, 4)),
    "all": VersionPolicy("demo", is_all=True),
    "none": None,
}
VERSIONS = st.sets(st.integers(1, 5))
LABELS = st.dictionaries(st.sampled_from(["champion", "stable"]), st.integers(1, 6))


def test_policies_are_read_in_order() -> None:
    """A name alone is its newest version; the first model is the default one."""
    found = parse_policies("delays, topics@all words@latest:3,prices@3+5")
    assert list(found) == ["delays", "topics", "words", "prices"]
    assert found["delays"] == VersionPolicy("delays", latest=1)
    assert found["words"].latest == 3
    assert found["prices"].specific == (3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model is named"),
        ("a b@all a@1", "a stands twice"),
        ("a@newest", "after the @ stands latest"),
        ("a@latest:0", "after the @ stands latest"),
        ("a@0", "after the @ stands latest"),
        ("A@all", "models.serve: "),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    """The message names the setting and the part."""
    with pytest.raises(SettingsError, match=message):
        parse_policies(text)


@pytest.mark.parametrize(
    ("policy", "wishes", "labelled", "unfit", "expected"),
    [
        ("latest", {}, (), (), [4]),
        ("two", {}, (), (), [3, 4]),
        ("specific", {}, (), (), [2, 4]),
        ("all", {}, (), (), [1, 2, 3, 4]),
        ("none", {}, (), (), []),
        ("none", {3: True}, (), (), [3]),
        ("latest", {2: True}, (), (), [2, 4]),
        ("latest", {9: True}, (), (), [4]),  # there is none
        ("latest", {4: False}, (), (), [3]),
        ("specific", {4: False}, (), (), [2]),
        ("latest", {1: False}, (1,), (), [1, 4]),  # a label points to it
        ("latest", {}, (1, 9), (), [1, 4]),
        ("two", {}, (), (4,), [2, 3]),
        ("specific", {}, (), (4,), [2]),  # another was not asked for
        ("latest", {4: True}, (4,), (4,), [3]),
    ],
)
def test_wanted_versions(
    policy: str, wishes: dict[int, bool], labelled: tuple[int, ...], unfit: tuple[int, ...], expected: list[int]
) -> None:
    """Of versions 1 to 4: the policy's, and the operators' before it."""
    found = wanted_versions(POLICIES[policy], {1, 2, 3, 4}, wishes=wishes, labelled=labelled, unfit=unfit)
    assert found == expected


@pytest.mark.parametrize(
    ("ready", "wanted", "wishes", "before", "expected"),
    [
        ({1, 2}, {2}, {}, {"champion": 1}, {"champion": 2}),
        ({1}, {2}, {}, {"champion": 1}, {"champion": 1}),  # the better one is not there yet
        ({1, 2}, {1, 2}, {"champion": 1}, {"champion": 2}, {"champion": 1}),
        ({2}, {2}, {"champion": 1}, {"champion": 2}, {"champion": 2}),  # not READY: it stays
        ({1, 2}, {1, 2}, {"champion": 3}, {"champion": 1}, {"champion": 1}),  # the policy would take 2
        ({1, 2}, {2}, {}, {"stable": 1, "champion": 2}, {"champion": 2}),  # taken back
        ({1, 2}, {2}, {"stable": 3}, {"stable": 1, "champion": 2}, {"champion": 2, "stable": 1}),
        (set(), {2}, {"champion": 2}, {"champion": 2}, {}),
    ],
)
def test_labels(
    ready: set[int], wanted: set[int], wishes: dict[str, int], before: dict[str, int], expected: dict[str, int]
) -> None:
    """With the policy `latest`."""
    assert next_labels(ready, wanted, policy=POLICIES["latest"], wishes=wishes, before=before) == expected


def test_a_model_may_end() -> None:
    """What an operator sends away needs no champion, unless the model has to have one."""
    policy = POLICIES["latest"]
    before = {"champion": 1}
    assert next_labels({1}, set(), policy=policy, wishes={}, before=before, can_be_gone={1}) == {}
    assert next_labels({1}, set(), policy=policy, wishes={}, before=before) == before


@given(st.sampled_from(sorted(POLICIES)), VERSIONS, VERSIONS, LABELS, LABELS)
def test_labels_point_to_what_is_ready(
    policy: str, ready: set[int], wanted: set[int], wishes: dict[str, int], before: dict[str, int]
) -> None:
    """Whatever is wished; a fulfilled wish stays fulfilled, and who had a champion that is READY has one."""
    labels = next_labels(ready, wanted, policy=POLICIES[policy], wishes=wishes, before=before)
    assert set(labels.values()) <= ready
    assert all(labels[label] == version for label, version in wishes.items() if version in ready)
    assert "champion" in labels or not (ready & wanted or before.get("champion") in ready)
    again = next_labels(ready, wanted, policy=POLICIES[policy], wishes=wishes, before=labels)
    assert again == labels, "looking twice moves nothing"
