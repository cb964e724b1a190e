# IMDB reviews as 4096 character ids. Unpack aclImdb under data.
data_preprocessor = dict(num_classes=2)

train_pipeline = test_pipeline = [
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=50,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='mmcontext.LRAText',
        data_root='data/aclImdb',
        split='train',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    dataset=dict(
        type='mmcontext.LRAText',
        data_root='data/aclImdb',
        split='val',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
