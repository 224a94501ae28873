# glm-portable on AMD MI300 and MI350; docs/containers.md explains it.
#   docker build -f docker/rocm.Dockerfile -t glm-portable:rocm .

# Of AMD: torch is built for this ROCm, so requirements.lock's own is left out below.
ARG BASE=rocm7.2.4_ubuntu24.04_py3.12_pytorch_release_2.10.0
FROM rocm/pytorch:${BASE}

ENV HF_HOME=/models

WORKDIR /opt/glm-portable
COPY requirements.lock requirements-kernels.lock ./
RUN grep -v '^torch==' requirements.lock > /tmp/without-torch.lock \
    && pip install --no-cache-dir -r /tmp/without-torch.lock \
    && pip install --no-cache-dir --no-deps -r requirements-kernels.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

EXPOSE 8000
CMD ["glm-portable", "serve", "--backend", "rocm", "--host", "0.0.0.0"]
