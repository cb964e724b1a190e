model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcontext.PyConvHGResNet', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5),
        # As torch draws it: uniform in +-1 / sqrt(in_channels), bias alike.
        init_cfg=None))
