"""The lessons of the captioner of the claim on new captions: each goes on from the last, with captions of its own."""

from sora_jax.benchmarks.recaption_lessons import FAULTS, LESSONS, lesson_config
from tests.benchmarks.test_recaption_claim import trial


def test_each_lesson_goes_on_from_the_last_with_captions_of_its_own(tmp_path):
    asked, before = trial(tmp_path, 48), None
    taught = []
    for lesson in LESSONS:
        config = lesson_config(asked, lesson, before)
        last = config.stages[config.run[-1]]
        given = (config.shapes.num_clips, config.shapes.caption_faults, config.data.captions)
        taught.append((config.run[1:], last.start_from, given, config.captioner_loss.token_dropout))
        before = lesson
    images, videos = "caption_images", "caption_videos"
    *froms, end = [str(tmp_path / lesson.folder / "checkpoints" / videos) for lesson in LESSONS]
    few, spoiled = (16, None, None), (48, FAULTS, None)
    assert taught == [
        ((images, videos), None, few, 0.5),
        ((videos,), froms[0], spoiled, 0.5),
        ((videos,), froms[1], few, None),
        ((videos,), froms[2], (48, None, str(tmp_path / "captioner_third.jsonl")), 0.5),
        ((videos,), froms[3], few, None),
    ]
    assert end == str(tmp_path / "captioner" / "checkpoints" / videos), "which describes"
