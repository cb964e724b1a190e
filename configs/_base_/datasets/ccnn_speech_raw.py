# Ten words as 16000 samples. Unpack Speech Commands v0.02 under
# data/speech_commands.
data_preprocessor = dict(num_classes=10)

train_pipeline = test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=20,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='mmcontext.SpeechCommands',
        data_root='data/speech_commands',
        split='train',
        features='raw',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=20,
    num_workers=2,
    dataset=dict(
        type='mmcontext.SpeechCommands',
        data_root='data/speech_commands',
        split='val',
        features='raw',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = dict(**val_dataloader)
test_dataloader['dataset'] = dict(val_dataloader['dataset'], split='test')
test_evaluator = val_evaluator
