"""What is measured: one row for every metric that training or an evaluation writes.

The report, TensorBoard, the printed tables, the help of `evaluate` and the tables of docs/evaluation.md take names,
units and meanings from here. A new metric is what computes it, and a row.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, Literal

MetricPart = Literal["training", "autoencoder", "prompts", "control", "distribution", "captions"]

_EVEN_MEAN = "mean over clips"
_SHARE = "share of prompts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
      name: Its key; a * stands for a network, or for a number of frames.
      part: Where it is written.
      title: What to call it before a reader.
      unit: Of its values; "" for none, "share" of what lies in [0, 1] and is read as per cent.
      needs: The option of `evaluate` that gives the weights that it needs; "" for none.
      of: Whether one clip has a value, or only a set of clips.
      merges: How values of parts become one of the whole.
      better: Which way is better; "" where it should be as it is in real clips, or only explains.
      says: What it is, in a sentence.
    """

    name: str
    part: MetricPart
    title: str
    unit: str = ""
    needs: str = ""
    of: Literal["clip", "set", "step"] = "clip"
    merges: str = _EVEN_MEAN
    better: Literal["up", "down", ""] = ""
    says: str

    @property
    def shown_name(self) -> str:
        """The name as a page has it."""
        return self.name.replace("*", "N" if "drift" in self.name else "NETWORK")


def _trained(name: str, title: str, says: str, **facts: Any) -> Metric:
    return Metric(name=name, part="training", title=title, says=says, of="step", merges="mean over steps", **facts)


def _followed(name: str, says: str) -> Metric:
    return Metric(name=name, part="prompts", title=name, unit="share", merges=_SHARE, better="up", says=says)


def _controlled(name: str, title: str, says: str, **facts: Any) -> Metric:
    return Metric(name=name, part="control", title=title, says=says, **facts)


def _compared(name: str, title: str, says: str, **facts: Any) -> Metric:
    together = {"of": "set", "merges": "of all features together"}
    return Metric(name=name, part="distribution", title=title, says=says, **{**together, **facts})


def _told(name: str, title: str, says: str, **facts: Any) -> Metric:
    share = {"unit": "share", "better": "up", "of": "set", "merges": "share of all clips"}
    return Metric(name=name, part="captions", title=title, says=says, **{**share, **facts})


def _moved(name: str, title: str, says: str, **facts: Any) -> Metric:
    return Metric(name=name, part="distribution", title=title, says=says, **facts)


