_base_ = [
    '../_base_/models/pyconvsegnet.py',
    '../_base_/datasets/ade20k_473x473.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/pyconvsegnet_ade20k_100e.py',
    '../_base_/runtime.py',
]

train_dataloader = dict(batch_size=4)
model = dict(
    data_preprocessor=dict(size=(473, 473)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(473, 473), stride=(315, 315)))
