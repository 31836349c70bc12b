"""Open-CD: folders by split, and a configuration of its data. No torch here."""

from __future__ import annotations

from changeanywhere.exporting.folders import Folders
from changeanywhere.exporting.items import Item

CONFIG = "opencd_data.py"
LINES = """\
# Data of an Open-CD configuration: put this file first in _base_ of one of Open-CD's own, in place of its data, or
# give its path with --cfg-options. Training from Open-CD's folder:
#   _base_ = ['OUT/opencd_data.py', './configs/_base_/models/changer_r18.py',
#             './configs/_base_/default_runtime.py', './configs/_base_/schedules/schedule_40k.py']
{unset}data_root = '{{{{ fileDirname }}}}'  # this folder, says mmengine
crop_size = ({side}, {side})
train_pipeline = [
    dict(type='MultiImgLoadImageFromFile'),
    dict(type={annotations!r}),
    dict(type='MultiImgRandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='MultiImgRandomFlip', prob=0.5, direction='horizontal'),
    dict(type='MultiImgRandomFlip', prob=0.5, direction='vertical'),
    dict(type='MultiImgPhotoMetricDistortion', brightness_delta=10, contrast_range=(0.8, 1.2),
         saturation_range=(0.8, 1.2), hue_delta=10),
    dict(type='MultiImgPackSegInputs')]
test_pipeline = [
    dict(type='MultiImgLoadImageFromFile'),
    dict(type={annotations!r}),
    dict(type='MultiImgPackSegInputs')]
"""
DATALOADER = """\
{split}_dataloader = dict(
    batch_size={batch}, num_workers=4, persistent_workers=True,
    sampler=dict(type={sampler!r}, shuffle={train}),
    dataset=dict(
        type={dataset!r}, data_root=data_root, img_suffix='.png', seg_map_suffix='.png',
        format_seg_map='to_binary', {more}metainfo=metainfo,
        data_prefix=dict(img_path_from='{split}/A', img_path_to='{split}/B', seg_map_path='{split}/label'{masks}),
        pipeline={pipeline}_pipeline))
{split}_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mFscore', 'mIoU'])
"""
SAMPLERS = {"train": "InfiniteSampler", "val": "DefaultSampler", "test": "DefaultSampler"}


UNSET = {"train": "train_cfg = optim_wrapper = param_scheduler", "val": "val_cfg", "test": "test_cfg"}
"""What the user's own configuration must unset where a split has no pairs: here it would be given twice, as the
schedule, another base, defines it, and mmengine refuses that."""


class OpenCd(Folders):
    """What ``BaseCDDataset`` and, with semantic masks, ``BaseSCDDataset`` read."""

    name = "opencd"
    what = "Open-CD's folders, with a configuration of the data"
    carries = frozenset(("images", "change", "semantic", "splits"))
    images, masks = ("A", "B"), ("label1", "label2")
    tree = """\
{train,val,test}/A/KEY.png  B/KEY.png            images
{train,val,test}/label/KEY.png                   change, 0 or 255 (format_seg_map='to_binary')
{train,val,test}/label1/KEY.png  label2/KEY.png  semantic masks, grey; 0 = unknown is ignored
opencd_data.py                                   metainfo, pipelines and dataloaders of every split; its head says
                                                 what to unset where a split has no pairs"""
    load = """\
from mmengine.config import Config
from opencd.registry import DATASETS
import opencd.datasets
config = Config.fromfile("OUT/opencd_data.py")
pairs = DATASETS.build(config.train_dataloader.dataset)"""
    reader = (
        "the rules of Open-CD's `BaseCDDataset` and its loading (suffixes, `grey` decoding, `to_binary`), the "
        "configuration run as Python; Open-CD needs mmcv and torchvision"
    )

    def prepare(self) -> None:
        """See :class:`Exporter`."""
        self._side = 0

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        short = min(item.pair.change_mask.shape)
        self._side = min(self._side or short, short, 512)
        return super().add(item)

    def finish(self) -> None:
        """Write the configuration."""
        legend = self.info.legend
        semantic = legend is not None
        info = {"classes": ("unchanged", "changed"), "palette": [[0, 0, 0], [255, 255, 255]]}
        if legend is not None:
            info["semantic_classes"] = legend.names
            info["semantic_palette"] = [list(c.color) for c in legend.classes]
        annotations = "MultiImgMultiAnnLoadAnnotations" if semantic else "MultiImgLoadAnnotations"
        empty = [split for split in SAMPLERS if not self.info.splits[split]]
        unset = "".join(f"#   {UNSET[split]} = None  # there are no {split} pairs\n" for split in empty)
        parts = [LINES.format(unset=unset, side=self._side, annotations=annotations)]
        parts.append(f"metainfo = {info!r}\n")
        masks = ", seg_map_path_from='{0}/label1', seg_map_path_to='{0}/label2'" if semantic else ""
        for split in SAMPLERS:
            if split in empty:
                parts.append(f"{split}_dataloader = {split}_evaluator = None  # no pairs\n")
                continue
            parts.append(
                DATALOADER.format(
                    split=split,
                    batch=8 if split == "train" else 1,
                    train=split == "train",
                    sampler=SAMPLERS[split],
                    dataset="BaseSCDDataset" if semantic else "BaseCDDataset",
                    more="reduce_semantic_zero_label=True, " if semantic else "",
                    masks=masks.format(split),
                    pipeline="train" if split == "train" else "test",
                )
            )
        self.target.put(CONFIG, "".join(parts).encode())
