_base_ = [
    '../_base_/models/ccnn_6_380_sequence.py',
    '../_base_/datasets/ccnn_speech_raw.py',
    '../_base_/schedules/ccnn_160e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=1295.61)),
        drop_rate=0.2))

train_dataloader = dict(batch_size=40)
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-06)]
