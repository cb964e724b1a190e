# IMDB reviews as 4096 character ids. Unpack aclImdb under data.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=2)

pipeline = [dict(type='PackInputs')]

dataset = dict(type='mmcontext.LRAText', data_root='data/aclImdb')
train_dataloader = dict(dataset=dict(dataset, split='train', pipeline=pipeline))
val_dataloader = dict(dataset=dict(dataset, split='val', pipeline=pipeline))
test_dataloader = val_dataloader
