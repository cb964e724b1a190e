_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/ccnn_pmnist.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=2985.6332826938724)),
        input_drop_rate=0.2))

optim_wrapper = dict(optimizer=dict(lr=0.02))
