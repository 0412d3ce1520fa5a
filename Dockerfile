# Without a GPU:       docker build --tag medimg .
# With an NVIDIA GPU:  docker build --tag medimg --build-arg TORCH_INDEX=https://pypi.org/simple .
# To run it:           docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" medimg scan .
ARG PYTHON=3.12
FROM python:${PYTHON} AS build

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY medimg medimg
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.8" "torchvision>=0.23"

COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl

# any user may run it: caches are in /tmp, pretrained weights in /weights
ENV HOME=/tmp TORCH_HOME=/weights
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["medimg"]
CMD ["--help"]
