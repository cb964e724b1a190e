model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcontext.PyConvResNet', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5),
        # As in torch: uniform in +-1 / sqrt(in_channels), also for the bias.
        init_cfg=None))
