# ModelNet40 as 512 points with normals. Unpack ModelNet40 under data.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=40)

dataset = dict(
    type='mmcontext.ModelNet',
    data_root='data/ModelNet40',
    num_points=512,
    pipeline=[dict(type='PackInputs')])
train_dataloader = dict(batch_size=16, dataset=dict(dataset, split='train'))
val_dataloader = dict(batch_size=16, dataset=dict(dataset, split='test'))
test_dataloader = val_dataloader
