# glm-portable on NVIDIA Hopper and Blackwell; docs/containers.md explains it.
#   docker build -f docker/cuda.Dockerfile -t glm-portable:cuda .

ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-base-ubuntu24.04

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

# gcc and Python's headers: triton builds its launchers with them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/models

WORKDIR /opt/glm-portable
COPY requirements.lock requirements-kernels.lock ./
# One after the other: torch asks for a triton of its own, older than the kernels are written to.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} -r requirements.lock \
    && pip install --no-cache-dir -r requirements-kernels.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

EXPOSE 8000
CMD ["glm-portable", "serve", "--backend", "cuda", "--host", "0.0.0.0"]
