model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmcontext.CCNN',
        in_channels=1,
        channels=140,
        num_blocks=4,
        conv_cfg=dict(
            type='mmcontext.SeparableFlexConv1d',
            kernel_size='same',
            causal=True,
            kernel_cfg=dict(type='MAGNet', hidden_channels=32, num_layers=3),
            mask_cfg=dict(init=0.075, threshold=0.1))),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=140,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, ),
        init_cfg=dict(type='Kaiming', layer='Linear', mode='fan_in')))
