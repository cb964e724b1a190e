_base_ = './ccnn_4_140_image.py'

model = dict(
    backbone=dict(
        channels=380,
        num_blocks=6,
        conv_cfg=dict(kernel_cfg=dict(hidden_channels=64))),
    head=dict(in_channels=380))
