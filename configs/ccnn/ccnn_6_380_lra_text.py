_base_ = [
    '../_base_/models/ccnn_6_380_sequence.py',
    '../_base_/datasets/ccnn_lra_text.py',
    '../_base_/schedules/ccnn_60e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=2966.605), mask_cfg=dict(init=0.03)),
        drop_rate=0.3,
        drop_type='element'),
    head=dict(_delete_=True, type='mmcontext.BinaryClsHead', in_channels=380))

train_dataloader = dict(batch_size=25)
optim_wrapper = dict(optimizer=dict(lr=0.02))
