"""LitServe + transformers, batching on: `python -m benchmarks.peers.litserve_app --port N`.

One API for the three tasks, so that one model in one worker answers them all, in shared batches.
"""

from __future__ import annotations

import argparse

import litserve as ls
import torch

from benchmarks.peers.arithmetic import answer, read
from benchmarks.peers.vit import ViT


class AttentionAPI(ls.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=8, batch_timeout=0.01)
        self.architecture = model

    def setup(self, device: str) -> None:
        self.vit = ViT(self.architecture)

    def decode_request(self, request):
        image = read(request["image"].file.read())
        pixels = self.vit.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return request["task"], image.size, pixels

    def batch(self, inputs):
        return inputs

    def predict(self, inputs):
        pixels = torch.stack([pixels for _, _, pixels in inputs])
        attention = any(task != "predict" for task, _, _ in inputs)
        logits, attentions = self.vit(pixels, attention)
        return [
            (task, size, logits[i], [block[i] for block in attentions])
            for i, (task, size, _) in enumerate(inputs)
        ]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        task, size, logits, attentions = output
        with torch.inference_mode():
            return answer(task, size, logits, attentions, self.vit.names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="B/16")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    server = ls.LitServer(AttentionAPI(arguments.model), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
