# The 8x8 digits as sequences of 64 pixels, read row by row by a small causal CCNN.
_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        channels=48,
        num_blocks=4,
        conv_cfg=dict(
            kernel_cfg=dict(hidden_channels=16, omega_0=100.),
            mask_cfg=dict(init=0.15))),
    head=dict(in_channels=48))

data_preprocessor = dict(_delete_=True, num_classes=10)
pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='mmcontext.ImageToSequence', mean=77., std=95.),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=5e-3, weight_decay=0.),
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1))))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-6)]
