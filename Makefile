# make demo: the main job, end to end, on the built-in model.   make test: the tests.
# make stress: kills, damaged inputs, threads and a soak, under 30 minutes; writes stress.json.
# make gpu-check: what only a CUDA machine can show; writes gpu-check.json.
# make jetson-check BUNDLE=folder: the same on a Jetson, with JetPack's TensorRT, for a bundle made elsewhere.
# make arm-check: the runtime on aarch64, under qemu, against this machine; writes arm-check.json.
# make bench: measures the standing comparison, writes docs/benchmarks.json and docs/benchmarks.md, and times what is
#   promised to be quick.
# All need Python 3.10 to 3.13 and make, nothing else: they set up .venv (on a Jetson .venv-jetson) themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test stress bench arm-check gpu-check jetson-check bundle-named clean

demo: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.commands.demo demo-output

# Four workers keep two cores busy: many tests wait for a server or a process.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --hypothesis-seed 0

stress: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.tests.stress.run_all --output stress.json

bench: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.benchmarks.runs.standing --output docs
	$(BIN)/python -m lavt_edge.benchmarks.runs.promises

arm-check: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.tests.arm_check

gpu-check: $(VENV)/.installed
	$(BIN)/python -m lavt_edge.benchmarks.runs.gpu_check

# JetPack's TensorRT and OpenCV are system packages, which an environment sees only if it is told to.
jetson-check: bundle-named .venv-jetson/.installed
	.venv-jetson/bin/python -m lavt_edge.benchmarks.runs.gpu_check --bundle $(BUNDLE)

bundle-named:
	@test -n "$(BUNDLE)" || { echo 'no bundle was named: make jetson-check BUNDLE=folder' >&2; exit 2; }

.venv-jetson/.installed: pyproject.toml
	$(PYTHON) -m venv --system-site-packages .venv-jetson
	.venv-jetson/bin/python -m pip install --quiet --editable '.[cpu,jetson]' 'pytest>=8' 'numpy<2'
	touch $@

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-jetson demo-output build dist *.egg-info
