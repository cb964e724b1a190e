# A small CCNN for a short run on two cores, on a folder of CIFAR-10 images written by
# tools/dataset_converters/cifar_npz.py.
_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/ccnn_cifar10.py',
    '../_base_/schedules/digits.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        channels=64,
        num_blocks=3,
        pools=(0, 1),
        conv_cfg=dict(kernel_cfg=dict(omega_0=1000.))),
    head=dict(in_channels=64))

data_preprocessor = dict(to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4, padding_mode='symmetric'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='data/cifar10', data_prefix='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=100,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='data/cifar10', data_prefix='val',
        pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=1e-2, weight_decay=0.),
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1))))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-5)]
auto_scale_lr = dict(base_batch_size=50)
