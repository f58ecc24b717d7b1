"""FastAPI + transformers, an image a pass: `python -m benchmarks.peers.plain_fastapi_app --port N`."""

from __future__ import annotations

import argparse

import torch
import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.arithmetic import answer, read
from benchmarks.peers.vit import ViT


def create_app(model: str) -> FastAPI:
    app = FastAPI()
    vit = ViT(model)

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok"}

    @app.post("/{task}")
    def attention(task: str, image: UploadFile) -> dict:
        picture = read(image.file.read())
        pixels = vit.processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            logits, attentions = vit(pixels, task != "predict")
            return answer(task, picture.size, logits[0], [block[0] for block in attentions], vit.names)

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="B/16")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.model), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
