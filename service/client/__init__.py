"""The service from Python.

>>> from service.client import Client
>>> with Client("http://127.0.0.1:8000") as client:
...     answer = client.rollout("cat.jpg", overlay="heatmap")
>>> answer.labels[0].label
'tabby, tabby cat'
>>> answer.mask.array().shape  # 8-bit grey, the picture's own size
(480, 640)
>>> answer.overlay.save("cat.overlay.png")

`AsyncClient` has the same methods, to be awaited. What the service refuses is raised as the
`service.errors.ServiceError` that the server raised.
"""

from service.client.clients import AsyncClient, Client
from service.client.images import Image
from service.client.results import Blocks, Label, Model, ModelInfo, Png, Prediction, Rollout, Size

__all__ = [
    "AsyncClient",
    "Blocks",
    "Client",
    "Image",
    "Label",
    "Model",
    "ModelInfo",
    "Png",
    "Prediction",
    "Rollout",
    "Size",
]
