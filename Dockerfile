# Rankscope in a container; docs/your-model-and-data.md has the commands.
FROM python:3.11-slim

# Which build of PyTorch: cpu, or for NVIDIA GPUs the CUDA version, such as cu128. From its own
# index alone: of two indexes pip takes the newest release, whatever its build.
ARG TORCH=cpu
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" torch

COPY pyproject.toml README.md LICENSE /rankscope/
COPY src /rankscope/src
RUN pip install --no-cache-dir /rankscope

# Folders and names that also serve a user who exists only outside (docker run --user).
ENV HOME=/tmp/home USER=rankscope
RUN mkdir -m 1777 /tmp/home /work && rankscope --version

WORKDIR /work
ENTRYPOINT ["rankscope"]
CMD ["quickstart"]
