# glm-portable on Ascend A2 and A3; docs/ascend.md explains each line and how to run it.
#   docker build -f docker/ascend.Dockerfile --build-arg CHIP=a3 -t glm-portable:a3 .

# a3: Atlas 800 A3 (910C). 910b: Atlas 800 A2. The operators in the image are for one of them.
ARG CHIP=a3
ARG CANN=9.1.0
FROM quay.io/ascend/cann:${CANN}-${CHIP}-ubuntu22.04-py3.11

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/glm-portable
COPY requirements-ascend.lock .
RUN pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} -r requirements-ascend.lock
COPY . .
RUN TORCH_DEVICE_BACKEND_AUTOLOAD=0 pip install --no-cache-dir --no-deps --no-build-isolation .

ENV HF_HOME=/models \
    PYTORCH_NPU_ALLOC_CONF=expandable_segments:True \
    TASK_QUEUE_ENABLE=1 \
    HCCL_BUFFSIZE=512 \
    HCCL_CONNECT_TIMEOUT=7200 \
    HCCL_OP_EXPANSION_MODE=AIV

EXPOSE 8000
# The image's entry point sources CANN's set_env.sh before this.
CMD ["glm-portable", "serve", "--backend", "ascend", "--host", "0.0.0.0"]
