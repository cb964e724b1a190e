# ListOps as 2048 token ids. Unpack lra_release under data.
data_preprocessor = dict(num_classes=10)

train_pipeline = test_pipeline = [
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=50,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='mmcontext.LRAListOps',
        data_root='data/lra_release/listops-1000',
        split='train',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    dataset=dict(
        type='mmcontext.LRAListOps',
        data_root='data/lra_release/listops-1000',
        split='val',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = dict(**val_dataloader)
test_dataloader['dataset'] = dict(val_dataloader['dataset'], split='test')
test_evaluator = val_evaluator