METRICS: tuple[Metric, ...] = (
    _trained("loss", "loss", "what training minimises, mean over the tokens of the step", better="down"),
    _trained(
        "heldout_loss",
        "held-out loss",
        "loss on clips that training never sees: of a transformer at fixed noise, of a captioner that of writing their "
        "first captions",
        better="down",
    ),
    _trained("heldout_stderr", "error of the held-out loss", "standard error of that over clips"),
    _trained("heldout_loss_*", "held-out loss by group", "the same by noise level, size and duration", better="down"),
    _trained(
        "skipped",
        "steps skipped",
        "so many steps of the stage changed nothing, as loss or gradient was not finite or far beyond the usual",
    ),
    _trained(
        "unbroken",
        "steps skipped in a row",
        "so many of the latest steps changed nothing; guard.max_skipped_steps of them end the run",
    ),
    _trained(
        "spikes",
        "spikes",
        "so many steps had a loss or gradient further from the usual than guard.spike_deviations allows",
    ),
    Metric(
        name="psnr",
        part="autoencoder",
        title="PSNR",
        unit="dB",
        better="up",
        says="of each clip over all its pixels, then the mean over clips; 100 stands for equal clips",
    ),
    Metric(
        name="psnr_resampled",
        part="autoencoder",
        title="PSNR of resampling",
        unit="dB",
        says="of clips scaled down to as many numbers as the latent has and up again, Lanczos: what is to be beaten",
    ),
    Metric(
        name="ssim",
        part="autoencoder",
        title="SSIM",
        better="up",
        says="Wang et al. 2004, mean over frames, channels and clips",
    ),
    Metric(
        name="lpips",
        part="autoencoder",
        title="LPIPS",
        needs="lpips",
        better="down",
        says="perceptual distance, mean over frames and clips",
    ),
    Metric(
        name="rfvd_random",
        part="autoencoder",
        title="rFVD of random features",
        of="set",
        merges="of all features together",
        better="down",
        says="Fréchet distance between features of clips and of their reconstructions by a random network; it compares "
        "only with itself",
    ),
    Metric(
        name="rfvd_*",
        part="autoencoder",
        title="rFVD",
        needs="video_features",
        of="set",
        merges="of all features together",
        better="down",
        says="the same with the features of a trained network, as `rfvd_i3d`",
    ),
    Metric(
        name="latent_mean",
        part="autoencoder",
        title="mean of latents",
        of="set",
        merges="root mean square over channels",
        says="of latents normalised as for the transformer; 0 fits it",
    ),
    Metric(
        name="latent_std",
        part="autoencoder",
        title="deviation of latents",
        of="set",
        merges="root mean square over channels",
        says="of latents normalised as for the transformer; 1 fits it",
    ),
    Metric(
        name="code_use",
        part="autoencoder",
        title="codes in use",
        unit="share",
        of="set",
        merges="codes that any clip has",
        better="up",
        says="share of the codes of a bottleneck `fsq` or `vq` that occur in the clips",
    ),
    Metric(
        name="dead_channels",
        part="autoencoder",
        title="dead channels",
        of="set",
        merges="variance of all latents",
        better="down",
        says="latent channels that vary by less than a hundredth of the mean deviation",
    ),
    _followed("colour", "the hue of the object, the nearest of the six"),
    _followed(
        "shape",
        "the template that overlaps the object best, of any place and size; under 0.8 overlap it is a lump and has no "
        "shape",
    ),
    _followed("motion", "the direction from the first third of the frames to the last; still: it stays where it is"),
    _followed("all", "the three above"),
    _followed("persistent", "the object is seen in every frame"),
    _followed("clean", "an eye would call it one clean object of the shape that was asked for"),
    _controlled(
        "edges_f1",
        "F1 of edges",
        "F1 of the edges of a clip and of a video that they control under a prompt of another colour, within 1 px",
        better="up",
    ),
    _controlled(
        "edges_f1_ceiling",
        "F1 of edges by the autoencoder",
        "the same of the clip through the autoencoder alone: what can be reached",
    ),
    _controlled(
        "boxes_px",
        "distance from boxes",
        "distance of the middle of an object from that of its box, on curves that training never shows, mean over "
        "frames; a whole side where the object is not seen",
        unit="px",
        better="down",
    ),
    _controlled(
        "boxes_px_floor",
        "distance from boxes by the autoencoder",
        "the same of drawn clips on these curves through the autoencoder alone: what can be reached",
        unit="px",
    ),
    _controlled(
        "boxes_lost",
        "objects lost from boxes",
        "share of these videos in which some frame lacks its object",
        unit="share",
        better="down",
    ),
    _compared(
        "fvd_random",
        "FVD of random features",
        "Fréchet distance between the features that a random network has of real and of made clips; it compares only "
        "with itself",
        better="down",
    ),
    _compared(
        "kvd_random",
        "KVD of random features",
        "kernel distance of the same features: without bias, so that it may be negative",
        better="down",
    ),
    _compared(
        "fid_random",
        "FID of random features",
        "Fréchet distance between the features of one frame of each clip, by a random network",
        better="down",
    ),
    _compared("kid_random", "KID of random features", "kernel distance of the same features", better="down"),
    _compared(
        "fvd_*",
        "FVD",
        "Fréchet video distance: `fvd_i3d` is the usual one, `fvd_videomae` the content-debiased one",
        better="down",
        needs="video_features",
    ),
    _compared("kvd_*", "KVD", "kernel distance of the same features", better="down", needs="video_features"),
    _compared(
        "fid_*",
        "FID",
        "Fréchet distance between one frame of each real clip and one of each made clip, as `fid_inception`",
        better="down",
        needs="image_features",
    ),
    _compared("kid_*", "KID", "kernel distance of the same features", better="down", needs="image_features"),
    _moved(
        "clip_similarity",
        "CLIP similarity",
        "mean over up to 8 frames of the cosine between the frame and the caption, by CLIP; no factor, no prefix",
        better="up",
        needs="text_features",
    ),
    _moved(
        "temporal_flickering",
        "temporal flickering",
        "1 less the mean absolute difference of neighbouring frames over 255: the same number as VBench's",
    ),
    _moved(
        "smoothness_blend",
        "smoothness against a blend",
        "1 less the mean absolute difference over 255 between every second frame and the mean of its neighbours",
    ),
    _moved(
        "dynamic_flow",
        "length of the flow",
        "mean length, over the fastest twentieth of the pixels, of the optical flow by pyramidal Lucas-Kanade",
        unit="sides/s",
    ),
    _moved(
        "drift_*",
        "drift over N frames",
        "how far the means and deviations of the colours of a frame move within N frames, over 255",
    ),
    _moved("latent_drift_*", "drift of latents", "the same of the latent, of deviation 1; of the run's own samples"),
    _told("precision", "precision", "by attribute: of what captions state, how much is right"),
    _told("recall", "recall", "by attribute: of what is there, how much is stated rightly"),
    _told(
        "hallucinated",
        "objects that are not there",
        "of the objects named, by colour and shape together, how many are not there",
        better="down",
    ),
    _told("exact", "whole captions right", "nothing wrong, and nothing left out but ground and size"),
    _told("unreadable", "captions that cannot be read", "no sentence of the drawn world", better="down"),
    _told("retrieval_r1", "R@1 of captions", "clips that find their plain caption first among all distinct ones"),
    _told("retrieval_r1_clips", "R@1 of clips", "distinct plain captions that find a clip of theirs first"),
    _told(
        "cider",
        "CIDEr-D",
        "against the clip's own captions, by runs of up to four words that few clips have; 0 to 10",
        unit="",
        merges="of all captions together",
    ),
    _told(
        "bleu4",
        "BLEU-4",
        "against the clip's own captions, the geometric mean of the precision of runs of up to four words; 0 to 1",
        unit="",
        merges="of all captions together",
    ),
    _told("reversed", "reversed clips", "moving clips that, played backwards, are said to move the other way"),
    _told(
        "swapped",
        "swapped colours",
        "pairs of clips of two objects that differ in which has which colour, both told rightly by colour and shape",
    ),
)


_WAYS = {"up": "larger is better", "down": "smaller is better", "": ""}
# Which value is best, by `Metric.better`, as a table says it.
BEST = {"up": "larger", "down": "smaller", "": "as real"}


def metric_of(key: str) -> Metric | None:
    """Returns the row of a key of metrics.jsonl or evaluation.json; None where there is none."""
    exact = (one for one in METRICS if one.name == key)
    return next(exact, None) or next((one for one in METRICS if fnmatch.fnmatchcase(key, one.name)), None)


def with_weights(option: str) -> str:
    """Returns the metrics that need the weights of an option, for its help."""
    return ", ".join(one.shown_name for one in METRICS if one.needs == option)


def page_table(part: MetricPart) -> str:
    """Returns the metrics of a part as a table of Markdown."""
    lines = ["| score | unit | | what it is |", "|---|---|---|---|"]
    for one in METRICS:
        if one.part == part:
            given = f"with `--{one.needs}=FILE`: " if one.needs else ""
            lines.append(f"| `{one.shown_name}` | {one.unit} | {_WAYS[one.better]} | {given}{one.says} |")
    return "\n".join(lines)


def scores_in(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name and the facts of every score among facts that has a value with an interval."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and "value" in value:
            yield name, value
