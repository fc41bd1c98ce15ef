"""Habits of captions."""

from sora_jax.data.caption_habits import caption_habits


def test_habits_are_counted_over_captions_and_clips():
    found = caption_habits(
        [("A red dog runs.", "a red DOG, asleep"), (), ("Two cats",), ("A dog; a dog. A dog, and one cat more!",)]
    )
    assert (found.clips, found.uncaptioned) == (4, 1)
    assert found.lengths == (4, 4, 2, 10)
    assert found.distinct == len({"a", "red", "dog", "runs", "asleep", "two", "cats", "and", "one", "cat", "more"})
    assert found.openings == (("a red dog", 2), ("two cats", 1), ("a dog a", 1))
    assert found.facts() == {
        "clips without a caption": "25.0%",
        "captions": "4",
        "words of a caption, 0 5 50 95 100 %": "2 2.3 4 9.1 10",
        "distinct words": "11",
        "captions with the commonest opening": "50.0%",
    }


def test_only_the_commonest_openings_are_kept():
    found = caption_habits([(f"clip {n // 2} is", f"clip {n // 2} was") for n in range(40)])
    assert len(found.openings) == 10
    assert set(dict(found.openings).values()) == {2}


def test_clips_without_any_caption_have_habits_too():
    found = caption_habits([(), ()])
    assert (found.lengths, found.openings, found.distinct) == ((), (), 0)
    assert found.facts()["clips without a caption"] == "100.0%"
    assert found.facts()["words of a caption, 0 5 50 95 100 %"] == "-"
    assert caption_habits([]).facts()["clips without a caption"] == "0.0%"
