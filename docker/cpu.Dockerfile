# Exports, quantises, verifies and runs on a CPU, and builds TensorRT-RTX engines for GPUs elsewhere.
#
#     docker build -f docker/cpu.Dockerfile -t t2t-deploy:cpu .
#     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" t2t-deploy:cpu export --variant 14
#
# No HEALTHCHECK: it is a command that ends, not a service.
FROM python:3.11.14-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/t2t
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md constraints.txt ./
COPY t2t_deploy t2t_deploy
COPY docs/man docs/man
# the index of CPU builds: the default one brings CUDA, several GB
RUN /opt/t2t/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu \
      -c constraints.txt '.[export,cpu,rtx,labels,plot]' \
 && find /opt/t2t -name __pycache__ -type d -prune -exec rm -rf {} +

FROM python:3.11.14-slim-bookworm

COPY --from=build /opt/t2t /opt/t2t
ENV PATH=/opt/t2t/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 t2t \
 && mkdir /work \
 && chown t2t /work
USER 10001
WORKDIR /work
ENTRYPOINT ["t2t-deploy"]
CMD ["doctor"]
