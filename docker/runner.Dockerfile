# Measuring only, without torch: time, verify and inspect bundles that were built elsewhere.
#   docker build -f docker/runner.Dockerfile -t qdeploy-runner .
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/qdeploy
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY qdeploy qdeploy
RUN pip install -c constraints.txt .

RUN useradd --create-home qdeploy
USER qdeploy
WORKDIR /home/qdeploy/project
ENTRYPOINT ["qdeploy"]
CMD ["doctor"]
