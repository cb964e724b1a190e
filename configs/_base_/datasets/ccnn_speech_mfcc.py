# Ten words as 161 frames of 20 coefficients. Unpack Speech Commands v0.02 under
# data/speech_commands.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=10)

pipeline = [dict(type='PackInputs')]

dataset = dict(type='mmcontext.SpeechCommands', data_root='data/speech_commands', features='mfcc')
train_dataloader = dict(batch_size=100, dataset=dict(dataset, split='train', pipeline=pipeline))
val_dataloader = dict(batch_size=100, dataset=dict(dataset, split='val', pipeline=pipeline))
test_dataloader = dict(batch_size=100, dataset=dict(dataset, split='test', pipeline=pipeline))
