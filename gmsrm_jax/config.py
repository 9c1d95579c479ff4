"""Every setting of the project: one home each, with its meaning, unit and check.

`experiments/*.py` build a `Config`; `--set KEY=VALUE` changes one field of it. Checks run when a dataclass is built.
"""

from __future__ import annotations

import dataclasses

from gmsrm_jax.errors import check_ranges, check_seed, one_of, require

# Names that settings and flags choose from; their owners are inference/tiling.py, evaluation/ and data/.
STRATEGIES = ("auto", "full", "crop", "resize")
PROTOCOLS = ("ours", "edgeconnect", "aotgan", "hint", "mat", "spl")
BASELINES = ("telea", "navier_stokes", "biharmonic", "initial", "mean")
LAYOUTS = ("auto", "folder", "paris", "celebahq", "places2", "arrayrecord")
# `encoder` includes the recognition encoder; `features` is the network of the feature terms.
REMAT = ("encoder", "generator", "decoder", "discriminator", "features")
MASK_KINDS = (
  *("free_form", "thick", "medium", "thin", "rectangles", "centre", "comodgan", "half", "outpaint"),
  *("lines", "objects", "occlusions"),
)


def names_in(text: str) -> list[str]:
  """The names that a setting lists with commas between."""
  return [name.strip() for name in text.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Networks. `size` names a preset of `SIZES`; `--set model.size=` takes all of it, then other settings apply."""

  size: str  # tiny, small, base or large
  image_size: int  # side of the square training image, pixels
  widths: tuple[int, ...]  # channels per scale, from half resolution (after space-to-depth by 2) to the bottleneck
  blocks: int  # residual blocks per scale in encoder, generator and decoder each
  context_blocks: int  # self-attention blocks on the bottleneck grid
  heads: int  # attention heads of a context block
  discriminator_width: int  # channels of the discriminator's first layer, doubled by each later one
  discriminator_layers: int  # strided layers of the discriminator
  discriminator: str = "pixels"  # what it sees: pixels, or features (of VGG16; discriminator_* then count for nothing)
  oblique: bool = False  # heads of the context blocks see places along axes of their own, not rows and columns
  smooth_upsampling: bool = False  # cells overlap where the decoder doubles the size, pixels at last: no weave

  def __post_init__(self):
    positive = "image_size blocks discriminator_width discriminator_layers"
    check_ranges(self, "model.", positive=positive, not_negative="context_blocks")
    one_of("model.discriminator", self.discriminator, ("pixels", "features"))
    require(len(self.widths) >= 2, f"model.widths={self.widths} needs at least two scales")
    for width in self.widths:
      require(width > 0 and width % 8 == 0, f"model.widths={self.widths}: make {width} a positive multiple of 8")
    require(
      self.heads > 0 and self.widths[-1] % (4 * self.heads) == 0,
      f"model.heads={self.heads}: 4 x heads must divide the bottleneck width {self.widths[-1]}",
    )
    below = self.image_size // self.stride
    require(
      below * self.stride == self.image_size,
      f"model.image_size={self.image_size} is no multiple of {self.stride}: use {(below + 1) * self.stride}",
    )

  @property
  def stride(self) -> int:
    """Pixels per position of the bottleneck grid."""
    return 2 ** len(self.widths)


SIZES: dict[str, ModelConfig] = {
  "tiny": ModelConfig("tiny", 64, (32, 64, 128), 1, 2, 4, 32, 3),
  "small": ModelConfig("small", 128, (32, 128, 256), 1, 2, 8, 32, 3),
  "base": ModelConfig("base", 256, (64, 128, 256, 384), 2, 4, 8, 64, 4),
  "large": ModelConfig("large", 512, (64, 128, 256, 384, 512), 2, 6, 8, 64, 4),
}


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
  """The generative memory: codebook and retrieval."""

  enabled: bool = True  # false: an MLP of the same size stands in for the codebook (the no-memory twin)
  pretrain: bool = True  # false: stage 1 is skipped and the memory is learned from scratch in stage 2
  kind: str = "soft"  # soft: a read is a mixture of all slots; hard: one slot of each group, chosen
  num_groups: int = 16  # soft: sets of slots, each with an anchor; 1 is a flat memory; hard: parts of a read
  slots_per_group: int = 32  # slots in each group
  slot_dim: int = 128  # channels of a read; soft: of a slot's key and of its value, hard: of one slot of each group
  heads: int = 4  # soft: heads of the retrieval attention, over slot_dim
  group_temperature: float = 0.2  # soft: initial softmax temperature on cosine scores of the anchors
  slot_temperature: float = 0.2  # softmax temperature on cosine scores of the keys; soft: the initial one
  reasoning_blocks: int = 0  # hard: blocks of the transformer that predicts slots, given some; 0: all at once
  reasoning_share: float = 0.0  # hard: share of stage 2, at its start, that learns to predict slots and no more
  revive_every: int = 50  # steps of stage 1 between revivals of dead slots; 0 never
  finetune: float = 0.0  # learning-rate factor of the memory in stage 2; 0 keeps it frozen

  def __post_init__(self):
    positive = "num_groups slots_per_group slot_dim heads group_temperature slot_temperature"
    rest = {"not_negative": "revive_every finetune reasoning_blocks", "share": "reasoning_share"}
    check_ranges(self, "memory.", positive=positive, **rest)
    one_of("memory.kind", self.kind, ("soft", "hard"))
    parts, name = (self.num_groups, "num_groups") if self.hard else (self.heads, "heads")
    require(
      self.slot_dim % parts == 0,
      f"memory.slot_dim={self.slot_dim} is not divisible by memory.{name}={parts}: choose a multiple",
    )

  @property
  def num_slots(self) -> int:
    return self.num_groups * self.slots_per_group

  @property
  def hard(self) -> bool:
    return self.kind == "hard"


@dataclasses.dataclass(frozen=True)
class VariationConfig:
  """Conditional stochastic variation: noise in the memory's priors."""

  enabled: bool = True  # false: no noise and no strength heads; else every second image trains with two samples
  start: float = 0.0  # share of stage 2 before images are filled twice: until then all train the deterministic fill

  def __post_init__(self):
    check_ranges(self, "variation.", share="start")


@dataclasses.dataclass(frozen=True)
class MaskConfig:
  """Holes drawn on the fly: a kind by its weight, then an area uniform in [area_min, area_max]."""

  free_form: float = 1.0  # weight of random brush walks (DeepFill v2)
  thick: float = 1.0  # weight of LaMa-style wide strokes and boxes
  medium: float = 1.0  # weight of LaMa-style medium strokes
  thin: float = 0.5  # weight of LaMa-style narrow strokes
  rectangles: float = 1.0  # weight of random rectangles
  centre: float = 0.25  # weight of a centred square
  comodgan: float = 0.0  # weight of CoModGAN's zigzag walks with half- and full-size boxes
  half: float = 0.0  # weight of all that lies on one side of a straight cut
  outpaint: float = 0.0  # weight of the border around a window
  lines: float = 0.0  # weight of parallel lines or a grid
  objects: float = 0.0  # weight of shapes from objects_folder, scaled, turned and placed
  occlusions: float = 0.0  # weight of pieces of the masks in occlusions_folder, turned and dilated
  objects_folder: str = ""  # folder of mask files, a white shape in each (such as instance masks)
  occlusions_folder: str = ""  # folder of raw occlusion masks, white in the hole (such as NVIDIA's training masks)
  area_min: float = 0.05  # smallest hole area, share of the image
  area_max: float = 0.6  # largest hole area, share of the image

  def __post_init__(self):
    check_ranges(self, "mask.", positive="area_max", not_negative=" ".join(MASK_KINDS), share="area_min area_max")
    for kind in ("objects", "occlusions"):
      require(
        getattr(self, kind) == 0 or getattr(self, f"{kind}_folder") != "",
        f"mask.{kind}={getattr(self, kind)} needs files: set mask.{kind}_folder to a folder of mask files",
      )
    require(any(getattr(self, kind) > 0 for kind in MASK_KINDS), "every mask weight is 0: give one mask kind a weight")
    low, high = self.area_min, self.area_max
    require(low <= high, f"mask.area_min={low} exceeds area_max={high}: swap them")

  @property
  def weights(self) -> dict[str, float]:
    """Mask kind to its weight, in the order of MASK_KINDS."""
    return {kind: getattr(self, kind) for kind in MASK_KINDS}


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Images: where they are and how they are cropped."""

  train: str = ""  # a data set's root, any folder of images, a prepared folder, tfds:NAME[@DATA_DIR], or 'demo'
  val: str = ""  # held-out images, any of these; empty: the held-out part of data.train
  layout: str = "auto"  # of data.train: auto (seen from the tree), folder, paris, celebahq, places2 or arrayrecord
  val_share: float = 0.02  # held out by a hash where data.val is empty and data.train has no held-out part of its own
  stored_side: int = 0  # --mode=prepare: largest short side, pixels; 0: image_size / crop_min, so no crop is enlarged
  stored_format: str = "jpeg"  # --mode=prepare: of images that are resized: jpeg (quality 95) or png (lossless)
  crop_min: float = 0.8  # smallest random crop, share of the image's short side; 1 takes the whole short side
  flip: bool = True  # mirror half of the training images left-right
  jitter: float = 0.0  # brightness, contrast and saturation of training images vary by up to this share; below 1
  threads: int = 2  # threads that decode images, where there are no workers
  workers: int = 0  # processes that decode images instead, the same batches; 0 decodes in this process
  prefetch: int = 16  # decoded examples kept ready, in whole batches with workers
  synthetic: bool = False  # one fixed random batch instead of data.train: measures the model alone, trains nothing

  def __post_init__(self):
    check_ranges(self, "data.", positive="threads prefetch", not_negative="stored_side workers")
    require(0 < self.crop_min <= 1, f"data.crop_min={self.crop_min} is no share: give a number above 0, up to 1")
    one_of("data.layout", self.layout, LAYOUTS)
    require(0 < self.val_share < 1, f"data.val_share={self.val_share} leaves a split empty: give a share within 0 to 1")
    one_of("data.stored_format", self.stored_format, ("jpeg", "png"))
    require(0 <= self.jitter < 1, f"data.jitter={self.jitter} is out of range: give a number from 0 to below 1")


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms; 0 leaves a term out of the step."""

  features: str = "vgg16"  # network of the perceptual and style terms: vgg16, or recognition (no ImageNet weights)
  vgg_stages: int = 5  # VGG16 stages the feature terms compare: relu1_2 alone up to relu1_2 … relu5_3
  feature_crop: int = 0  # side of the random window the feature terms look at, pixels; 0 is the whole image
  l1: float = 6.0  # stage 1: mean absolute error of the reconstruction
  hole: float = 6.0  # stage 2: L1 over the hole (RFR)
  hole_cell: int = 1  # side of the cells whose means this L1 compares, pixels; above 1 it leaves texture to other terms
  valid: float = 1.0  # stage 2: L1 over the known pixels (RFR)
  perceptual: float = 0.1  # both stages: L1 between features (AOT-GAN)
  style: float = 10.0  # stage 2: L1 between Gram matrices (AOT-GAN has 250; 60 drew a grid into holes here)
  adversarial: float = 2.0  # both stages: hinge loss of the generator, as hard a pull as L1 of this weight (ours)
  retrieval: float = 0.5  # stage 2: KL from the teacher's retrieval weights, over positions (CodeFormer)
  read: float = 1.0  # stage 2: squared error to the teacher's read, over positions (CodeFormer)
  retrieval_known: float = 1.0  # weight of a known position in these two, beside 1 of one that is all hole (ours)
  balance: float = 0.1  # stage 1: log(slots) minus the entropy of the mean retrieval weights (ours)
  quantisation: float = 1.0  # stage 1, hard memory: squared distance of queries and the slots they choose (VQ-VAE)
  memory_image: float = 1.0  # stage 2: L1 over the hole of the memory generator's own image (ours)

  def __post_init__(self):
    one_of("loss.features", self.features, ("vgg16", "recognition"))
    require(1 <= self.vgg_stages <= 5, f"loss.vgg_stages={self.vgg_stages} is out of range: give 1 to 5")
    numbers = [field.name for field in dataclasses.fields(self) if field.name != "features"]
    check_ranges(self, "loss.", positive="hole_cell", not_negative=" ".join(numbers))


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """Length and optimiser of one training stage."""

  steps: int = 1000  # training steps; 0 skips the stage
  learning_rate: float = 2e-4  # peak of Adam's learning rate for the generator side
  discriminator_rate: float = 2e-4  # peak of Adam's learning rate for the discriminator
  phase_steps: int = 0  # steps that the shares are of, 0: `steps`; a run that is made longer keeps those of before
  warmup: int = 100  # steps of linear warm-up, at most a fifth of the stage
  adversarial_start: float = 0.3  # share of the stage after which the adversarial term is switched on
  features_start: float = 0.0  # share of the stage after which the perceptual and style terms are switched on
  half_until: float = 0.0  # share of the stage that trains at half the image size, for a quarter of the work
  beta1: float = 0.9  # Adam
  clip_norm: float = 5.0  # gradients are scaled down to this global norm
  ema_decay: float = 0.999  # decay of the parameter average; warmed up as (1 + step) / (10 + step)

  def __post_init__(self):
    positive = "learning_rate discriminator_rate clip_norm"
    share = "adversarial_start features_start half_until beta1 ema_decay"
    check_ranges(self, "", positive=positive, not_negative="steps phase_steps warmup", share=share)
    require(self.beta1 < 1, f"beta1={self.beta1} is out of range: give a number from 0 to below 1")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Held-out evaluation: one fixed mask per image and bucket."""

  protocol: str = "ours"  # how pictures are scored: ours, or as edgeconnect, aotgan, hint, mat or spl do
  baselines: str = "telea,navier_stokes,biharmonic,initial,mean"  # fills beside the model's, with commas; empty: none
  costly: str = "auto"  # folders: VGG16, biharmonic, whole LPIPS; always, never, or auto: up to 512x512 pixels
  inception_weights: str = ""  # FID's InceptionV3, a file, or 'download'; empty: where a download left it, else no FID
  batch_size: int = 8  # images read and filled per step; does not change the numbers
  max_images: int = 0  # evaluate the first N images in name order; 0 takes all
  mask_seed: int = 2022  # with the file name and bucket, decides every evaluation mask
  masks: str = ""  # what --mode=masks wrote, a folder of mask files, or NVIDIA's test masks; empty draws them
  mask_bucket: str = "area"  # NVIDIA's masks belong to buckets by measured area, or by index // 2000
  mask_invert: bool = False  # black (or opaque) is hole in the folder of mask files instead
  mask_dilate: int = 0  # pixels by which the holes of the folder of mask files are widened all round

  def __post_init__(self):
    one_of("eval.protocol", self.protocol, PROTOCOLS)
    baselines = names_in(self.baselines)
    for name in baselines:
      one_of("eval.baselines", name, BASELINES)
    require(len({*baselines}) == len(baselines), f"eval.baselines={self.baselines!r} names one twice: name each once")
    check_seed("eval.mask_seed", self.mask_seed)
    check_ranges(self, "eval.", positive="batch_size", not_negative="max_images mask_dilate")
    one_of("eval.costly", self.costly, ("auto", "always", "never"))
    one_of("eval.mask_bucket", self.mask_bucket, ("area", "index"))


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The loop: what is written and when."""

  seed: int = 0  # root of every random stream of training
  init_from: str = ""  # folder of a trained run or export: its weights, memory included, start stage 2; no stage 1
  batch_size: int = 8  # images per step over all devices and hosts
  log_every: int = 20  # steps between lines of metrics.jsonl
  save_every: int = 500  # steps between checkpoints
  keep: int = 2  # newest checkpoints kept per stage
  keep_best: int = 0  # kept besides: those whose averages fill the panel's holes best (PSNR); 0 measures nothing
  if_save_fails: str = "stop"  # a checkpoint cannot be written, disk full: stop, or go_on to the next one
  panel_every: int = 500  # steps between sample panels
  panel_images: int = 4  # held-out images on the panel
  fsdp: int = 1  # devices over which parameters are sharded; the others replicate them
  accumulate: int = 1  # parts that a batch goes through one after the other: less memory, the same step
  remat: str = ""  # what is computed again in the backward pass, for less memory: names of REMAT, commas between
  compile_cache: str = "auto"  # folder of compiled programs; auto: a part of the user's; off: none
  profile: str = ""  # START:STOP, steps of each stage that jax.profiler traces into profile/STAGE
  convolution: str = "xla"  # of 3x3 in training: by xla, onednn or onednn_bfloat16 (on one CPU, once built)
  compute_dtype: str = "auto"  # auto (bfloat16 on gpu and tpu, float32 on cpu), float32 or bfloat16

  def __post_init__(self):
    positive = "batch_size log_every save_every keep panel_every panel_images fsdp accumulate"
    check_seed("run.seed", self.seed)
    check_ranges(self, "run.", positive=positive, not_negative="keep_best")
    one_of("run.if_save_fails", self.if_save_fails, ("stop", "go_on"))
    for name in self.recomputed:
      one_of("run.remat", name, REMAT)
    first, _, last = self.profile.partition(":")
    require(
      not self.profile or (first.isdecimal() and last.isdecimal() and int(first) < int(last)),
      f"run.profile={self.profile!r} is no range of steps: give START:STOP, such as 10:15",
    )
    one_of("run.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))
    one_of("run.convolution", self.convolution, ("xla", "onednn", "onednn_bfloat16"))

  @property
  def recomputed(self) -> tuple[str, ...]:
    """The names in `remat`."""
    return tuple(names_in(self.remat))


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment, whole."""

  name: str  # of the experiment
  model: ModelConfig
  memory: MemoryConfig = MemoryConfig()
  variation: VariationConfig = VariationConfig()
  mask: MaskConfig = MaskConfig()
  data: DataConfig = DataConfig()
  loss: LossConfig = LossConfig()
  stage1: StageConfig = StageConfig()
  stage2: StageConfig = StageConfig()
  eval: EvalConfig = EvalConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    require(
      self.run.batch_size % 2 == 0 or not self.variation.enabled,
      f"run.batch_size={self.run.batch_size} is odd, but every second image trains the variation with two samples: "
      f"use {self.run.batch_size + 1}, or variation.enabled=false",
    )
    taught = self.memory.hard and self.memory.enabled and self.memory.pretrain and self.loss.retrieval > 0
    require(
      self.memory.reasoning_blocks + self.memory.reasoning_share == 0 or (taught and not self.variation.enabled),
      "memory.reasoning_* needs memory.kind=hard, its stage 1, loss.retrieval above 0 and variation.enabled=false",
    )
    size, twice = self.model.image_size, 2 * self.model.stride
    require(
      size % twice == 0 or self.stage1.half_until == self.stage2.half_until == 0,
      f"model.image_size={size} cannot be halved to train: use {-(-size // twice) * twice}, or half_until=0",
    )
    require(
      self.model.stride % self.loss.hole_cell == 0,
      f"loss.hole_cell={self.loss.hole_cell} is no divisor of the model's stride: choose one of {self.model.stride}",
    )
    crop = self.loss.feature_crop
    require(crop <= size, f"loss.feature_crop={crop} exceeds model.image_size={size}: lower it or use 0")
