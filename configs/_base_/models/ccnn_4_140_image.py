_base_ = './ccnn_4_140_sequence.py'

model = dict(
    backbone=dict(
        in_channels=3,
        conv_cfg=dict(type='mmcontext.SeparableFlexConv2d', kernel_size=33, causal=False)),
    neck=dict(dim=2))
