# Pathfinder, as images.
_base_ = './ccnn_lra_pathfinder.py'

data_preprocessor = dict(mean=[0.], std=[255.])

pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
