_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/ccnn_lra_pathfinder.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=2272.557), mask_cfg=dict(init=0.4)),
        drop_rate=0.2),
    head=dict(_delete_=True, type='mmcontext.BinaryClsHead', in_channels=140))
