model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmcontext.PointCCNN',
        channels=140,
        num_blocks=4,
        conv_cfg=dict(
            type='mmcontext.PointFlexConv',
            num_neighbours=256,
            kernel_cfg=dict(type='MAGNet', hidden_channels=32, num_layers=3, omega_0=500.),
            mask_cfg=dict(init=0.075))),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(
        type='LinearClsHead',
        num_classes=40,
        in_channels=140,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, ),
        init_cfg=dict(type='Kaiming', layer='Linear', mode='fan_in')))
