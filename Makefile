# make demo: the main job, end to end, on the built-in model.   make test: the tests.
# make stress: kills, damaged inputs, threads and a soak, under 30 minutes; writes stress.json.
# make gpu-check: what only a CUDA machine or a Jetson can show; writes gpu-check.json.
# make bench: measures the standing comparison, writes docs/benchmarks.json and docs/benchmarks.md, and times what is
#   promised to be quick.
# All need Python 3.10 to 3.13 and make, nothing else: they set up .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test stress bench gpu-check clean

demo: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.commands.demo demo-output

test: $(VENV)/.installed
	$(BIN)/python -m pytest

stress: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.tests.stress.run_all --output stress.json

bench: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.benchmarks.runs.standing --output docs
	$(BIN)/python -m lavt_edge.benchmarks.runs.promises

gpu-check: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.benchmarks.runs.gpu_check

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
