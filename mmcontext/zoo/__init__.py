"""The networks of the zoo by name, in plain PyTorch and in the mm libraries."""
from mmcontext.zoo.create import create_model
from mmcontext.zoo.index import get_config, list_models

__all__ = ['create_model', 'get_config', 'list_models']
