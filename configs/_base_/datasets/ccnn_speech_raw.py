# Ten words as 16000 samples. Unpack Speech Commands v0.02 under data/speech_commands.
_base_ = './ccnn_speech_mfcc.py'

train_dataloader = dict(batch_size=20, dataset=dict(features='raw'))
val_dataloader = dict(batch_size=20, dataset=dict(features='raw'))
test_dataloader = val_dataloader
