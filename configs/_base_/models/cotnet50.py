model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcontext.CoTNet', depth=50, drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='mmcontext.DropoutClsHead',
        num_classes=1000,
        in_channels=2048,
        dropout=0.25,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000),
        topk=(1, 5),
        # As in torch: uniform in +-1 / sqrt(in_channels), also for the bias.
        init_cfg=None),
    # Without probs the two are equally likely: the authors' switch probability of 0.5.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
