# The service for a CPU, or for an NVIDIA GPU: PyPI's own torch is the CUDA 13 build.
#   docker build -t vit-attention .
#   docker build -t vit-attention:cuda --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS= .
# Without a network, from a folder with a wheel of everything (the dependencies and setuptools):
#   docker build -t vit-attention --build-context wheels=FOLDER --build-arg PIP_NO_INDEX=1 .
# Any Debian with Python 3.11 or newer, its venv module and CA certificates will do as the base.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# Empty, unless --build-context puts a folder in its place.
FROM scratch AS wheels


# What to install, apart from the rest of pyproject.toml, so that only a change of it installs anew.
FROM ${BASE_IMAGE} AS requirements
# Of pyproject.toml, separated by commas: the faster runtime for CPUs; otel for traces.
ARG EXTRAS=fast
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        extras = [project["optional-dependencies"][name] for name in sys.argv[1].split(",") if name]; \
        print(*project["dependencies"], *sum(extras, []), sep="\n")' "${EXTRAS}" > requirements.txt


FROM ${BASE_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_FIND_LINKS=/wheels \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
# /opt/pip stays behind; /opt/venv goes into the image, without pip.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv
COPY --from=requirements /src/requirements.txt /src/constraints.txt ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-compile --only-binary :all: \
        --extra-index-url "${TORCH_INDEX}" --requirement requirements.txt --constraint constraints.txt
# Tests, headers and OpenVINO's plugins for other devices are a quarter of all that. Importing compiles what the service imports, and only that, and
# shows that it loads on this base.
RUN find /opt/venv/lib -depth \
        \( -type d \( -name tests -o -path '*/torch/test' -o -path '*/torch/include' \) \
        -o -type f -path '*/torch/bin/*' ! -name torch_shm_manager \
        -o -type f -path '*/openvino/libs/*' \( -name '*_frontend.so*' -o -name cache.json \
            -o -name '*_gpu_plugin.so' -o -name '*_npu_plugin.so' \) \) -exec rm -r {} + \
    && /opt/venv/bin/python -c 'import cv2, fastapi, httpx_retries, huggingface_hub, isal, jaxtyping, \
        PIL.ImageOps, prometheus_client, pydantic_settings, python_multipart, safetensors.torch, structlog, \
        torch, tqdm, typer, uvicorn, uvloop; PIL.Image.init()'


FROM dependencies AS project
COPY pyproject.toml LICENSE README.md ./
COPY service service
RUN --mount=type=bind,from=wheels,target=/wheels \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-deps --prefix /opt/project .


FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="vit-attention" \
      org.opencontainers.image.description="Vision Transformer labels and attention maps over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 vit \
    && useradd --no-log-init --uid 10001 --gid vit --home-dir /tmp --no-create-home --shell /usr/sbin/nologin vit
COPY --from=dependencies /opt/venv /opt/venv
# A new named volume starts as a copy of this, owner included.
COPY --chown=10001:10001 model_store /models
COPY --from=project /opt/project /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    VIT_ATTENTION_HOST=0.0.0.0 \
    VIT_ATTENTION_PORT=8000 \
    VIT_ATTENTION_MODEL_STORE=/models \
    VIT_ATTENTION_LOG_FORMAT=json
VOLUME /models
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['VIT_ATTENTION_PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["vit-attention"]
CMD ["serve"]
