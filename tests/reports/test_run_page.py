import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sora_jax.data.media.writer import encode_gif, encode_png
from sora_jax.experiment.sample_log import show_sheet
from sora_jax.reports import run_page
from sora_jax.reports.run_page import duration, write_report
from sora_jax.train.metrics import MetricsWriter

EVIL = '<script>alert("x")</script> & {braces} ümläut'
VOID = {"meta", "img", "path"}


class Page(HTMLParser):
    """Collects tags, text and headings, and checks that what is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.headings, self.images, self._open = set(), "", [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)
        self.words += data


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def show(folder, step, name, content):
    (folder / f"{step:06d}").mkdir(parents=True, exist_ok=True)
    (folder / f"{step:06d}" / name).write_bytes(content)


def report(workdir):
    """Writes the report as a run does."""
    return write_report(workdir, stages=("coder", "videos"), pairs=("coder",))


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / "run <1>"
    config = {"run": ["coder", "videos"], "note": EVIL}
    config["stages"] = {"coder": {"kind": "autoencoder", "steps": 20}, "videos": {"kind": "diffusion", "steps": 40}}
    write(path / "config.json", config)
    with MetricsWriter(path) as metrics:
        for step in range(1, 21):
            metrics.write("coder", step, {"loss": 1 / step, "tokens_per_second": 900.0})
            scalars = {"loss": float("nan") if step == 7 else 2 / step, "fill": 0.984, "data_wait": 0.021}
            metrics.write("videos", step, scalars | {"tokens_per_second": 1234.0, "gradient_norm": step})
    coder = {"kind": "autoencoder", "steps": 20, "seconds": 125.0, "compile_seconds": 12.5, "peak_memory_gb": 1.25}
    write(path / "run.json", {"stages": {"coder": coder}, "host": EVIL})
    write(path / "evaluation.json", {"shapes": {"prompts": 64, "colour": 0.953}, "autoencoder": {"psnr": 31.25}})
    pixels_THWC = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    for step in (10, 20):
        show(path / "samples" / "coder", step, "clip_00.gif", encode_gif(pixels_THWC, fps=4))
        show(path / "samples" / "videos", step, "prompt_00.png", encode_png(pixels_THWC[0]))
    show(path / "samples" / "videos", 20, "prompt_01.png", encode_png(pixels_THWC[1]))
    write(path / "samples" / "coder" / "prompts.json", {"clip_00": "a blue square"})
    write(path / "samples" / "videos" / "prompts.json", {"prompt_00": EVIL, "prompt_01": "second"})
    (path / "prepared").mkdir()
    lines = [json.dumps({"source_id": f"clip{i}{EVIL}", "reason": f"reason {i}"}) for i in range(60)]
    (path / "prepared" / "skipped.jsonl").write_text("\n".join([*lines, '{"source']))
    return path


def test_every_part_is_there(workdir):
    text = report(workdir).read_text()
    page = Page(text)
    assert page.headings == [
        "Samples in training",
        "Evaluation",
        "Reconstructions",
        "Curves",
        "Stages",
        "Skipped clips",
        "Run",
        "Config",
    ]
    for words in (
        "run <1>",
        "2 min 05 s",
        "1.25 GB",
        "98.4%",
        "2.1%",
        "1234",
        "95.3%",
        "31.25 dB",
        "20 of 40",
        "60 clips, the first 50",
        "reason 49",
        "step 10",
        "step 20",
        "a blue square",
        "second",
        "gradient norm",
    ):
        assert words in page.words, words
    assert "reason 50" not in page.words
    assert text.count("<svg") == 2 + 3 + 1


def test_groups_of_prompts_are_shares_and_pictures_of_verdicts_are_named(workdir):
    groups = [{"by": "shape", "group": "circle", "prompts": 3, "clean": 2 / 3}]
    write(workdir / "evaluation.json", {"size_wider": {"size": "9x32x48", "clean": 0.25, "groups": groups}})
    folder = workdir / "samples" / "evaluation"
    folder.mkdir()
    for name in ("shapes", "size_wider_verdicts"):
        (folder / f"{name}.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    text = report(workdir).read_text()
    page = Page(text)
    for words in ("size wider groups", "circle", "66.7%", "25.0%", "samples/evaluation/size_wider_verdicts.png"):
        assert words in page.words, words
    assert "Clean: one whole object" in page.words
    assert len(page.images) == 5 + 1


def test_a_held_out_loss_has_a_curve_and_heat_maps(workdir):
    with MetricsWriter(workdir) as metrics:
        for step, loss in ((10, 0.5), (20, 0.4)):
            scalars = {"heldout_loss": loss, "heldout_stderr": 0.01, "heldout_loss_level_0.0625": 2 * loss}
            metrics.write("videos", step, {**scalars, "heldout_loss_level_0.188": loss, "heldout_loss_frames_9": loss})
    text = report(workdir).read_text()
    words = Page(text).words
    for said in ("Held-out loss ± 0.01", "Held-out loss by noise level", "0.0625", "frames 9", "step 10 to 20"):
        assert said in words, said
    assert "by size" not in words
    assert text.count('opacity="0.15"') == text.count('opacity="1.00"') == 3, "of each row the highest and the lowest"
    assert "heldout" not in words, "no curve among the others"


def test_the_text_of_users_is_escaped_and_the_page_is_self_contained(workdir):
    text = report(workdir).read_text()
    page = Page(text)
    assert "script" not in page.tags
    # In a caption, the facts of the run and the names of skipped clips; as JSON in the config.
    assert page.words.count(EVIL) == 1 + 1 + 50
    assert page.words.count(json.dumps(EVIL, ensure_ascii=False)) == 1
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in text
    assert "url(" not in text


def test_names_that_are_no_text_do_not_cost_the_report(workdir):
    skipped = workdir / "prepared" / "skipped.jsonl"
    skipped.write_text(json.dumps({"source_id": "\udcff\x1b[2J.mp4", "reason": "is bad"}))
    (workdir / "heldout").mkdir()
    (workdir / "heldout" / "skipped.jsonl").write_text(json.dumps({"source_id": "held.mp4", "reason": "is torn"}))
    write(workdir / "samples" / "coder" / "prompts.json", {"clip_00": "\udcfe.mp4"})
    page = Page(report(workdir).read_text(encoding="utf-8"))
    assert r"\udcff\x1b[2J.mp4" in page.words
    assert "held.mp4" in page.words, "one that was held out"
    assert r"\udcfe.mp4" in page.words


def test_pictures_are_inside_unchanged_and_enlarged_by_whole_factors(workdir):
    page = Page(report(workdir).read_text())
    assert len(page.images) == 2 + 3
    first = page.images[0]
    kind, data = first["src"].removeprefix("data:").split(";base64,")
    assert kind == "image/png"
    assert base64.b64decode(data) == (workdir / "samples/videos/000010/prompt_00.png").read_bytes()
    assert (int(first["width"]) % 32, int(first["height"]) % 24) == (0, 0)
    assert int(first["width"]) >= 96
    assert first["class"] == "small"
    assert page.images[-1]["src"].startswith("data:image/gif")


def test_a_huge_picture_becomes_a_small_still(workdir):
    pixels_THWC = np.random.default_rng(0).integers(0, 256, (4, 900, 900, 3), dtype=np.uint8)
    show(workdir / "samples" / "videos", 20, "prompt_02.gif", encode_gif(pixels_THWC, fps=4))
    page = Page(report(workdir).read_text())
    still = page.images[3]
    assert still["src"].startswith("data:image/png")
    assert (still["width"], still["class"]) == ("480", "")


def test_at_most_six_moments_the_first_and_the_last_among_them(workdir):
    content = (workdir / "samples/videos/000010/prompt_00.png").read_bytes()
    for step in range(10, 210, 10):
        show(workdir / "samples" / "videos", step, "prompt_00.png", content)
    words = Page(report(workdir).read_text()).words
    assert len(re.findall(r"step \d+", words.split("Reconstructions")[0])) == 6
    assert "step 200" in words


def test_an_empty_workdir_has_a_report(tmp_path):
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert Page(path.read_text()).headings == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_page_opens_with_what_was_judged_and_what_was_sampled_before_any_number(workdir):
    sheets = workdir / "samples" / "evaluation"
    sheets.mkdir()
    pixels_THWC = np.random.default_rng(1).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    pictures = {"shapes.gif": encode_gif(pixels_THWC, fps=4), "worst_reconstructions.png": encode_png(pixels_THWC[0])}
    for name, content in pictures.items():
        (sheets / name).write_bytes(content)
    text = report(workdir).read_text()
    assert Page(text).headings[:3] == ["Samples", "Samples in training", "Evaluation"]
    body = text[text.index("<header>") :]
    sheet, worst = (body.index(base64.b64encode(content).decode()) for content in pictures.values())
    places = [sheet, body.index("Samples in training"), body.index('class="tiles"'), body.index("95.3%"), worst]
    assert places == sorted(places)
    assert "<td>" not in body[:sheet]


def test_every_picture_has_a_title_its_prompts_and_words_for_those_who_cannot_see_it(workdir):
    sheets = workdir / "samples" / "evaluation"
    sheets.mkdir()
    clips = [np.full((2, 8, 8, 3), 60 * n, np.uint8) for n in range(4)]
    show_sheet(sheets, "shapes", clips * 2, [f"prompt {n} {EVIL}" for n in range(8)], fps=4.0)
    show_sheet(sheets, "task_connect", clips, ["a red circle, then a blue square"] * 4, fps=4.0)
    (sheets / "worst_reconstructions.png").write_bytes(encode_png(clips[0][0]))
    (sheets / "mine.gif").write_bytes(encode_gif(clips[0], fps=4, facts={"prompt": 3}))
    text = report(workdir).read_text()
    page = Page(text)
    assert "script" not in page.tags
    titles = (
        "Held-out prompts",
        "Task connect: one video, a transition, another",
        "Mine",
        "Worst reconstructions: clip",
    )
    for said in (*titles, "8 clips, row by row", "4 clips, row by row", f"prompt 7 {EVIL}", "the prompts"):
        assert said in page.words, said
    assert page.words.count("a red circle, then a blue square") == 4
    alts = [image["alt"] for image in page.images]
    assert all(alts), "none is empty"
    assert alts == [image["title"] for image in page.images]
    assert f"{EVIL}, at step 10" in alts
    assert "a blue square, at step 20" in alts
    assert any(alt.startswith(f"Held-out prompts: prompt 0 {EVIL}; prompt 1") for alt in alts)
    assert max(map(len, alts)) <= 303


def test_rows_of_samples_name_their_files_and_counters_say_what_they_count(workdir):
    with MetricsWriter(workdir) as metrics:
        counts = {"skipped": 1, "unbroken": 1, "spikes": 0, "digest": 3735928559}
        metrics.write("videos", 21, {"loss": 0.1, "gradient_norm": 2.0} | counts)
    text = report(workdir).read_text()
    words = Page(text).words
    assert "prompt_00" in words
    assert "prompt_01" in words
    assert "clip_00" in words
    for said in (
        "steps skipped in a row: so many of the latest steps changed nothing",
        "spikes: so many steps had a loss",
    ):
        assert said in words, said
    assert "unbroken" not in words
    assert "digest" not in words, "it is no quantity"
    assert text.count("<svg") == 2 + 3 + 1 + 3


def test_the_groups_of_an_evaluation_are_a_table(workdir):
    groups = [{"frames": "1", "size": "24x40", "psnr": 31.5}, {"frames": "9", "size": EVIL, "psnr": 28.25, "ssim": 0.5}]
    write(workdir / "evaluation.json", {"autoencoder": {"psnr": 30.0, "groups": groups, "worst": ["not", "records"]}})
    page = Page(report(workdir).read_text())
    for said in ("autoencoder groups", "frames", "24x40", "31.50 dB", "28.25 dB", "30.00 dB", EVIL):
        assert said in page.words, said
    assert "not" not in page.words.split()


def test_scores_of_captions_are_shares_by_attribute(workdir):
    scores = {"precision": {"colour": 1.0, "motion": 0.9386}, "exact": 0.953, "cider": 0.75, "clips": 256}
    write(workdir / "evaluation.json", {"captions": scores})
    words = Page(report(workdir).read_text()).words
    for said in ("colour 100.0%, motion 93.9%", "95.3%", "0.75", "256"):
        assert said in words, said


def test_damaged_inputs_leave_their_part_out(workdir):
    (workdir / "run.json").write_text("{")
    (workdir / "evaluation.json").write_text("[1, 2]")
    (workdir / "config.json").write_text('{"run": 3, "stages": {"videos": 4}}')
    (workdir / "samples/videos/000010/prompt_00.png").write_bytes(b"not a picture")
    (workdir / "samples/videos/prompts.json").write_text("")
    page = Page(report(workdir).read_text())
    assert "Evaluation" not in page.headings
    assert len(page.images) == 4
    assert "prompt_00" in page.words


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.314, "0.31 s"), (42.3, "42 s"), (185, "3 min 05 s"), (7619, "2 h 06 min")]
)
def test_durations_in_words(seconds, shown):
    assert duration(seconds) == shown


def test_stages_that_a_run_leaves_out_have_no_row():
    config = {"run": ["first", "then"], "stages": {"first": {"kind": "autoencoder"}, "then": {"kind": "prepare"}}}
    assert list(run_page._stages(config, {}, {}, ["first", "then"])) == ["first", "then"]
    assert list(run_page._stages(config, {}, {}, ["then"])) == ["then"]
    done = {"stages": {"more": {"kind": "diffusion"}}}
    assert list(run_page._stages(config, done, {}, ["then"])) == ["then", "more"], "of an earlier config"


def test_rates_that_run_json_has_not_are_those_of_the_last_metrics():
    """As of a stage that was started again with no step left."""
    lines = [{"stage": "videos", "step": 8, "tokens_per_second": 90.0, "fill": 0.9}]
    lines.append({"stage": "videos", "step": 8, "heldout_loss": 0.5})
    config = {"run": ["videos"], "stages": {"videos": {"kind": "diffusion", "steps": 8}}}
    for own in ({}, {"tokens_per_second": 70.0}):
        done = {"stages": {"videos": {"steps": 8, **own}}}
        (facts,) = run_page._stages(config, done, {"videos": lines}, ["videos"]).values()
        assert facts == {"kind": "diffusion", "steps": 8, "tokens_per_second": 90.0, "fill": 0.9, **own}
    (facts,) = run_page._stages(config, {}, {"videos": lines}, ["videos"]).values()
    assert (facts["steps"], facts["fill"]) == ("8 of 8", 0.9)
