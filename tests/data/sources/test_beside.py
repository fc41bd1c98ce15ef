"""Which files lie beside which clips."""

from sora_jax.data.sources.beside import find_beside, names_beside

KINDS = ("depth", "own_1")


def test_a_name_and_a_kind_belong_to_the_name_in_their_folder():
    names = ["a.mp4", "a_depth.png", "a_own_1.mp4", "b/a_depth.mp4", "b/c.mp4", "b/c_depth.gif", "d_depth.txt", "d.mp4"]
    assert find_beside(names, KINDS) == {
        "a.mp4": {"depth": "a_depth.png", "own_1": "a_own_1.mp4"},
        "b/c.mp4": {"depth": "b/c_depth.gif"},
    }
    assert names_beside(names, KINDS) == {"a_depth.png", "a_own_1.mp4", "b/c_depth.gif"}
    assert names_beside(names, ()) == set()


def test_the_first_of_two_counts_and_neither_is_a_clip():
    names = ["a.mp4", "a_depth.mp4", "a_depth.gif"]
    assert find_beside(names, KINDS) == {"a.mp4": {"depth": "a_depth.mp4"}}
    assert names_beside(names, KINDS) == {"a_depth.mp4", "a_depth.gif"}


def test_what_lies_beside_a_video_is_not_that_of_its_thumbnail():
    names = ["a.jpg", "a.mp4", "a_depth.jpg", "a_depth.mp4", "b.gif", "b.mp4", "b_depth.mp4"]
    assert find_beside(names, KINDS) == {"a.mp4": {"depth": "a_depth.mp4"}, "b.mp4": {"depth": "b_depth.mp4"}}
