model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcontext.RedNet', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000),
        topk=(1, 5)))
