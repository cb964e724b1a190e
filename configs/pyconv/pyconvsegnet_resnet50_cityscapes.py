_base_ = [
    '../_base_/models/pyconvsegnet.py',
    '../_base_/datasets/cityscapes_769x769_rotate.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/pyconvsegnet_80k.py',
    '../_base_/runtime.py',
]

train_dataloader = dict(batch_size=4)
model = dict(
    data_preprocessor=dict(size=(769, 769)),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
