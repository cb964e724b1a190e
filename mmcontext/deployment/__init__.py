"""Networks of configs as ONNX graphs of standard operators, and such graphs in place of networks.

``build_graph`` makes what is exported of a config, ``export`` writes it, ``OnnxGraph`` runs a file
and ``serve`` puts it into the model of a config.
"""
