# ListOps as 2048 token ids. Unpack lra_release under data.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=10)

pipeline = [dict(type='PackInputs')]

dataset = dict(type='mmcontext.LRAListOps', data_root='data/lra_release/listops-1000')
train_dataloader = dict(dataset=dict(dataset, split='train', pipeline=pipeline))
val_dataloader = dict(dataset=dict(dataset, split='val', pipeline=pipeline))
test_dataloader = dict(dataset=dict(dataset, split='test', pipeline=pipeline))
