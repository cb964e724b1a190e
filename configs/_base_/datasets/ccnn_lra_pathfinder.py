# Pathfinder (32x32, hard) as sequences of 1024 pixels. Unpack lra_release under data.
data_preprocessor = dict(num_classes=2)

train_pipeline = test_pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='mmcontext.ImageToSequence', std=255.),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=100,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='mmcontext.LRAPathfinder',
        data_root='data/lra_release/pathfinder32/curv_contour_length_14',
        split='train',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    dataset=dict(
        type='mmcontext.LRAPathfinder',
        data_root='data/lra_release/pathfinder32/curv_contour_length_14',
        split='val',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = dict(**val_dataloader)
test_dataloader['dataset'] = dict(val_dataloader['dataset'], split='test')
test_evaluator = val_evaluator
